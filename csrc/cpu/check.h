#pragma once
#include "problem.h"
#include "select.h"

namespace contrastive_ops {

// Throws std::invalid_argument on a description that contradicts itself. Index values are checked;
// buffers and strides cannot be.
template <class Acc>
void check(const Problem<Acc>& problem, Mode mode);
void check(const SelectProblem& problem);

}  // namespace contrastive_ops
