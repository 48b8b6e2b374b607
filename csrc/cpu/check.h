#pragma once
#include "neighbours.h"
#include "problem.h"
#include "select.h"
#include "tokens.h"

namespace contrastive_ops {

// Throws std::invalid_argument on a description that contradicts itself. Index values are checked;
// buffers and strides cannot be.
template <class Acc>
void check(const Problem<Acc>& problem, Mode mode);
void check(const SelectProblem& problem);
template <class Acc>
void check(const TokenProblem<Acc>& problem);
template <class Acc>
void check(const NeighbourProblem<Acc>& problem);
template <class Acc>
void check(const PairProblem<Acc>& problem);

}  // namespace contrastive_ops
