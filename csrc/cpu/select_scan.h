// The scan: products in low precision, of which only the maximum of each group of columns leaves
// the registers.
//
// A block of columns is `lanes` groups of `group` neighbours: vector v of the block holds column v
// of every group, so that a group's maximum is a lane of a plain maximum of vectors.
#pragma once

#if ISA_VNNI
// Four signed bytes of a candidate times four of a query, which are shifted to be unsigned.
struct Bytes {
  using Acc = int32_t;
  using Unit = uint32_t;
  static constexpr int pack = 4;
  static Vec<Acc> mac(Vec<Acc> c, Vec<Unit> a, Vec<Unit> b) {
    return (Vec<Acc>)_mm512_dpbusd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
  }
};
#endif

// What a row became: |row|, |row - what is scanned of it|, and the factor of its integers.
struct Coarse {
  double norm = 0, residual = 0;
  float unit = 0;  // its entries are bytes or bits times this; 0 for other rows
  float scale = 1;
  int32_t sum = 0;
};

// Rows as the policy multiplies them; `coarse` gets residual and scale.
template <class P>
struct Quantise;

template <>
struct Quantise<Plain<float>> {
  using Elem = float;
  template <class R>
  static void row(const R* from, int64_t dim, Elem* to, Coarse& coarse, bool) {
    double residual = 0;
    for (int64_t i = 0; i < dim; ++i) to[i] = float(from[i]);
    if constexpr (std::is_same_v<R, double>) {
      for (int64_t i = 0; i < dim; ++i) {
        const double left = from[i] - double(to[i]);
        residual += left * left;
      }
    }
    coarse.residual = __builtin_sqrt(residual);
  }
};

#if ISA_BF16
// Calls f(i, vector) for a padded row as float, zeros beyond its end; `lost` is the norm of what
// doubles lose on the way.
template <class R, class F>
inline void for_each_float(const R* from, int64_t dim, double& lost, F&& f) {
  double square = 0;
  for_each_vector<float>(dim, [&](int64_t i, auto count) {
    Vec<float> x;
    if constexpr (std::is_same_v<R, float>) {
      x = load_first<float>(from + i, count);
    } else {
      float narrow[lanes<float>] = {};
      for (int64_t j = 0; j < count; ++j) {
        narrow[j] = float(from[i + j]);
        const double left = from[i + j] - double(narrow[j]);
        square += left * left;
      }
      x = load(narrow);
    }
    f(i, x);
  });
  lost = __builtin_sqrt(square);
}

template <>
struct Quantise<Pairs> {
  using Elem = Bf16;
  template <class R>
  static void row(const R* from, int64_t dim, Elem* to, Coarse& coarse, bool) {
    // The product takes subnormal numbers for zero.
    constexpr float least = 2 * __FLT_MIN__;
    Vec<float> residual = {};
    double lost = 0;
    const float inverse = float(1 / maximum(coarse.norm, 1e-36));  // squares must not underflow
    for_each_float(from, dim, lost, [&](int64_t i, Vec<float> x) {
      const U32 b = (U32)x;
      U32 kept = (b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u;
      kept = (x < 0 ? -x : x) >= least ? kept : U32{};
      const Vec<float> left = (x - (Vec<float>)kept) * inverse;
      residual += left * left;
      store_u16(to + i, __builtin_convertvector(kept >> 16, U16));
    });
    coarse.residual =
        __builtin_sqrt(sum_lanes<float>(residual)) * maximum(coarse.norm, 1e-36) * 1.001 + lost;
    if (!(coarse.norm < 1e36)) coarse.residual = infinity<double>;
  }
};
#endif

#if ISA_VNNI
template <>
struct Quantise<Bytes> {
  using Elem = uint8_t;
  template <class R>
  static void row(const R* from, int64_t dim, Elem* to, Coarse& coarse, bool query) {
    Vec<float> most = {}, residual = {};
    double lost = 0;
    float scale = coarse.unit;
    if (scale == 0) {
      for_each_float(from, dim, lost,
                     [&](int64_t, Vec<float> x) { most = vmax(most, x < 0 ? -x : x); });
      scale = max_lanes<float>(most) * (1 / 127.0f);
    }
    const bool usable = scale > 0x1p-100f && scale < 0x1p100f;
    coarse.scale = usable ? scale : 1;
    const float factor = usable ? 1 / scale : 0;
    Vec<int32_t> sum = {};
    const __m512i offset = _mm512_set1_epi32(query ? 128 : 0);
    for_each_float(from, dim, lost, [&](int64_t i, Vec<float> x) {
      const Vec<float> scaled = x * factor;
      const __m512i whole = _mm512_cvtps_epi32((__m512)scaled);
      const Vec<float> left = scaled - (Vec<float>)_mm512_cvtepi32_ps(whole);
      residual += left * left;
      sum += (Vec<int32_t>)whole;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, offset)));
    });
    // 2^-20: what the residual's own arithmetic rounds; bytes as they are have none.
    coarse.residual = __builtin_sqrt(sum_lanes<float>(residual)) * 1.001 * double(scale) + lost;
    if (coarse.unit != 1) coarse.residual += coarse.norm * 0x1p-20;
    if (!usable) coarse.residual = coarse.norm;
    coarse.sum = 0;
    for (int i = 0; i < lanes<int32_t>; ++i) coarse.sum += sum[i];
  }
};
#endif

// ---- packing; bytes are moved four at a time as numbers of their own

template <class P>
constexpr bool bytes_packed = P::pack == 4;

template <class P, class Elem>
inline Vec<typename P::Unit> load_scanned(const Elem* row, int64_t k, int64_t dim) {
  if constexpr (bytes_packed<P>) {
    using Unit = typename P::Unit;
    const int64_t left = minimum<int64_t>(lanes<Unit>, divide_up(dim, 4) - k);
    Vec<Unit> v = {};
    if (left > 0) __builtin_memcpy(&v, row + 4 * k, size_t(left) * sizeof(Unit));
    return v;
  } else {
    return load_units<P>(row, k, dim, typename P::Acc(1));
  }
}

// `count` <= width rows at `stride`, transposed to [unit][width].
template <class P, class Elem>
void pack_scanned(const Elem* rows, int64_t stride, int64_t count, int64_t dim,
                  typename P::Unit* out, int64_t width) {
  using Unit = typename P::Unit;
  constexpr int n = lanes<Unit>;
  const int64_t depth = divide_up(dim, P::pack);
  for (int64_t k = 0; k < depth; k += n) {
    const int64_t units = minimum<int64_t>(n, depth - k);
    for (int64_t first = 0; first < width; first += n) {
      Vec<Unit> block[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) {
        block[i] = Vec<Unit>{};
        if (first + i < count) block[i] = load_scanned<P>(rows + (first + i) * stride, k, dim);
      }
      transpose<Unit>(block);
      const int64_t room = minimum<int64_t>(n, width - first);
      for (int64_t i = 0; i < units; ++i) {
        Unit* to = out + (k + i) * width + first;
        if (room == n) {
          store(to, block[i]);
        } else {
          __builtin_memcpy(to, &block[i], size_t(room) * sizeof(Unit));
        }
      }
    }
  }
}

// ---- the micro-kernel

// Of a panel of two vectors of columns.
struct PanelTerms {
  alignas(64) float scale[2 * lanes<float>];   // of a column's integers
  alignas(64) float bias[2 * lanes<float>];    // -inf: not a candidate
  alignas(64) int32_t shift[2 * lanes<float>]; // what the unsigned queries add, negated
};

// Of a strip of rows.
struct StripTerms {
  float bias_scale[micro_rows];  // biases are in units of the row
  float cap[micro_rows];         // columns above are left out, and counted
};

template <class P>
inline Vec<float> scanned_value(Vec<typename P::Acc> sum, const PanelTerms& panel, int v,
                                float bias_scale) {
  constexpr int n = lanes<float>;
  const Vec<float> bias = load(panel.bias + v * n);
  if constexpr (bytes_packed<P>) {
    return __builtin_convertvector(sum, Vec<float>) * load(panel.scale + v * n) +
           bias * bias_scale;
  } else {
    return sum + bias;
  }
}

template <bool capped>
inline void fold(Vec<float> (&value)[2], float cap, float* most, int32_t* above, bool first) {
  if constexpr (capped) {
    Vec<int32_t> count = first ? Vec<int32_t>{} : load(above);
    for (int v = 0; v < 2; ++v) {
      const auto over = value[v] > cap;
      count -= (Vec<int32_t>)over;
      value[v] = over ? splat(-infinity<float>) : value[v];
    }
    store(above, count);
  }
  const Vec<float> both = vmax(value[0], value[1]);
  store(most, first ? both : vmax(load(most), both));
}

// Folds the scores of a strip with one panel into most[row * stride + lane] and above[row][lane].
template <class P, bool capped>
void maximum_kernel(const typename P::Unit* __restrict a, const typename P::Unit* __restrict b,
                    int64_t depth, const PanelTerms& panel, const StripTerms& strip,
                    float* __restrict most, int64_t stride, int32_t* __restrict above, bool first,
                    const typename P::Unit* next_b) {
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  constexpr int n = lanes<Acc>;
  Vec<Acc> sum[micro_rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < micro_rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      if constexpr (bytes_packed<P>) {
        sum[r][v] = load(panel.shift + v * n);
      } else {
        sum[r][v] = Vec<Acc>{};
      }
    }
  }
  const char* next = reinterpret_cast<const char*>(next_b);
  for (int64_t k = 0; k < depth; ++k) {
    Vec<Unit> y[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) y[v] = load(b + v * n);
#pragma GCC unroll 12
    for (int r = 0; r < micro_rows; ++r) {
      const Vec<Unit> x = splat(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) sum[r][v] = P::mac(sum[r][v], x, y[v]);
    }
    a += micro_rows;
    b += 2 * n;
    __builtin_prefetch(next, 0, 2);
    next += 64;
  }
#pragma GCC unroll 12
  for (int r = 0; r < micro_rows; ++r) {
    Vec<float> value[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) value[v] = scanned_value<P>(sum[r][v], panel, v, strip.bias_scale[r]);
    fold<capped>(value, capped ? strip.cap[r] : 0, most + r * stride, above + r * n, first);
  }
}

// A column of a panel that a row leaves out.
struct Left {
  int32_t panel, row, place;
};

// The same where some rows leave columns out.
template <class P, bool capped>
void maximum_without(const typename P::Unit* a, const typename P::Unit* b, int64_t depth,
                     const PanelTerms& panel, const StripTerms& strip, const Left* left,
                     int64_t lefts, float* most, int64_t stride, int32_t* above, bool first) {
  using Acc = typename P::Acc;
  constexpr int n = lanes<Acc>;
  alignas(64) Acc sums[micro_rows * 2 * n];
  alignas(64) float values[micro_rows * 2 * n];
  micro_kernel<P, micro_rows, 2, 1, micro_rows>(a, b, depth, Runs{}, sums, 2 * n, false, b);
  for (int r = 0; r < micro_rows; ++r) {
    for (int v = 0; v < 2; ++v) {
      Vec<Acc> sum = load(sums + (2 * r + v) * n);
      if constexpr (bytes_packed<P>) sum += load(panel.shift + v * n);
      store(values + (2 * r + v) * n, scanned_value<P>(sum, panel, v, strip.bias_scale[r]));
    }
  }
  for (int64_t i = 0; i < lefts; ++i) {
    values[left[i].row * 2 * n + left[i].place] = -infinity<float>;
  }
  for (int r = 0; r < micro_rows; ++r) {
    Vec<float> value[2] = {load(values + 2 * r * n), load(values + (2 * r + 1) * n)};
    fold<capped>(value, capped ? strip.cap[r] : 0, most + r * stride, above + r * n, first);
  }
}
