#pragma once

#include <string>

namespace contrastive_ops {

// The machine's arithmetic limit in GF/s, a multiply-add counted as two operations: fused
// multiply-adds that live in registers alone, on `threads` threads at once, for about `seconds`.
// kind "float32" is the widest float32 FMA that this CPU has; kind "bfloat16" its bfloat16 dot
// product with float32 sums, and 0 where it has none. Throws std::invalid_argument on other kinds.
double measure_peak(const std::string& kind, int threads, double seconds);

}  // namespace contrastive_ops
