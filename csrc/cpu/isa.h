// What every instruction set's file offers to the dispatcher.
#pragma once
#include "neighbours.h"
#include "problem.h"
#include "select.h"
#include "tokens.h"

namespace contrastive_ops {

#define CONTRASTIVE_OPS_DECLARE(name)                 \
  namespace name {                                    \
  void run(const Problem<float>&, Mode);              \
  void run(const Problem<double>&, Mode);             \
  void select(SelectProblem&);                        \
  void token_similarity(const TokenProblem<float>&);  \
  void token_similarity(const TokenProblem<double>&); \
  void neighbours(const NeighbourProblem<float>&);    \
  void neighbours(const NeighbourProblem<double>&);   \
  void pairs(const PairProblem<float>&);              \
  void pairs(const PairProblem<double>&);             \
  }
CONTRASTIVE_OPS_DECLARE(portable)
#if defined(__x86_64__)
CONTRASTIVE_OPS_DECLARE(avx2)
CONTRASTIVE_OPS_DECLARE(avx512)
CONTRASTIVE_OPS_DECLARE(avx512bf16)
#endif
#undef CONTRASTIVE_OPS_DECLARE

// Threads worth waking for this problem.
template <class Acc>
int workers_for(const Problem<Acc>& problem, Mode mode);

}  // namespace contrastive_ops
