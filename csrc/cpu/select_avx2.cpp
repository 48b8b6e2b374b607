// The selection on x86-64 with AVX2, FMA and F16C.
#include "select_prelude.h"

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
#define ISA_VNNI 0
#include "select_common.h"

namespace contrastive_ops::avx2 {
void select(SelectProblem& problem) {
  problem.dtype == DType::float64 ? select_as<double>(problem) : select_as<float>(problem);
}
}  // namespace contrastive_ops::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
