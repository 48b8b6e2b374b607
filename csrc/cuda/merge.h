// Scored candidates into the k best of their rows; ties to the lower index.
#pragma once
#include "fold.h"

namespace contrastive_ops::cuda {

// A warp a row. Candidates lie in order of index, behind those of earlier blocks.
template <class R>
struct Merge {
  static constexpr int threads = 32;
  static constexpr int blocks_per_multiprocessor = 16;
  static constexpr int64_t largest_k = 2048;
  using Key = decltype(bits_of(R()));
  using Params = Selection;

  static CO_BOTH int64_t padded(int64_t k) {
    int64_t n = 32;
    while (n < k) n *= 2;
    return n;
  }
  static int64_t shared_bytes(int64_t k) { return padded(k) * int64_t(sizeof(R) + sizeof(int64_t)); }

  static CO_DEVICE R nothing() { return R(-infinity_float()); }

  static CO_DEVICE void run(const Selection& s, char* shared) {
    const int64_t row = block(), begin = s.row_begin[row], pairs = s.row_begin[row + 1] - begin;
    if (pairs == 0) return;
    R* score = static_cast<R*>(s.pair_scores) + begin * group_size;
    R* best = static_cast<R*>(s.scores) + row * s.k;
    int64_t* best_index = s.indices + row * s.k;
    const int64_t n = pairs * group_size;
    const auto index_of = [&](int64_t i) {
      return s.first + int64_t(s.pair_group[begin + i / group_size]) * group_size + i % group_size;
    };

    uint32_t valid = 0, above = 0;
    for (int64_t i = lane(); i < n; i += 32) {
      const R v = score[i];
      const bool candidate = v == v && allowed(s, row, index_of(i));
      const bool over = candidate && s.limit && v > static_cast<const R*>(s.limit)[row];
      above += over;
      valid += candidate && !over;
      if (!candidate || over) score[i] = R(no_number());
    }
    sync_warp();
    above = warp_sum(above);
    valid = warp_sum(valid);
    if (s.above && lane() == 0) s.above[row] += above;
    if (valid == 0) return;
    uint32_t before = 0;
    for (int64_t i = lane(); i < s.k; i += 32) before += best_index[i] >= 0;
    before = warp_sum(before);

    // The last score that is kept, and how many with that very score.
    const int64_t all = int64_t(before) + valid, kept = all < s.k ? all : s.k;
    const auto key_at = [&](int64_t i) {
      return order_key(i < before ? best[i] : score[i - before]);
    };
    const Key last = kth_largest<Key>(before + n, kept, key_at);
    uint32_t over_last = 0;
    for (int64_t i = lane(); i < before + n; i += 32) over_last += key_at(i) > last;
    int64_t ties = kept - warp_sum(over_last);

    R* top = reinterpret_cast<R*>(shared + padded(s.k) * int64_t(sizeof(int64_t)));
    int64_t* top_index = reinterpret_cast<int64_t*>(shared);
    int64_t found = 0;
    for (int64_t first = 0; first < before + n; first += 32) {
      const int64_t i = first + lane();
      const Key key = i < before + n ? key_at(i) : Key(0);
      const uint32_t equal = ballot(key == last);
      const bool take = key > last || (key == last && place_among(equal) < ties);
      const uint32_t mask = ballot(take);
      if (take) {
        top[found + place_among(mask)] = i < before ? best[i] : score[i - before];
        top_index[found + place_among(mask)] = i < before ? best_index[i] : index_of(i - before);
      }
      found += bits_set(mask);
      ties -= bits_set(equal);
      if (ties < 0) ties = 0;
    }
    sync_warp();
    sort(top, top_index, found);
    for (int64_t i = lane(); i < found; i += 32) {
      best[i] = top[i];
      best_index[i] = top_index[i];
    }
  }

  static CO_DEVICE bool allowed(const Selection& s, int64_t row, int64_t index) {
    if (index - s.first >= s.count) return false;
    if (s.row_label && s.row_label[row] == s.column_label[index - s.first]) return false;
    if (!s.exclude_begin) return true;
    const int64_t last = s.exclude_begin[row + 1];
    int64_t low = s.exclude_begin[row], high = last;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (s.exclude[middle] < index) low = middle + 1;
      else high = middle;
    }
    return low == last || s.exclude[low] != index;
  }

  // Descending by score, ascending by index: a bitonic network.
  static CO_DEVICE void sort(R* score, int64_t* index, int64_t n) {
    const int64_t size = padded(n);
    for (int64_t i = n + lane(); i < size; i += 32) {
      score[i] = nothing();
      index[i] = INT64_MAX;
    }
    sync_warp();
    for (int64_t run = 2; run <= size; run *= 2) {
      for (int64_t step = run / 2; step > 0; step /= 2) {
        for (int64_t pair = lane(); pair < size / 2; pair += 32) {
          const int64_t i = pair / step * 2 * step + pair % step, j = i + step;
          const bool ordered = score[i] > score[j] || (score[i] == score[j] && index[i] < index[j]);
          if (ordered != ((i & run) == 0)) {
            const R v = score[i];
            score[i] = score[j];
            score[j] = v;
            const int64_t place = index[i];
            index[i] = index[j];
            index[j] = place;
          }
        }
        sync_warp();
      }
    }
  }
};

}  // namespace contrastive_ops::cuda
