// Similarities of few rows straight from where the inputs lie: packing them would take longer than
// the products.
#pragma once

// s[r][j] for rows [row, row + rows) of the problem and the tile's columns; zeros behind the last of
// a tile that is not full. A block has one sum for each lane of a vector. Unit rows of one side keep
// the sums within range, however long the other's are.
template <class S>
void multiply_in_place(const S& st, const Tile<typename S::Acc>& tile, int64_t row, int64_t rows,
                       typename S::Acc* s) {
  using Acc = typename S::Acc;
  using Elem = typename S::Elem;
  constexpr int64_t block_rows = minimum(4, lanes<Acc>), block_columns = lanes<Acc> / block_rows;
  const Side<Acc>& side = *tile.side;
  for (int64_t j = 0; j < tile.count; j += block_columns) {
    for (int64_t r = 0; r < rows; r += block_rows) {
      // Beyond the edge the last row is taken again, and the result dropped.
      const Elem *x[block_rows], *y[block_columns];
      Acc x_element[block_rows];
      for (int64_t i = 0; i < block_rows; ++i) {
        const int64_t from = row + minimum(r + i, rows - 1);
        x[i] = st.x_row(from);
        x_element[i] = st.x_scale[from].element;
      }
      for (int64_t i = 0; i < block_columns; ++i) {
        y[i] = st.candidate_row(side, tile.begin + minimum(j + i, tile.count - 1));
      }
      Vec<Acc> sum[lanes<Acc>] = {};
      for_each_vector<Acc>(st.p.dim, [&](int64_t k, auto n) {
        Vec<Acc> y_k[block_columns];
#pragma GCC unroll 4
        for (int64_t i = 0; i < block_columns; ++i) y_k[i] = load_first<Acc>(y[i] + k, n);
#pragma GCC unroll 4
        for (int64_t i = 0; i < block_rows; ++i) {
          const Vec<Acc> x_k = load_first<Acc>(x[i] + k, n) * x_element[i];
#pragma GCC unroll 4
          for (int64_t c = 0; c < block_columns; ++c) sum[i * block_columns + c] += x_k * y_k[c];
        }
      });
      transpose<Acc>(sum);
      Vec<Acc> total = sum[0];
#pragma GCC unroll 16
      for (int i = 1; i < lanes<Acc>; ++i) total += sum[i];
      for (int64_t i = 0; i < minimum(block_rows, rows - r); ++i) {
        for (int64_t c = 0; c < minimum(block_columns, tile.count - j); ++c) {
          s[(r + i) * tile_stride + j + c] =
              total[i * block_columns + c] * side.scale[tile.begin + j + c].element;
        }
      }
    }
  }
  const int64_t columns = round_up(tile.count, lanes<Acc>);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = tile.count; j < columns; ++j) s[r * tile_stride + j] = 0;
  }
}
