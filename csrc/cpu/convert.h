// The element types of the inputs, read as and written from vectors of the accumulator's type.
#pragma once

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// A vector of 16-bit lanes, as many as there are in a Vec<float>.
typedef uint16_t U16 __attribute__((vector_size(ISA_VECTOR_BYTES / 2)));
using U32 = Vec<uint32_t>;

inline U16 load_u16(const void* p) {
  U16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store_u16(void* p, U16 v) { __builtin_memcpy(p, &v, sizeof v); }

template <class Acc>
inline Vec<Acc> load_as(const Acc* p) {
  return load(p);
}
template <class Acc>
inline Vec<Acc> load_as(const Bf16* p) {
  return (Vec<float>)(__builtin_convertvector(load_u16(p), U32) << 16);
}

template <class Acc>
inline void store_as(Acc* p, Vec<Acc> v) {
  store(p, v);
}
inline void store_as(Bf16* p, Vec<float> v) {  // to nearest, ties to even; NaN stays NaN
  const U32 b = (U32)v;
  const U32 rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const U32 nan = (b >> 16) | 0x40u;
  store_u16(p, __builtin_convertvector(v == v ? rounded : nan, U16));
}

#if ISA_F16C
template <class Acc>
inline Vec<Acc> load_as(const Half* p) {
#if ISA_AVX512
  return (Vec<float>)_mm512_cvtph_ps((__m256i)load_u16(p));
#else
  return (Vec<float>)_mm256_cvtph_ps((__m128i)load_u16(p));
#endif
}
inline void store_as(Half* p, Vec<float> v) {
#if ISA_AVX512
  store_u16(p, (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#else
  store_u16(p, (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#else
template <class Acc>
inline Vec<Acc> load_as(const Half* p) {
  const U32 h = __builtin_convertvector(load_u16(p), U32);
  const U32 sign = (h & 0x8000u) << 16;
  const U32 magnitude = (h & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent's bias, subnormals included; inf and NaN need theirs.
  const Vec<float> scaled = (Vec<float>)magnitude * 0x1p112f;
  const U32 special = magnitude | 0x7f800000u;
  return (Vec<float>)(sign | ((h & 0x7c00u) == 0x7c00u ? special : (U32)scaled));
}
inline void store_as(Half* p, Vec<float> v) {
  const U32 b = (U32)v;
  const U32 sign = (b >> 16) & 0x8000u;
  const U32 magnitude = b & 0x7fffffffu;
  // Normal halves: rebias and round to nearest even. Subnormal ones: adding 0.5 leaves the
  // rounded result in the low bits.
  const U32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U32 subnormal = (U32)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
  U32 h = magnitude < (113u << 23) ? subnormal : normal;
  h = magnitude >= (143u << 23) ? U32{} + 0x7c00u : h;
  h = magnitude > 0x7f800000u ? U32{} + 0x7e00u : h;
  store_u16(p, __builtin_convertvector(h | sign, U16));
}
#endif

// The first n < lanes elements; the others read as 0.
template <class Acc, class E>
inline Vec<Acc> load_part(const E* p, int64_t n) {
  E part[lanes<Acc>] = {};
  __builtin_memcpy(part, p, size_t(n) * sizeof(E));
  return load_as<Acc>(part);
}
template <class Acc, class E>
inline void store_part(E* p, Vec<Acc> v, int64_t n) {
  E part[lanes<Acc>];
  store_as(part, v);
  __builtin_memcpy(p, part, size_t(n) * sizeof(E));
}

// How many elements a vector of a row has: all lanes, known when compiling, or the row's rest.
template <class Acc>
using Whole = std::integral_constant<int64_t, lanes<Acc>>;

template <class Acc, class E>
inline Vec<Acc> load_first(const E* p, Whole<Acc>) {
  return load_as<Acc>(p);
}
template <class Acc, class E>
inline Vec<Acc> load_first(const E* p, int64_t n) {
  return load_part<Acc>(p, n);
}
template <class Acc, class E>
inline void store_first(E* p, Vec<Acc> v, Whole<Acc>) {
  store_as(p, v);
}
template <class Acc, class E>
inline void store_first(E* p, Vec<Acc> v, int64_t n) {
  store_part<Acc>(p, v, n);
}

// Calls f(k, count) for the vectors of a row of n elements.
template <class Acc, class F>
inline void for_each_vector(int64_t n, F&& f) {
  int64_t k = 0;
  for (; k + lanes<Acc> <= n; k += lanes<Acc>) f(k, Whole<Acc>{});
  if (k < n) f(k, n - k);
}

// Sums f(k, count) over the vectors of a row: four sums hide the latency of an addition, and the
// fewer terms each has, the smaller the error.
template <class Acc, class F>
inline double sum_vectors(int64_t n, F&& f) {
  Vec<Acc> sum[4] = {};
  int64_t k = 0;
  for (; k + 4 * lanes<Acc> <= n; k += 4 * lanes<Acc>) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i] += f(k + i * lanes<Acc>, Whole<Acc>{});
  }
  for (; k + lanes<Acc> <= n; k += lanes<Acc>) sum[0] += f(k, Whole<Acc>{});
  if (k < n) sum[1] += f(k, n - k);
  return sum_lanes<Acc>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}
