// x86-64 with AVX2, FMA and F16C.
#include "isa_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define ISA_VECTOR_BYTES 32
#define ISA_MICRO_ROWS 6
#define ISA_AVX512 0
#define ISA_F16C 1
#define ISA_BF16 0
#include "isa_common.h"

namespace contrastive_ops::avx2 {
void run(const Problem<float>& problem, Mode mode) {
  switch (problem.dtype) {
    case DType::bfloat16: return run_as<Bf16, Plain<float>>(problem, mode);
    case DType::float16: return run_as<Half, Plain<float>>(problem, mode);
    default: return run_as<float, Plain<float>>(problem, mode);
  }
}
void run(const Problem<double>& problem, Mode mode) {
  run_as<double, Plain<double>>(problem, mode);
}
}  // namespace contrastive_ops::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
