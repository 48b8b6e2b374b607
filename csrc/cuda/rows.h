// Rows as the definition reads them: numbers of type R, float or, for float64, double.
#pragma once
#include "problem.h"

namespace contrastive_ops::cuda {

// How an element type is read, and the 16-bit type that scans it: its own, or one of 11 bits.
template <class Raw>
struct Plain {
  static CO_DEVICE const void* row(const void* base, int64_t stride, int64_t i) {
    return static_cast<const Raw*>(base) + i * stride;
  }
};
struct Float32 : Plain<float> {
  using R = float;
  using Scanned = Half;
  static CO_DEVICE R at(const void* row, int64_t i) { return static_cast<const float*>(row)[i]; }
};
struct Float64 : Plain<double> {
  using R = double;
  using Scanned = Half;
  static CO_DEVICE R at(const void* row, int64_t i) { return static_cast<const double*>(row)[i]; }
};
struct BFloat16 : Plain<Bf16> {
  using R = float;
  using Scanned = Bf16;
  static CO_DEVICE R at(const void* row, int64_t i) {
    return static_cast<const Bf16*>(row)[i].value();
  }
};
struct Float16 : Plain<Half> {
  using R = float;
  using Scanned = Half;
  static CO_DEVICE R at(const void* row, int64_t i) {
    return static_cast<const Half*>(row)[i].value();
  }
};
struct Int8 : Plain<int8_t> {
  using R = float;
  using Scanned = Half;
  static CO_DEVICE R at(const void* row, int64_t i) { return static_cast<const int8_t*>(row)[i]; }
};
struct Bits : Plain<uint8_t> {  // eight a byte, the highest first
  using R = float;
  using Scanned = Half;
  static CO_DEVICE R at(const void* row, int64_t i) {
    return float(static_cast<const uint8_t*>(row)[i / 8] >> (7 - i % 8) & 1);
  }
};

// Calls f with the reader of a dtype.
template <class F>
auto with_dtype(int64_t dtype, F&& f) {
  switch (DType(dtype)) {
    case DType::float64: return f(Float64{});
    case DType::bfloat16: return f(BFloat16{});
    case DType::float16: return f(Float16{});
    case DType::int8: return f(Int8{});
    case DType::bits: return f(Bits{});
    default: return f(Float32{});
  }
}

template <class A, class B>
constexpr bool same_type = false;
template <class A>
constexpr bool same_type<A, A> = true;

// ---- sums in eight lanes, element i in lane i % 8, then in halves: see csrc/cpu/score.h

template <class R>
CO_DEVICE double add_product(double total, double a, double b) {
  if constexpr (same_type<R, float>) {
    return exact_fused(a, b, total);
  } else {
    return sum(total, product(a, b));
  }
}
CO_DEVICE double sum_of_eight(double v) {
  v = sum(v, from_lane_xor(v, 4));
  v = sum(v, from_lane_xor(v, 2));
  return sum(v, from_lane_xor(v, 1));
}

}  // namespace contrastive_ops::cuda
