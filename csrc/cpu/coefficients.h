// From what a scan kept of a tile to the coefficients P = dL/dlogit * weight of its candidates, as
// the two gradient products read them: rows as they lie (dX = P Y) and columns (dY = P^T X).
//
// Numbers serve both from one array. Pairs of bfloat16 run along a row for the first and along a
// column for the second, so they are written twice, each rounded once, with the scales that packed
// rows leave out. Both fit where the numbers were: rows 2i and 2i + 1 have their row pairs in front,
// and after them the column pairs of the two rows, those of the tile's first half of columns in row
// 2i and of the second half in row 2i + 1.
#pragma once

template <class P>
constexpr int64_t column_part = most_columns / P::pack;  // columns whose P lies in one piece

constexpr int64_t rows_ahead = 3;  // are fetched: what a scan kept has left the nearer caches

// Coefficients as operands of the products, a tile at `tile`.
template <class P, class Acc>
inline const typename P::Unit* coefficients_by_row(const Acc* tile, int64_t row) {
  return reinterpret_cast<const typename P::Unit*>(tile) + row * tile_stride;
}
template <class P, class Acc>
inline typename P::Unit* coefficients_by_column(Acc* tile, int64_t column) {
  const int64_t part = column / column_part<P>;
  const int64_t front = P::pack == 1 ? 0 : column_part<P>;
  return reinterpret_cast<typename P::Unit*>(tile) + part * (tile_stride - column_part<P>) + front +
         column;
}

template <class Acc>
struct ColumnSoftmax {
  const Acc *factor, *lse, *smooth;
};

// One vector of coefficients. `t` and `column_t` are what the scan kept.
template <bool bounded, bool two, class Acc>
inline Vec<Acc> coefficients(Vec<Acc> t, Vec<Acc> column_t, const RowSoftmax<Acc>& row,
                             const ColumnSoftmax<Acc>& column, int64_t j, bool smoothing) {
  using V = Vec<Acc>;
  V p = (bounded ? t : exp2(t - row.lse)) * row.factor;
  if constexpr (two) {
    const V e = bounded ? column_t : exp2(column_t - load(column.lse + j));
    p += e * load(column.factor + j);
  }
  if (smoothing) {
    const V left_out = bounded ? V{} : splat(-infinity<Acc>);
    p -= t == left_out ? V{} : splat(row.smooth);
    if constexpr (two) p -= column_t == left_out ? V{} : load(column.smooth + j);
  }
  return p;
}

#if ISA_BF16
inline U16 rounded(Vec<float> v) { return (U16)_mm512_cvtneps_pbh((__m512)v); }

// Pairs (low[i], high[i]).
inline U32 rounded_pairs(Vec<float> low, Vec<float> high) {
  alignas(64) static constexpr uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                   21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                   11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (U32)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

// Two rows of coefficients a and b, `vectors` of them, to their place in the tile.
inline void write_pairs(const Vec<float>* a, const Vec<float>* b, int vectors, float a_post,
                        float b_post, const float* column_post, float* tile, int64_t row) {
  constexpr int n = lanes<float>;
  float* even = tile + row * tile_stride;
  for (int v = 0; v < vectors; ++v) {
    const Vec<float> post = load(column_post + v * n);
    store_u16(even + v * n / 2, rounded(a[v] * post));
    store_u16(even + tile_stride + v * n / 2, rounded(b[v] * post));
    store(coefficients_by_column<Pairs>(even, v * n), rounded_pairs(a[v] * a_post, b[v] * b_post));
  }
}
#endif

// The whole tile, which `kept` and `column_kept` may be.
template <bool bounded, bool two, class S, class Kept>
void write_coefficients(const S& st, const Stripe& stripe, const Tile<typename S::Acc>& tile,
                        const Kept* kept, const Kept* column_kept, typename S::Acc* out) {
  using Acc = typename S::Acc;
  const bool smoothing = st.p.smoothing > 0;
  const int64_t columns = round_up(tile.count, lanes<Acc>);
  const int64_t rows = st.rows_of(stripe, tile, true);
  const ColumnSoftmax<Acc> column = {st.column_factor + tile.begin, st.column_lse + tile.begin,
                                     st.column_smooth + tile.begin};
  const auto at = [&](int64_t r, int64_t j) {
    __builtin_prefetch(kept + (r + rows_ahead) * tile_stride + j);
    const Vec<Acc> t = load_as<Acc>(kept + r * tile_stride + j);
    const Vec<Acc> column_t = two ? load_as<Acc>(column_kept + r * tile_stride + j) : t;
    return coefficients<bounded, two, Acc>(t, column_t, st.softmax[stripe.begin + r], column, j,
                                           smoothing);
  };
  if constexpr (!S::pairs) {
    with_columns(columns, [&](auto width) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < width; j += lanes<Acc>) store(out + r * tile_stride + j, at(r, j));
      }
    });
  } else {
#if ISA_BF16
    Acc post[most_columns];
    for (int64_t j = 0; j < columns; ++j) {
      post[j] = j < tile.count ? tile.side->scale[tile.begin + j].post : Acc(1);
    }
    for (int64_t r = 0; r < rows; r += 2) {
      const bool odd = r + 1 == rows;  // then the second row is one of zeros
      const auto* x = st.x_scale + stripe.begin + r;
      Vec<Acc> a[most_columns / lanes<Acc>], b[most_columns / lanes<Acc>] = {};
      int vectors = 0;
      for (int64_t j = 0; j < columns; j += lanes<Acc>, ++vectors) {
        a[vectors] = at(r, j);
        if (!odd) b[vectors] = at(r + 1, j);
      }
      write_pairs(a, b, vectors, x[0].post, odd ? Acc(0) : x[1].post, post, out, r);
    }
#endif
  }
}
