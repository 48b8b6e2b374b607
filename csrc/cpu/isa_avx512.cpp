// x86-64 with AVX-512 F, BW, DQ and VL.
#include "isa_prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define ISA_VECTOR_BYTES 64
#define ISA_MICRO_ROWS 12
#define ISA_AVX512 1
#define ISA_F16C 1
#define ISA_BF16 0
#include "isa_common.h"

namespace contrastive_ops::avx512 {
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
}  // namespace contrastive_ops::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
