// The scan: a tile's product, and of it nothing but the maximum of each row's groups.
//
// This file has what every scan shares, the epilogue, and the scan for GPUs from Ampere on, by
// mma.sync; scan_hopper.h has Hopper's.
#pragma once
#include "problem.h"

namespace contrastive_ops::cuda {

// A tile of panel_rows rows and `width` columns, whose number counts down a band of rows before it
// goes across, so that the blocks that run at once read few panels.
struct TilePlace {
  int64_t row, column;
};
template <int width>
CO_DEVICE TilePlace tile_place(const Selection& s, int64_t number) {
  constexpr int64_t band = 16;
  const int64_t down = s.padded_rows / panel_rows, across = s.chunk / width;
  const int64_t begin = number / (band * across) * band;
  const int64_t height = down - begin < band ? down - begin : band;
  const int64_t inside = number - begin * across;
  return {(begin + inside % height) * panel_rows, inside / height * width};
}

// What the epilogue needs to know of a tile's rows and columns.
template <int width>
struct TileTerms {
  float scale[width], bias[width];
  int32_t column_label[width], row_label[panel_rows];
  float weight[panel_rows], cap[panel_rows];
  float norm[panel_rows], residual[panel_rows], x_scale[panel_rows];
  int64_t left_begin[panel_rows];
  int32_t left[panel_rows];  // how many columns of the tile the row leaves out
  TilePlace place;

  // By threads 0, 1, ..., count - 1.
  CO_DEVICE void fill(const Selection& s, const TilePlace& at, int me, int count) {
    if (me == 0) place = at;
    for (int c = me; c < width; c += count) {
      const int64_t column = at.column + c;
      scale[c] = s.y_scale[column];
      bias[c] = s.y_bias[column];
      const bool real = s.column_label && s.chunk_begin + column < s.count;
      column_label[c] = real ? s.column_label[s.chunk_begin + column] : 0;
    }
    for (int r = me; r < panel_rows; r += count) {
      const int64_t row = at.row + r;
      const bool real = row < s.rows;
      x_scale[r] = s.x_scale[row];
      weight[r] = s.l2 ? 1 / x_scale[r] : 1.0f;  // biases in units of the row
      norm[r] = float_up(s.x_norm[row]);
      residual[r] = s.x_residual[row];
      cap[r] = real && s.cap ? s.cap[row] : infinity_float();
      row_label[r] = real && s.row_label ? s.row_label[row] : 0;
      left[r] = 0;
      if (!s.exclude_begin || !real) continue;
      const int64_t begin = s.first + s.chunk_begin + at.column, end = begin + width;
      const int64_t last = s.exclude_begin[row + 1];
      int64_t low = s.exclude_begin[row], high = last;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (s.exclude[middle] < begin) low = middle + 1;
        else high = middle;
      }
      left_begin[r] = low;
      while (low < last && s.exclude[low] < end) ++low, ++left[r];
    }
  }
};

// The maximum of a group of the tile for one row, from the four lanes (t = 0..3) that hold it: lane t
// has columns 8 j + 2 t and 8 j + 2 t + 1 of it, for j = 0..3, in value[2 j] and value[2 j + 1].
template <int width>
CO_DEVICE void emit_group(const Selection& s, const TileTerms<width>& terms, int row, int column,
                          float (&value)[8]) {
  const TilePlace at = terms.place;
  const int t = lane() % 4;
  const float weight = terms.weight[row];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int c = column + i / 2 * 8 + 2 * t + i % 2;
    value[i] = fused(value[i], terms.scale[c], terms.bias[c] * weight);
  }
  if (s.row_label) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = column + i / 2 * 8 + 2 * t + i % 2;
      if (terms.column_label[c] == terms.row_label[row]) value[i] = -infinity_float();
    }
  }
  for (int n = 0; n < terms.left[row]; ++n) {
    const int64_t index = s.exclude[terms.left_begin[row] + n];
    const int c = int(index - s.first - s.chunk_begin - at.column) - column - 2 * t;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (c == i / 2 * 8 + i % 2) value[i] = -infinity_float();
    }
  }
  const int64_t to = (at.column + column) / group_size * s.padded_rows + at.row + row;
  if (s.cap) {
    const int64_t group = (at.column + column) / group_size;
    const float e = error_bound(terms.norm[row], terms.residual[row], terms.x_scale[row],
                                s.y_norm[group], s.y_residual[group], float(s.dim), s.l2);
    const float reach = terms.cap[row] + e;
    const float cap = reach + (reach < 0 ? -reach : reach) * 0x1p-23f;
    uint32_t lost = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool over = value[i] > cap;
      lost += over;
      if (over) value[i] = -infinity_float();
    }
    lost += from_lane_xor(lost, 1);
    lost += from_lane_xor(lost, 2);
    if (t == 0) s.lost[to] = uint8_t(lost);
  }
  float most = value[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) most = larger(most, value[i]);
  most = larger(most, from_lane_xor(most, 1));
  most = larger(most, from_lane_xor(most, 2));
  if (t == 0) s.maxima[to] = most;
}

// Ampere and later: 128 x 128 tiles, eight warps of 64 x 32, two slices in turn.
template <class T>
struct Scan {
  static constexpr int threads = 256;
  static constexpr int blocks_per_multiprocessor = 2;
  static constexpr int width = 128, stages = 2;
  static constexpr int shared_bytes = stages * 2 * slice_bytes + int(sizeof(TileTerms<width>));
  using Params = Selection;

  static int64_t tiles(const Selection& s) { return s.padded_rows / panel_rows * (s.chunk / width); }

  static CO_DEVICE void copy_slice(char* to, const void* slices, int64_t panel, int64_t slice,
                                   int64_t count) {
    const char* from = static_cast<const char*>(slices) + slice_offset(panel, slice, count);
    for (int i = thread() * 16; i < slice_bytes; i += threads * 16) copy_16(to + i, from + i);
  }

  static CO_DEVICE void run(const Selection& s, char* shared) {
    auto& terms = *reinterpret_cast<TileTerms<width>*>(shared + stages * 2 * slice_bytes);
    const TilePlace at = tile_place<width>(s, block());
    const int warp = thread() / 32, down = warp / 4 * 64, across = warp % 4 * 32;
    const auto fetch = [&](int64_t slice) {
      if (slice < s.slices) {
        char* to = shared + slice % stages * 2 * slice_bytes;
        copy_slice(to, s.x_slices, at.row / panel_rows, slice, s.slices);
        copy_slice(to + slice_bytes, s.y_slices, at.column / panel_rows, slice, s.slices);
      }
      copies_commit();
    };
    fetch(0);
    terms.fill(s, at, thread(), threads);
    float total[4][4][4] = {};
    for (int64_t slice = 0; slice < s.slices; ++slice) {
      fetch(slice + 1);
      copies_wait<1>();
      sync_block();
      const char* a = shared + slice % stages * 2 * slice_bytes;
      step(total, a, a + slice_bytes, down, across);
      sync_block();
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = total[m][i / 2][2 * half + i % 2];
        emit_group(s, terms, down + 16 * m + 8 * half + lane() / 4, across, value);
      }
    }
  }

  static CO_DEVICE void step(float (&total)[4][4][4], const char* a, const char* b, int down,
                             int across) {
    const int me = lane();
#pragma unroll
    for (int k = 0; k < depth_step / 16; ++k) {
      uint32_t left[4][4], right[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        load_matrices(left[m], a + in_slice(down + 16 * m + me % 16, 2 * k + me / 16));
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = across + 16 * n + me / 16 * 8 + me % 8;
        load_matrices(right[n], b + in_slice(row, 2 * k + me / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiply(total[m][n], left[m], right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1], T{});
        }
      }
    }
  }
};

}  // namespace contrastive_ops::cuda
