// Exact selection on a GPU: what is computed, and the memory that the kernels share.
//
// As on the CPU (csrc/cpu/select.h), scores are defined in double and a scan in low precision only
// says where to look. One stripe of queries at a time, one chunk of candidates after another:
//
//   prepare   rows, scaled and rounded to 16 bits, in the order in which tiles read them  (prepare.h)
//   scan      the maximum of each group of 32 candidates for each query  (scan.h, scan_hopper.h)
//   fold      of those, a list of the groups that could still hold a winner  (fold.h)
//   score     the listed groups' candidates as the definition has them  (score.h)
//   merge     them into the queries' k best  (merge.h)
//
// Whatever a group's maximum says, less the scan's error bound, is a score that the query has; the
// k-th largest of these is a threshold, and only groups whose maximum plus the bound reaches it are
// listed. Every step has one order, so the answer is the same on every run and every machine.
#pragma once
#include <cstdint>

#include "simt.h"

namespace contrastive_ops::cuda {

constexpr int group_size = 32;   // candidates of a group: the width of a warp's tile
constexpr int panel_rows = 128;  // rows of a tile's operand
constexpr int depth_step = 64;   // elements of them in one slice: 128 bytes
constexpr int chunk_unit = 256;  // candidates of the widest tile
constexpr int slice_bytes = panel_rows * depth_step * 2;

// Where a prepared row's element lies, in bytes: whole slices one after another, so that a copy of a
// slice is a copy of consecutive bytes; in a slice, the eight 16-byte pieces of a row change places
// with its number, so that eight rows' pieces at one depth lie in different banks (the 128-byte
// swizzle of the hardware's matrix descriptors).
CO_BOTH int64_t slice_offset(int64_t panel, int64_t slice, int64_t slices) {
  return (panel * slices + slice) * slice_bytes;
}
CO_BOTH int in_slice(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

enum class DType : int64_t { float32, float64, bfloat16, float16, int8, bits };

// A group that may hold a winner: its maximum less and plus the bound, both in units of the row.
struct Entry {
  float low, high;
  int32_t group;
  int32_t lost;  // candidates that the scan already knows to be above the limit
};

// Everything that the kernels are told. Of 8 bytes each, so that ctypes lays it out alike
// (contrastive_ops/engine/cuda/library.py); "row" is a query of the stripe.
struct Selection {
  // ---- what was asked
  int64_t dtype, normalize, l2, dim, slices;
  const void* x;  // the stripe's first row
  int64_t x_stride, rows, padded_rows;
  const void* y;  // candidate 0
  int64_t y_stride, count, first;  // `first`: the index that candidate 0 goes by
  int64_t k;
  const int64_t* exclude_begin;  // (rows + 1), of the whole `exclude`; null: none
  const int64_t* exclude;        // ascending for each row
  const int32_t* row_label;      // (rows), (count): equal labels are left out; null: none
  const int32_t* column_label;
  const void* limit;  // (rows), of the scores' type: candidates above are left out; null: none

  // ---- queries
  void* x_slices;
  double* x_factor;   // (padded_rows): prepares a row; NaN: it selects nothing
  double* x_norm;     // of the prepared row
  float* x_residual;  // how far the 16-bit row, times its scale, is from the prepared one
  float* x_scale;
  const float* cap;   // (rows): the limit in units of the row, or null

  // ---- a chunk of candidates; a multiple of chunk_unit, from candidate chunk_begin
  int64_t chunk_begin, chunk;
  void* y_slices;
  double* y_factor;   // (count)
  float* y_scale;     // (chunk)
  float* y_bias;      // (chunk): -inf if it is no candidate; half of -|y|^2 under l2
  float* y_norm;      // (chunk / group_size): the largest of the group; -1: no candidates
  float* y_residual;

  // ---- maxima and lists
  float* maxima;       // (chunk / group_size, padded_rows), in units of the row
  uint8_t* lost;       // the same, where there is a limit: candidates certainly above it
  float* threshold;    // (rows), in units of the row
  Entry* list;         // (rows, capacity)
  int64_t capacity;
  int32_t* list_size;  // (rows)
  uint8_t* dense;      // (rows): the list was too short, every group must be scored
  int64_t* lost_total; // (rows)
  int64_t* above;      // (rows): += candidates that the limit left out; null without one

  // ---- scoring: pairs of a row and a group, by row, then group
  int64_t pairs;
  const int32_t* pair_row;
  const int32_t* pair_group;
  const int64_t* pair_order;  // the pairs in order of group
  void* pair_scores;          // (pairs, group_size)
  const int64_t* row_begin;   // (rows + 1): a row's pairs
  void* scores;               // (rows, k), best first, padded with (-inf, -1)
  int64_t* indices;
};
static_assert(sizeof(Selection) % 8 == 0);

// ---- the bound

// How far a maximum, in units of the row, may be from the real one; inf where nothing is known.
//
// Rounding to 16 bits: measured residuals, through Cauchy-Schwarz. The product: each of the `dim`
// exact products enters a float sum that keeps 24 bits and truncates, 2^-23 of the absolute sum at
// most each, which is what tensor cores are known for at worst (Fasi et al. 2021, "Numerical
// behavior of NVIDIA tensor cores"). Then the roundings of the score itself, of comparisons, and of
// this formula.
CO_DEVICE float error_bound(float x, float x_residual, float x_scale, float y, float y_residual,
                          float dim, bool l2) {
  constexpr float u = 0x1p-24f;
  const float xs = x + x_residual, ys = y + y_residual;
  float e = x_residual * y + xs * y_residual + (dim + 32) * 2 * u * 1.01f * xs * ys;
  float size = x * y;
  if (l2) {
    size = (x + y) * (x + y);
    e += 8 * u * size;
  }
  e += 16 * u * size + dim * 0x1p-124f;
  e /= x_scale;
  const float product = size > xs * ys ? size : xs * ys;
  const float reach = x_scale < 1 ? product / x_scale : product;
  const bool known = e < 1e37f && reach < 1e37f && size < 1e37f;
  return known ? e * 1.0001f + 0x1p-126f : infinity_float();
}

}  // namespace contrastive_ops::cuda
