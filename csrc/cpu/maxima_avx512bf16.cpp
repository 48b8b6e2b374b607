// Maxima and neighbours on x86-64 with AVX512-BF16.
#include "isa_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define ISA_VECTOR_BYTES 64
#define ISA_MICRO_ROWS 12
#define ISA_AVX512 1
#define ISA_F16C 1
#define ISA_BF16 1
#include "maxima_common.h"

namespace contrastive_ops::avx512bf16 {
void token_similarity(const TokenProblem<float>& problem) {
  if (problem.dtype != DType::bfloat16) return avx512::token_similarity(problem);
  token_similarity_as<Bf16, Pairs>(problem);
}
void token_similarity(const TokenProblem<double>& problem) { avx512::token_similarity(problem); }
}  // namespace contrastive_ops::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
