// Exponentials of a strip of logits and their partial sums, by rows and, in two directions, by
// columns; and what is kept of them for the gradients.
//
// Where the logits are bounded their exponentials e = 2^t need no maximum and are kept themselves:
// the gradients then cost no second exponential. Elsewhere the logits are kept.
#pragma once

template <class Acc, class Kept>
struct StripResults {
  Acc *row_max, *row_sum;        // of this strip's rows; no maxima where bounded
  Acc *column_max, *column_sum;  // of this tile, running over the strips of a task
  bool first;                    // no strip came before
  Kept* kept;                    // rows x tile_stride, or null
  Kept* column_kept;             // what columns see, where that differs
};

// column_planes: 0 one direction; 1 columns see the same strip as rows; 2 they see `column_s`.
template <int column_planes, class Acc, class Kept, class Columns>
void bounded_statistics(const Acc* s, const Acc* column_s, Acc factor, int64_t rows,
                        Columns columns, const StripResults<Acc, Kept>& out) {
  using V = Vec<Acc>;
  for (int64_t r = 0; r < rows; ++r) {
    V sum = {};
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      const V e = exp2(load(s + r * tile_stride + j) * factor);
      sum += e;
      if (out.kept) store_as(out.kept + r * tile_stride + j, e);
      if constexpr (column_planes > 0) {
        V column_e = e;
        if constexpr (column_planes == 2) {
          column_e = exp2(load(column_s + r * tile_stride + j) * factor);
          if (out.kept) store_as(out.column_kept + r * tile_stride + j, column_e);
        }
        Acc* p = out.column_sum + j;
        store(p, out.first && r == 0 ? column_e : load(p) + column_e);
      }
    }
    out.row_sum[r] = Acc(sum_lanes<Acc>(sum));
  }
}

// Bounded, but the logits are kept; `by_columns` where columns see the same strip.
template <bool by_columns, class Acc, class Columns>
void bounded_logits(const Acc* t, int64_t rows, Columns columns,
                    const StripResults<Acc, Acc>& out) {
  for (int64_t r = 0; r < rows; ++r) {
    Vec<Acc> sum = {};
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      const Vec<Acc> v = load(t + r * tile_stride + j), e = exp2(v);
      sum += e;
      if (out.kept) store(out.kept + r * tile_stride + j, v);
      if constexpr (by_columns) {
        Acc* p = out.column_sum + j;
        store(p, out.first && r == 0 ? e : load(p) + e);
      }
    }
    out.row_sum[r] = Acc(sum_lanes<Acc>(sum));
  }
}

// Columns of a strip into running (max, sum).
template <class Acc, class Kept>
void running_column_statistics(const Acc* t, int64_t rows, int64_t columns,
                               const StripResults<Acc, Kept>& out) {
  using V = Vec<Acc>;
  const V lowest = splat(-infinity<Acc>);
  for (int64_t j = 0; j < columns; j += lanes<Acc>) {
    V most = out.first ? lowest : load(out.column_max + j);
    V sum = {};
    if (!out.first) sum = load(out.column_sum + j);
    const V before = most;
    for (int64_t r = 0; r < rows; ++r) most = vmax(load(t + r * tile_stride + j), most);
    const V base = most == lowest ? V{} : most;
    sum *= exp2(before - base);
    for (int64_t r = 0; r < rows; ++r) sum += exp2(load(t + r * tile_stride + j) - base);
    store(out.column_max + j, most);
    store(out.column_sum + j, sum);
  }
}

template <int column_planes, class Acc, class Kept, class Columns>
void maximum_statistics(Acc* s, Acc* column_s, Acc factor, int64_t rows, Columns columns,
                        const StripResults<Acc, Kept>& out) {
  using V = Vec<Acc>;
  // All maxima before all sums: a sum waits for its row's, and meanwhile there are the others'.
  for (int64_t r = 0; r < rows; ++r) {
    Acc* t = s + r * tile_stride;
    V most = splat(-infinity<Acc>);
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      const V v = load(t + j) * factor;
      store(t + j, v);
      if (out.kept) store_as(out.kept + r * tile_stride + j, v);
      most = vmax(v, most);
    }
    out.row_max[r] = max_lanes<Acc>(most);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const Acc base = out.row_max[r] == -infinity<Acc> ? Acc(0) : out.row_max[r];
    V sum = {};
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      sum += exp2(load(s + r * tile_stride + j) - base);
    }
    out.row_sum[r] = Acc(sum_lanes<Acc>(sum));
  }
  if constexpr (column_planes == 1) running_column_statistics(s, rows, columns, out);
  if constexpr (column_planes == 2) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; j += lanes<Acc>) {
        const V v = load(column_s + r * tile_stride + j) * factor;
        store(column_s + r * tile_stride + j, v);
        if (out.kept) store_as(out.column_kept + r * tile_stride + j, v);
      }
    }
    running_column_statistics(column_s, rows, columns, out);
  }
}

// No softmax: the sums of softplus (in units of log 2) and of sigmoid over each row; the sigmoids,
// which are the gradient already, are kept.
template <class Acc, class Kept, class Columns>
void pairwise_statistics(const Acc* s, Acc factor, Acc offset, int64_t rows, Columns columns,
                         Acc* softplus_sum, Acc* sigmoid_sum, Kept* kept) {
  using V = Vec<Acc>;
  const V one = splat(Acc(1));
  for (int64_t r = 0; r < rows; ++r) {
    V softplus = {}, sigmoid = {};
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      const V t = load(s + r * tile_stride + j) * factor + offset;
      const V e = exp2(t > 0 ? -t : t);
      const V reciprocal = one / ((e + 1) * (e + 2));  // one division for both
      const V share = reciprocal * (e + 2), u = reciprocal * (e + 1) * e;
      const V slope = t > 0 ? share : e * share;
      softplus += log2_of_ratio<Acc>(u) + (t < 0 ? V{} : t);
      sigmoid += slope;
      if (kept) store_as(kept + r * tile_stride + j, slope);
    }
    softplus_sum[r] = Acc(sum_lanes<Acc>(softplus));
    sigmoid_sum[r] = Acc(sum_lanes<Acc>(sigmoid));
  }
}

// For smoothing: the sum of the kept logits and their count, by rows (`row_*`), or running by
// columns (`column_*`); null for what is not wanted.
template <class Acc>
void logit_sums(const Acc* s, Acc factor, int64_t rows, int64_t columns, Acc* row_sum,
                Acc* row_count, Acc* column_sum, Acc* column_count, bool first) {
  using V = Vec<Acc>;
  const V one = splat(Acc(1));
  for (int64_t r = 0; r < rows; ++r) {
    V sum = {}, count = {};
    for (int64_t j = 0; j < columns; j += lanes<Acc>) {
      const V t = load(s + r * tile_stride + j) * factor;
      const auto left_out = t == -infinity<Acc>;
      const V kept = left_out ? V{} : t, counted = left_out ? V{} : one;
      sum += kept;
      count += counted;
      if (!column_sum) continue;
      const bool fresh = first && r == 0;
      store(column_sum + j, fresh ? kept : load(column_sum + j) + kept);
      store(column_count + j, fresh ? counted : load(column_count + j) + counted);
    }
    if (!row_sum) continue;
    row_sum[r] = Acc(sum_lanes<Acc>(sum));
    row_count[r] = Acc(sum_lanes<Acc>(count));
  }
}
