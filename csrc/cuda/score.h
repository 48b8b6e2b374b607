// The listed groups' candidates, as the definition has their scores.
#pragma once
#include "rows.h"

namespace contrastive_ops::cuda {

// A block takes 16 pairs in order of group, and of one group at a time its rows against its 32
// candidates: eight lanes hold the eight partial sums of 4 x 4 scores.
template <class E, bool l2>
struct Score {
  static constexpr int threads = 256;
  static constexpr int blocks_per_multiprocessor = 2;
  static constexpr int pairs_at_once = 16, slice = 64, pitch = 72;
  struct Shared {
    double x[pairs_at_once][pitch], y[group_size][pitch];
    double x_factor[pairs_at_once], y_factor[group_size];
    int64_t pair[pairs_at_once];
    int32_t row[pairs_at_once], group[pairs_at_once];
  };
  static constexpr int shared_bytes = int(sizeof(Shared));
  using Params = Selection;

  static CO_DEVICE void run(const Selection& s, char* shared) {
    Shared& m = *reinterpret_cast<Shared*>(shared);
    const int64_t first = block() * pairs_at_once;
    const int here = int(s.pairs - first < pairs_at_once ? s.pairs - first : pairs_at_once);
    if (thread() < here) {
      const int64_t pair = s.pair_order[first + thread()];
      m.pair[thread()] = pair;
      m.row[thread()] = s.pair_row[pair];
      m.group[thread()] = s.pair_group[pair];
      m.x_factor[thread()] = s.x_factor[m.row[thread()]];
    }
    sync_block();
    for (int begin = 0; begin < here;) {
      int end = begin + 1;
      while (end < here && m.group[end] == m.group[begin]) ++end;
      score_group(s, m, begin, end);
      begin = end;
    }
  }

  static CO_DEVICE void score_group(const Selection& s, Shared& m, int begin, int end) {
    using R = typename E::R;
    const int64_t column0 = int64_t(m.group[begin]) * group_size;
    const int part = thread() % 8, octet = thread() / 8;
    const int row = octet / 8 * 4, column = octet / 4 % 2 * 16 + octet % 4;
    double total[4][4] = {};
    for (int64_t i0 = 0; i0 < s.dim; i0 += slice) {
      sync_block();
      if (i0 == 0) {
        if (thread() < group_size) {
          const int64_t c = column0 + thread();
          m.y_factor[thread()] = c < s.count ? s.y_factor[c] : 0.0;
        }
        sync_block();
      }
      for (int at = thread(); at < (pairs_at_once + group_size) * slice; at += threads) {
        const int r = at / slice, i = at % slice;
        const bool inside = i0 + i < s.dim;
        if (r < group_size) {
          const int64_t c = column0 + r;
          const double v = inside && c < s.count ? double(E::at(E::row(s.y, s.y_stride, c), i0 + i)) : 0.0;
          m.y[r][i] = inside ? double(R(product(v, m.y_factor[r]))) : 0.0;
        } else {
          const int q = begin + r - group_size;
          const double v = inside && q < end ? double(E::at(E::row(s.x, s.x_stride, m.row[q]), i0 + i)) : 0.0;
          m.x[r - group_size][i] = inside && q < end ? double(R(product(v, m.x_factor[q]))) : 0.0;
        }
      }
      sync_block();
      if (begin + row < end) {
        for (int i = part; i < slice; i += 8) {
          double x[4], y[4];
#pragma unroll
          for (int a = 0; a < 4; ++a) x[a] = m.x[row + a][i];
#pragma unroll
          for (int b = 0; b < 4; ++b) y[b] = m.y[column + 4 * b][i];
#pragma unroll
          for (int a = 0; a < 4; ++a) {
#pragma unroll
            for (int b = 0; b < 4; ++b) {
              if constexpr (l2) {
                const double far = sum(x[a], -y[b]);
                total[a][b] = sum(total[a][b], product(far, far));
              } else {
                total[a][b] = add_product<R>(total[a][b], x[a], y[b]);
              }
            }
          }
        }
      }
    }
    R* scores = static_cast<R*>(s.pair_scores);
#pragma unroll
    for (int a = 0; a < 4; ++a) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const double score = sum_of_eight(total[a][b]);
        const int q = begin + row + a, c = column + 4 * b;
        if (part == 0 && q < end) scores[m.pair[q] * group_size + c] = R(l2 ? -score : score);
      }
    }
  }
};

}  // namespace contrastive_ops::cuda
