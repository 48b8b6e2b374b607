// The scores themselves: double, in one order of summation on every machine.
//
// A row is read as R (float, or double for float64) and, where normalised, multiplied by the
// reciprocal of its norm in double and rounded to R. A sum runs in eight lanes, element i in lane
// i % 8, in order; the lanes are added in halves. Products of two floats are exact in double, so
// that a fused multiply-add changes nothing; other products are kept from fusing.
#pragma once

typedef double D8 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));

inline D8 load8(const float* p) {
  F8 v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, D8);
}
inline D8 load8(const double* p) {
  D8 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store8(float* p, D8 v) {
  const F8 narrow = __builtin_convertvector(v, F8);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}
inline void store8(double* p, D8 v) { __builtin_memcpy(p, &v, sizeof v); }

inline D8 rounded(D8 v) {
  __asm__("" : "+m"(v));
  return v;
}

inline double sum8(D8 v) {
  double a[4];
  for (int i = 0; i < 4; ++i) a[i] = v[i] + v[i + 4];
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// Rows are padded with zeros to a multiple of eight.
inline int64_t padded(int64_t dim) { return (dim + 7) / 8 * 8; }

template <class R, Metric metric>
inline D8 term(D8 x, D8 y) {
  if constexpr (metric == Metric::l2) {
    const D8 difference = x - y;
    return rounded(difference * difference);
  } else {
    return std::is_same_v<R, float> ? x * y : rounded(x * y);
  }
}

template <class R>
inline double squared_norm(const R* row, int64_t width) {
  D8 sum = {};
  for (int64_t i = 0; i < width; i += 8) {
    const D8 v = load8(row + i);
    sum += term<R, Metric::dot>(v, v);
  }
  return sum8(sum);
}

template <class R, class E>
inline void read_as(const E* from, int64_t n, R* to) {
  if constexpr (std::is_same_v<R, E>) {
    __builtin_memcpy(to, from, size_t(n) * sizeof(R));
  } else {
    for_each_vector<R>(n, [&](int64_t i, auto count) {
      store_first<R>(to + i, load_first<R>(from + i, count), count);
    });
  }
}

// Row `index` of a matrix as R, padded. Integers and bits become numbers whose products are exact.
template <class R>
void read_row(DType dtype, const void* base, int64_t stride, int64_t index, int64_t dim, R* out) {
  for (int64_t i = dim; i < padded(dim); ++i) out[i] = 0;
  if constexpr (std::is_same_v<R, double>) {
    return read_as(static_cast<const double*>(base) + index * stride, dim, out);
  } else {
    switch (dtype) {
      case DType::bfloat16:
        return read_as(static_cast<const Bf16*>(base) + index * stride, dim, out);
      case DType::float16:
        return read_as(static_cast<const Half*>(base) + index * stride, dim, out);
      case DType::int8: {
        const int8_t* row = static_cast<const int8_t*>(base) + index * stride;
        for (int64_t i = 0; i < dim; ++i) out[i] = row[i];
        return;
      }
      case DType::bits: {  // eight a byte, the highest first; a number each
        const uint8_t* row = static_cast<const uint8_t*>(base) + index * stride;
        for (int64_t i = 0; i < dim; ++i) out[i] = float(row[i / 8] >> (7 - i % 8) & 1);
        return;
      }
      default:
        return read_as(static_cast<const float*>(base) + index * stride, dim, out);
    }
  }
}

// What is known of a row: its norm, and the factor that prepares it. NaN of a row that has NaN or
// no direction.
struct Measure {
  double factor, norm;
};

template <class R>
Measure measure_row(const R* row, int64_t width, bool normalize) {
  const double norm = __builtin_sqrt(squared_norm(row, width));
  if (!normalize) return {norm == norm ? 1 : norm, norm};
  if (norm == 0) return {0, 0};
  const double reciprocal = 1 / norm;
  // An infinite norm: 0 times infinity is no direction.
  const bool usable = reciprocal > 0 && reciprocal < infinity<double>;
  return usable ? Measure{reciprocal, 1} : Measure{__builtin_nan(""), __builtin_nan("")};
}

template <class R>
inline void scale_row(R* row, int64_t width, double factor) {
  if (factor == 1) return;
  for (int64_t i = 0; i < width; i += 8) store8(row + i, load8(row + i) * factor);
}

// A scaled row in double; `row` is padded, or as long as it is wide.
template <class R>
inline void widen_row(const R* row, int64_t width, double factor, double* out) {
  for (int64_t i = 0; i < width; i += 8) {
    D8 v = load8(row + i) * factor;
    if constexpr (std::is_same_v<R, float>) {
      v = __builtin_convertvector(__builtin_convertvector(v, F8), D8);
    }
    store8(out + i, v);
  }
}

// Scores of some queries with `columns` <= 8 candidates, [column][width] in double.
template <class R, Metric metric, int queries, int columns>
inline void score_columns(const R* const* x, const double* y, int64_t width, R* const* out) {
  D8 sum[queries][columns] = {};
  for (int64_t i = 0; i < width; i += 8) {
    D8 v[queries];
#pragma GCC unroll 2
    for (int q = 0; q < queries; ++q) v[q] = load8(x[q] + i);
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const D8 w = load8(y + c * width + i);
#pragma GCC unroll 2
      for (int q = 0; q < queries; ++q) sum[q][c] += term<R, metric>(v[q], w);
    }
  }
  for (int q = 0; q < queries; ++q) {
    for (int c = 0; c < columns; ++c) {
      const double s = sum8(sum[q][c]);
      out[q][c] = R(metric == Metric::l2 ? -s : s);
    }
  }
}
