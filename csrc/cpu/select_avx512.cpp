// The selection on x86-64 with AVX-512 F, BW, DQ and VL.
#include "select_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define ISA_VECTOR_BYTES 64
#define ISA_MICRO_ROWS 12
#define ISA_AVX512 1
#define ISA_F16C 1
#define ISA_BF16 0
#define ISA_VNNI 0
#include "select_common.h"

namespace contrastive_ops::avx512 {
void select(SelectProblem& problem) {
  problem.dtype == DType::float64 ? select_as<double>(problem) : select_as<float>(problem);
}
}  // namespace contrastive_ops::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
