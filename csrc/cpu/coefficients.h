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
    Acc post[strip_columns];
    for (int64_t j = begin; j < end; ++j) {
      post[j - begin] = j < tile.count ? tile.side->scale[tile.begin + j].post : Acc(1);
    }
    for (int64_t r = 0; r < stripe.rows; r += 2) {
      const bool odd = r + 1 == stripe.rows;
      const Acc a_post = st.x_scale[stripe.begin + r].post;
      const Acc b_post = odd ? Acc(0) : st.x_scale[stripe.begin + r + 1].post;
      for (int64_t j = begin; j < end; j += lanes<Acc>) {
        const Vec<Acc> a = at(r, j), b = odd ? Vec<Acc>{} : at(r + 1, j);
        const Vec<Acc> column_post = load(post + (j - begin));
        if (row_pairs) {
          uint16_t* to = reinterpret_cast<uint16_t*>(row_pairs + r * packed_stride) + j;
          store_u16(to, (U16)_mm512_cvtneps_pbh((__m512)(a * column_post)));
          if (!odd) {
            store_u16(to + 2 * packed_stride, (U16)_mm512_cvtneps_pbh((__m512)(b * column_post)));
          }
        }
        const U32 low = __builtin_convertvector(
            (U16)_mm512_cvtneps_pbh((__m512)(a * a_post)), U32);
        const U32 high = __builtin_convertvector(
            (U16)_mm512_cvtneps_pbh((__m512)(b * b_post)), U32);
        store(column_pairs + r / 2 * tile_stride + j, low | (high << 16));
      }
    }
#endif
  }
}
