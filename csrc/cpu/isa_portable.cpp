// The compiler's baseline: 16-byte vectors on x86-64 and Arm.
#include "isa_prelude.h"

#define ISA_VECTOR_BYTES 16
#define ISA_MICRO_ROWS 4
#define ISA_AVX512 0
#define ISA_F16C 0
#define ISA_BF16 0
#include "isa_common.h"

namespace contrastive_ops::portable {
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
}  // namespace contrastive_ops::portable
