// The selection in the compiler's baseline: 16-byte vectors on x86-64 and Arm.
#include "select_prelude.h"

#define ISA_VECTOR_BYTES 16
#define ISA_MICRO_ROWS 4
#define ISA_AVX512 0
#define ISA_F16C 0
#define ISA_BF16 0
#define ISA_VNNI 0
#include "select_common.h"

namespace contrastive_ops::portable {
void select(SelectProblem& problem) {
  problem.dtype == DType::float64 ? select_as<double>(problem) : select_as<float>(problem);
}
}  // namespace contrastive_ops::portable
