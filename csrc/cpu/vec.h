// Vectors of one instruction set, on the compiler's vector extensions.
//
// Included once by each isa_*.cpp, inside an anonymous namespace of its own, after the macros
//   ISA_VECTOR_BYTES, ISA_MICRO_ROWS, ISA_AVX512, ISA_F16C, ISA_BF16
// are set: nothing compiled for one instruction set may reach the linker's choice for another.
#pragma once

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(ISA_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int lanes = ISA_VECTOR_BYTES / int(sizeof(T));

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
  static constexpr int mantissa = 23;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
  static constexpr int mantissa = 52;
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class T>
constexpr T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T maximum(T a, T b) {
  return a < b ? b : a;
}

template <class T>
inline T clamp(T a, T least, T most) {
  return maximum(least, minimum(a, most));
}
template <class T>
inline T magnitude(T a) {
  return a < 0 ? -a : a;
}

template <class T>
constexpr T infinity = T(__builtin_inff());
template <class T>
constexpr T largest_finite = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
// x - 0 is x for every x (0 + x is not, for -0), so this is a bare broadcast.
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <class T>
inline Vec<Bits<T>> bits(Vec<T> v) {
  return (Vec<Bits<T>>)v;
}

// NaN in b is kept, NaN in a is dropped: sums carry NaN, maxima need not.
template <class V>
inline V vmax(V a, V b) {
  return a > b ? a : b;
}

// Elements [first, first + n / 2) of the n of v, as a vector of half the size.
template <int first, class V, int... i>
inline auto half_of(V v, std::integer_sequence<int, i...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(v, v, (first + i)...);
#else
  using T = std::remove_reference_t<decltype(v[0])>;
  typedef T Half __attribute__((vector_size(sizeof(V) / 2)));
  return Half{v[first + i]...};
#endif
}
// All elements joined, halves onto halves: elements that are named one by one would be extracted,
// converted and joined one by one.
template <class V, class F>
inline auto fold(V v, F&& join) {
  constexpr int half = sizeof(V) / sizeof(v[0]) / 2;
  if constexpr (half == 1) {
    return join(v[0], v[1]);
  } else {
    using Sequence = std::make_integer_sequence<int, half>;
    return fold(join(half_of<0>(v, Sequence{}), half_of<half>(v, Sequence{})), join);
  }
}
template <class T>
inline double sum_lanes(Vec<T> v) {
  const auto add = [](auto a, auto b) { return a + b; };
  if constexpr (sizeof(T) == sizeof(double)) {
    return fold(v, add);
  } else {
    constexpr int half = lanes<T> / 2;
    using Sequence = std::make_integer_sequence<int, half>;
    return fold(__builtin_convertvector(half_of<0>(v, Sequence{}), Vec<double>) +
                    __builtin_convertvector(half_of<half>(v, Sequence{}), Vec<double>),
                add);
  }
}
template <class T>
inline T max_lanes(Vec<T> v) {
  return fold(v, [](auto a, auto b) { return vmax(a, b); });
}

// Halves of the perfect shuffle of a and b.
template <int offset, class V, int... i>
inline V shuffle_half(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (offset + i / 2 + (i % 2) * n)...);
#else
  using Index = decltype(a < b);
  return __builtin_shuffle(a, b, Index{(offset + i / 2 + (i % 2) * n)...});
#endif
}

// In-place transpose of a lanes x lanes matrix. One perfect shuffle of rows i and i + n/2 rotates
// the bits of (row, column) by one place; log2(n) of them exchange row and column.
template <class T>
inline void transpose(Vec<T> (&v)[lanes<T>]) {
  constexpr int n = lanes<T>;
  using Sequence = std::make_integer_sequence<int, n>;
#pragma GCC unroll 5
  for (int stage = 1; stage < n; stage *= 2) {
    Vec<T> t[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = shuffle_half<0>(v[i], v[i + n / 2], Sequence{});
      t[2 * i + 1] = shuffle_half<n / 2>(v[i], v[i + n / 2], Sequence{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = t[i];
  }
}

// 2^f on [0, 1): a minimax fit with the constant term fixed, so that 2^0 = 1 exactly.
template <class T>
struct Exp2Fit;
template <>
struct Exp2Fit<float> {  // relative error 1.1e-8
  static constexpr float coefficient[] = {0.693147170864976528f,  0.240227204181098151f,
                                          0.055496023564022933f,  0.0096521950560147358f,
                                          0.00126921660691408532f, 0.000208179150435407431f};
};
template <>
struct Exp2Fit<double> {  // relative error 2.3e-19
  static constexpr double coefficient[] = {
      0.693147180559945309,    0.240226506959100776,   0.0555041086648185607,
      0.00961812910768474737,  0.00133335581410155709, 0.000154035307002398686,
      0.0000152527227928132238, 1.32157463441484434e-6, 1.017401785226927e-7,
      7.09679519777703998e-9,  4.17505280589935886e-10, 3.5440421858907e-11};
};

template <class T>
inline Vec<T> exp2_fraction(Vec<T> f) {
  constexpr int n = sizeof(Exp2Fit<T>::coefficient) / sizeof(T);
  Vec<T> p = splat(Exp2Fit<T>::coefficient[n - 1]);
#pragma GCC unroll 12
  for (int i = n - 2; i >= 0; --i) p = p * f + Exp2Fit<T>::coefficient[i];
  return p * f + T(1);
}

// log2(1 + e) = u q(u^2) with u = e / (2 + e), for e on [0, 1]: minimax fits of q.
template <class T>
struct Log2Fit;
template <>
struct Log2Fit<float> {  // relative error 4.0e-9
  static constexpr float coefficient[] = {2.8853900932046075f, 0.96179161588251696f,
                                          0.57743739539429302f, 0.403386236323197178f,
                                          0.406527404032755933f};
};
template <>
struct Log2Fit<double> {  // relative error 1.3e-18
  static constexpr double coefficient[] = {
      2.88539008177792682,  0.961796693925967923, 0.57707801635833129,  0.412198582728758516,
      0.320598925236246856, 0.262307058252613325, 0.221982226853830037, 0.191879917418974749,
      0.174742827073543091, 0.119969925835518172, 0.246124731354393114};
};

template <class T>
inline Vec<T> log2_of_ratio(Vec<T> u) {
  constexpr int n = sizeof(Log2Fit<T>::coefficient) / sizeof(T);
  const Vec<T> square = u * u;
  Vec<T> q = splat(Log2Fit<T>::coefficient[n - 1]);
#pragma GCC unroll 12
  for (int i = n - 2; i >= 0; --i) q = q * square + Log2Fit<T>::coefficient[i];
  return q * u;
}

// 2^x; 0 below the normal numbers, inf from 2^emax on, NaN for NaN.
#if ISA_AVX512
inline Vec<float> exp2(Vec<float> x) {
  const auto f = (Vec<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return (Vec<float>)_mm512_maskz_scalef_ps(-1, (__m512)exp2_fraction<float>(f), (__m512)x);
}
inline Vec<double> exp2(Vec<double> x) {
  const auto f =
      (Vec<double>)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return (Vec<double>)_mm512_maskz_scalef_pd(-1, (__m512d)exp2_fraction<double>(f), (__m512d)x);
}
#else
template <class V>
inline V exp2(V x) {
  using T = std::remove_reference_t<decltype(x[0])>;
  constexpr int mantissa = BitsOf<T>::mantissa;
  constexpr T emax = sizeof(T) == 4 ? 128 : 1024;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
  constexpr T magic = T(3) * T(Bits<T>(1) << (mantissa - 1));
  const V bounded = x > emax ? splat(emax) : x;
  const V shifted = (bounded - T(0.5)) + magic;
  const V f = bounded - (shifted - magic);
  const auto exponent = (bits<T>(shifted) - bits<T>(splat(magic))) << mantissa;
  const V power = (V)(exponent + bits<T>(splat(T(1))));
  return x < 2 - emax ? V{} : exp2_fraction<T>(f) * power;
}
#endif
