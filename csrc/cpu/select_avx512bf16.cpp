// The selection on x86-64 with AVX512-BF16 and VNNI: scans in 16 and 8 bits.
#include "select_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define ISA_VECTOR_BYTES 64
#define ISA_MICRO_ROWS 12
#define ISA_AVX512 1
#define ISA_F16C 1
#define ISA_BF16 1
#define ISA_VNNI 1
#include "select_common.h"

namespace contrastive_ops::avx512bf16 {
void select(SelectProblem& problem) {
  problem.dtype == DType::float64 ? select_as<double>(problem) : select_as<float>(problem);
}
}  // namespace contrastive_ops::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
