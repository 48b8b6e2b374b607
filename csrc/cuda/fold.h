// The k-selection over group maxima: a warp a row, whatever k is, in one order.
#pragma once
#include "problem.h"

namespace contrastive_ops::cuda {

// Keys order as their numbers do; 0 is below every number and stands for none, as NaN does.
CO_DEVICE uint32_t order_key(float v) {
  if (v != v) return 0;
  const uint32_t b = bits_of(v == 0 ? 0.0f : v);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}
CO_DEVICE uint64_t order_key(double v) {
  if (v != v) return 0;
  const uint64_t b = bits_of(v == 0 ? 0.0 : v);
  return b >> 63 ? ~b : b | uint64_t(1) << 63;
}

// The k-th largest of n >= k keys, by a warp: from the highest bits on, two at a time, the largest
// key that k of them reach.
template <class Key, class F>
CO_DEVICE Key kth_largest(int64_t n, int64_t k, F&& key_at) {
  Key found = 0;
  for (int shift = int(8 * sizeof(Key)) - 2; shift >= 0; shift -= 2) {
    uint32_t reach[3] = {};
    for (int64_t i = lane(); i < n; i += 32) {
      const Key key = key_at(i);
#pragma unroll
      for (int c = 0; c < 3; ++c) reach[c] += key >= (found | Key(c + 1) << shift);
    }
    Key digit = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      if (warp_sum(reach[c]) >= uint64_t(k)) digit = Key(c + 1);
    }
    found |= digit << shift;
  }
  return found;
}

CO_DEVICE float key_value(uint32_t key) {
  const uint32_t b = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  return float_of(b);
}

// The place of a lane among those that say yes.
CO_DEVICE int place_among(uint32_t mask) { return bits_set(mask & ((1u << lane()) - 1)); }

// The threshold of what the list certainly holds, and the list without what is below it.
CO_DEVICE int shorten(Entry* list, int n, int64_t k, float& threshold) {
  if (n >= k) {
    const uint32_t key =
        kth_largest<uint32_t>(n, k, [&](int64_t i) { return order_key(list[i].low); });
    threshold = larger(threshold, key_value(key));
  }
  int kept = 0;
  for (int begin = 0; begin < n; begin += 32) {
    const int i = begin + lane();
    const Entry e = list[i < n ? i : begin];
    const bool keep = i < n && !(e.high < threshold);
    const uint32_t mask = ballot(keep);
    sync_warp();
    if (keep) list[kept + place_among(mask)] = e;
    kept += bits_set(mask);
  }
  sync_warp();
  return kept;
}

// Lists the groups of a chunk that reach their rows' thresholds; 32 rows a block.
struct Fold {
  static constexpr int threads = 1024;
  static constexpr int blocks_per_multiprocessor = 1;
  static constexpr int pitch = 33;
  static constexpr int shared_bytes = 32 * pitch * int(sizeof(float) + sizeof(int32_t));
  using Params = Selection;

  static CO_DEVICE void run(const Selection& s, char* shared) {
    float* tile = reinterpret_cast<float*>(shared);
    int32_t* lost_tile = reinterpret_cast<int32_t*>(tile + 32 * pitch);
    const int warp = thread() / 32, me = lane();
    const int64_t row0 = block() * 32, row = row0 + warp, groups = s.chunk / group_size;
    const bool real = row < s.rows;
    const double norm = s.x_norm[row];  // rows are padded
    bool live = real && norm == norm && !s.dense[row];
    Entry* list = s.list + (real ? row : 0) * s.capacity;
    float threshold = real ? s.threshold[row] : 0;
    int n = real ? s.list_size[row] : 0;
    int64_t lost_total = 0;
    const float x = float_up(norm), x_residual = s.x_residual[row], x_scale = s.x_scale[row];
    const float limit = real && s.cap ? s.cap[row] : infinity_float();
    for (int64_t first = 0; first < groups; first += 32) {
      sync_block();
      if (first + warp < groups) {
        const int64_t from = (first + warp) * s.padded_rows + row0 + me;
        tile[warp * pitch + me] = s.maxima[from];
        if (s.cap) lost_tile[warp * pitch + me] = s.lost[from];
      }
      sync_block();
      if (!live) continue;
      const int64_t group = first + me;
      const float y = group < groups ? s.y_norm[group] : -1;
      Entry e{-infinity_float(), 0, int32_t(s.chunk_begin / group_size + group), 0};
      bool open = false;
      if (y >= 0) {
        const float bound = error_bound(x, x_residual, x_scale, y, s.y_residual[group],
                                        float(s.dim), s.l2);
        const float most = tile[me * pitch + warp];
        const bool known = bound < infinity_float();
        if (s.cap) e.lost = lost_tile[me * pitch + warp];
        e.high = known ? most + bound : infinity_float();
        open = known ? most > -infinity_float() && !(e.high < threshold) : true;
        // A maximum that may itself be above the limit says nothing of what is below.
        const float size = limit < 0 ? -limit : limit;
        const bool below = !s.cap || most + bound <= limit - size * 0x1p-22f;
        if (known && below) e.low = most - bound;
      }
      lost_total += e.lost;
      const uint32_t mask = ballot(open);
      if (n + bits_set(mask) > s.capacity) {
        n = shorten(list, n, s.k, threshold);
        if (n + bits_set(mask) > s.capacity) {
          live = false;
          if (me == 0) s.dense[row] = 1;
          n = 0;
          continue;
        }
      }
      if (open) list[n + place_among(mask)] = e;
      n += bits_set(mask);
      sync_warp();
    }
    if (!real) return;
    const uint32_t lost = warp_sum(uint32_t(lost_total));
    if (me == 0) {
      s.threshold[row] = threshold;
      s.list_size[row] = n;
      if (s.cap) s.lost_total[row] += lost;
    }
  }
};

// After the last chunk: the lists by their final thresholds; what the limit left out elsewhere.
struct Finish {
  static constexpr int threads = 256;
  static constexpr int blocks_per_multiprocessor = 4;
  static constexpr int shared_bytes = 0;
  using Params = Selection;

  static CO_DEVICE void run(const Selection& s, char*) {
    const int64_t row = block() * (threads / 32) + thread() / 32;
    if (row >= s.rows || s.dense[row]) return;
    Entry* list = s.list + row * s.capacity;
    float threshold = s.threshold[row];
    const int n = shorten(list, s.list_size[row], s.k, threshold);
    uint32_t listed = 0;  // these are counted again, exactly, when they are scored
    for (int i = lane(); i < n; i += 32) listed += uint32_t(list[i].lost);
    listed = warp_sum(listed);
    if (lane() != 0) return;
    s.list_size[row] = n;
    if (s.above) s.above[row] += s.lost_total[row] - listed;
  }
};

}  // namespace contrastive_ops::cuda
