// Maxima and neighbours on x86-64 with AVX2, FMA and F16C.
#include "isa_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target( \
    "avx2,fma,f16c")
#endif

#define ISA_VECTOR_BYTES 32
#define ISA_MICRO_ROWS 6
#define ISA_AVX512 0
#define ISA_F16C 1
#define ISA_BF16 0
#include "maxima_common.h"

namespace contrastive_ops::avx2 {
void token_similarity(const TokenProblem<float>& problem) { token_similarity_of(problem); }
void token_similarity(const TokenProblem<double>& problem) {
  token_similarity_as<double, Plain<double>>(problem);
}
void neighbours(const NeighbourProblem<float>& problem) { neighbours_as(problem); }
void neighbours(const NeighbourProblem<double>& problem) { neighbours_as(problem); }
void pairs(const PairProblem<float>& problem) { pairs_as(problem); }
void pairs(const PairProblem<double>& problem) { pairs_as(problem); }
}  // namespace contrastive_ops::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
