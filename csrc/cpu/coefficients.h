// From what a scan kept to the coefficients P = dL/dlogit * weight of the candidates, as the two
// gradient products read them: rows as they lie (dX = P Y) and columns (dY = P^T X). Numbers serve
// both from one array; bfloat16 pairs run along a row for the first and along a column for the
// second, each rounded once, with the scales that packed rows leave out.
#pragma once

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
#endif

// Columns [begin, end) of a kept tile, whole vectors.
template <bool bounded, bool two, class S, class Kept>
void write_coefficients(const S& st, const Stripe& stripe, const Tile<typename S::Acc>& tile,
                        const Kept* kept, const Kept* column_kept, int64_t begin, int64_t end,
                        typename S::Acc* numbers, typename S::Unit* row_pairs,
                        typename S::Unit* column_pairs) {
  using Acc = typename S::Acc;
  const bool smoothing = st.p.smoothing > 0;
  const ColumnSoftmax<Acc> column = {st.column_factor + tile.begin, st.column_lse + tile.begin,
                                     st.column_smooth + tile.begin};
  const auto at = [&](int64_t r, int64_t j) {
    const Vec<Acc> t = load_as<Acc>(kept + r * tile_stride + j);
    const Vec<Acc> column_t = two ? load_as<Acc>(column_kept + r * tile_stride + j) : t;
    return coefficients<bounded, two, Acc>(t, column_t, st.softmax[stripe.begin + r], column, j,
                                           smoothing);
  };
  if constexpr (!S::pairs) {
    (void)row_pairs;
    (void)column_pairs;
    for (int64_t r = 0; r < stripe.rows; ++r) {
      for (int64_t j = begin; j < end; j += lanes<Acc>) {
        store(numbers + r * tile_stride + j, at(r, j));
      }
    }
  } else {
#if ISA_BF16
    (void)numbers;
    Acc post[most_columns];
    for (int64_t j = begin; j < end; ++j) {
      post[j - begin] = j < tile.count ? tile.side->scale[tile.begin + j].post : Acc(1);
    }
    uint16_t* rows = reinterpret_cast<uint16_t*>(row_pairs);
    for (int64_t r = 0; r < stripe.rows; r += 2) {
      const bool odd = r + 1 == stripe.rows;  // then the second row is one of zeros
      const Acc a_post = st.x_scale[stripe.begin + r].post;
      const Acc b_post = odd ? Acc(0) : st.x_scale[stripe.begin + r + 1].post;
      for (int64_t j = begin; j < end; j += lanes<Acc>) {
        const Vec<Acc> a = at(r, j), b = odd ? Vec<Acc>{} : at(r + 1, j);
        if (rows) {
          const Vec<Acc> column_post = load(post + (j - begin));
          uint16_t* to = rows + r * 2 * packed_stride + j;
          store_u16(to, rounded(a * column_post));
          store_u16(to + 2 * packed_stride, rounded(b * column_post));
        }
        store(column_pairs + r / 2 * tile_stride + j, rounded_pairs(a * a_post, b * b_post));
      }
    }
#endif
  }
}
