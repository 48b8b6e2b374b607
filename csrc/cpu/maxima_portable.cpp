// Maxima and neighbours in the compiler's baseline: 16-byte vectors on x86-64 and Arm.
#include "isa_prelude.h"

#define ISA_VECTOR_BYTES 16
#define ISA_MICRO_ROWS 4
#define ISA_AVX512 0
#define ISA_F16C 0
#define ISA_BF16 0
#include "maxima_common.h"

namespace contrastive_ops::portable {
void token_similarity(const TokenProblem<float>& problem) { token_similarity_of(problem); }
void token_similarity(const TokenProblem<double>& problem) {
  token_similarity_as<double, Plain<double>>(problem);
}
void neighbours(const NeighbourProblem<float>& problem) { neighbours_as(problem); }
void neighbours(const NeighbourProblem<double>& problem) { neighbours_as(problem); }
void pairs(const PairProblem<float>& problem) { pairs_as(problem); }
void pairs(const PairProblem<double>& problem) { pairs_as(problem); }
}  // namespace contrastive_ops::portable
