// Rows of the inputs: norms, scales, dot products, and packed operands of the products.
#pragma once

template <class Acc, class E>
inline double square_sum(const E* row, int64_t n, Acc factor) {
  return sum_vectors<Acc>(n, [&](int64_t k, auto count) {
    const Vec<Acc> v = load_first<Acc>(row + k, count) * factor;
    return v * v;
  });
}

template <class Acc, class E>
inline double row_norm(const E* row, int64_t n) {
  const double safe = sizeof(Acc) == 4 ? 1e-25 : 1e-200;
  const double square = square_sum<Acc>(row, n, Acc(1));
  if (square > safe && square < 1 / safe) return __builtin_sqrt(square);
  Vec<Acc> most = {};
  for_each_vector<Acc>(n, [&](int64_t k, auto count) {
    const Vec<Acc> v = load_first<Acc>(row + k, count);
    most = vmax(most, v < 0 ? -v : v);
  });
  const double largest = double(max_lanes<Acc>(most));
  if (!(largest > 0) || largest == infinity<double>) return __builtin_sqrt(square);
  // A power of two brings the squares near 1; as far as Acc has such a power.
  int exponent;
  __builtin_frexp(largest, &exponent);
  const int range = sizeof(Acc) == 4 ? 126 : 1022;
  const int shift = clamp(-exponent, -range, range);
  const double scaled = square_sum<Acc>(row, n, Acc(__builtin_ldexp(1, shift)));
  return __builtin_ldexp(__builtin_sqrt(scaled), -shift);
}

template <class S, class E = typename S::Elem>
inline RowScale<typename S::Acc> row_scale(const S& st, const E* row) {
  using Acc = typename S::Acc;
  // Dot products need norms only for the range of the logits and the slack of thresholds.
  const double norm = row_norm<Acc>(row, st.p.dim);
  if (!st.p.normalize) return {1, 1, Acc(norm)};
  if (norm == 0) return {0, 1, 0};
  if constexpr (S::pairs) {
    int exponent = 1;
    if (norm < infinity<double>) __builtin_frexp(norm, &exponent);
    const double power = __builtin_ldexp(1, minimum(126, maximum(-126, 1 - exponent)));
    return {Acc(power), Acc(1 / (norm * power)), Acc(norm)};
  } else {
    return {minimum(largest_finite<Acc>, Acc(1 / norm)), 1, Acc(norm)};
  }
}

// <a, b> of scaled rows, before `post`.
template <class Acc, class E, class F>
inline double scaled_dot(const E* a, Acc a_element, const F* b, Acc b_element, int64_t n) {
  return sum_vectors<Acc>(n, [&](int64_t k, auto count) {
    return (load_first<Acc>(a + k, count) * a_element) * (load_first<Acc>(b + k, count) * b_element);
  });
}

#if ISA_BF16
// Two vectors of floats that bfloat16 holds exactly, as pairs.
inline U32 exact_pairs(Vec<float> low, Vec<float> high) {
  return ((U32)low >> 16) | ((U32)high & 0xffff0000u);
}
#endif

// Units [k, k + lanes) of a row, 0 beyond its end.
template <class P, class E>
inline Vec<typename P::Unit> load_units(const E* row, int64_t k, int64_t dim,
                                        typename P::Acc element) {
  using Unit = typename P::Unit;
  constexpr int64_t elements = lanes<Unit> * P::pack;
  const int64_t begin = k * P::pack;
  const int64_t n = minimum(elements, dim - begin);
  if (n <= 0) return Vec<Unit>{};
  if constexpr (P::pack == 1) {
    return (n == elements ? load_as<Unit>(row + begin) : load_part<Unit>(row + begin, n)) * element;
  } else {
#if ISA_BF16
    U32 v = {};
    if (n == elements) {
      __builtin_memcpy(&v, row + begin, sizeof v);
    } else {
      __builtin_memcpy(&v, row + begin, size_t(n) * sizeof(E));
    }
    return exact_pairs((Vec<float>)(v << 16) * element, (Vec<float>)(v & 0xffff0000u) * element);
#endif
  }
}

// A row of a matrix as the packing loops see it.
template <class E, class Acc>
struct PackedRow {
  const E* data;
  Acc element;
};
template <class E, class Acc>
inline PackedRow<E, Acc> packed_row(const E* data, Acc element) {
  return {data, element};
}

// count <= width rows to [k][width], transposed, for width a multiple of the lanes; `row(r)` gives
// row r.
template <class P, class F>
inline void pack_transposed(F&& row, int64_t count, int64_t dim, typename P::Unit* out,
                            int64_t width) {
  using Unit = typename P::Unit;
  constexpr int n = lanes<Unit>;
  const int64_t depth = divide_up(dim, P::pack);
  for (int64_t first = 0; first < width; first += n) {
    for (int64_t k = 0; k < depth; k += n) {
      Vec<Unit> block[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) {
        block[i] = Vec<Unit>{};
        if (first + i < count) {
          const auto r = row(first + i);
          block[i] = load_units<P>(r.data, k, dim, r.element);
        }
      }
      transpose<Unit>(block);
      const int64_t columns = minimum<int64_t>(n, depth - k);
      Unit* to = out + k * width + first;
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) {
        if (i >= columns) break;
        store(to + i * width, block[i]);
      }
    }
  }
}

// Up to micro_rows rows to [k][micro_rows], transposed. Whole vectors are stored in order of k, so
// what one writes beyond its rows the next overwrites; a vector of slack follows the last.
template <class P, class F>
inline void pack_strip(F&& row, int64_t count, int64_t dim, typename P::Unit* out) {
  using Unit = typename P::Unit;
  constexpr int n = lanes<Unit>;
  constexpr int groups = (micro_rows + n - 1) / n;
  const int64_t depth = divide_up(dim, P::pack);
  for (int64_t k = 0; k < depth; k += n) {
    Vec<Unit> block[groups][n];
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) {
        const int r = g * n + i;
        block[g][i] = Vec<Unit>{};
        if (r < micro_rows && r < count) {
          block[g][i] = load_units<P>(row(r).data, k, dim, row(r).element);
        }
      }
      transpose<Unit>(block[g]);
    }
    const int64_t columns = minimum<int64_t>(n, depth - k);
    Unit* to = out + k * micro_rows;
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i >= columns) break;
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) store(to + i * micro_rows + g * n, block[g][i]);
    }
  }
}

// A piece of count rows, as they lie, to a panel [row unit][micro_columns]; the last panel of dim
// columns is narrower if that is enough.
template <class P, class F>
inline void pack_piece(F&& row, int64_t count, int64_t dim, const Piece& piece,
                       typename P::Unit* out) {
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  constexpr int n = lanes<Acc>;
  const int64_t units = divide_up(count, P::pack);
  const int64_t width = panel_width<Acc>(dim - piece.panel);
  out += piece.offset * units;
  for (int64_t u = 0; u < units; ++u) {
    for (int64_t d = piece.panel; d < piece.panel + width; d += n) {
      Unit* to = out + u * width + (d - piece.panel);
      const int64_t before = maximum<int64_t>(0, piece.begin - d);
      const int64_t count_d = minimum<int64_t>(n, piece.end - d) - before;
      const auto get = [&](int64_t i) {
        if (i >= count || count_d <= 0) return Vec<Acc>{};
        const auto r = row(i);
        using Elem = std::remove_cv_t<std::remove_reference_t<decltype(*r.data)>>;
        if (count_d == n) return load_as<Acc>(r.data + d) * r.element;
        Elem part[n] = {};
        __builtin_memcpy(part + before, r.data + d + before, size_t(count_d) * sizeof(Elem));
        return load_as<Acc>(part) * r.element;
      };
      if constexpr (P::pack == 1) {
        store(to, get(u));
      } else {
#if ISA_BF16
        store(to, exact_pairs(get(2 * u), get(2 * u + 1)));
#endif
      }
    }
  }
}
