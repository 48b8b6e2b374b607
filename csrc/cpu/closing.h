// Closing rows and columns: partial sums to log-sum-exps, losses, and what the coefficients need.
#pragma once

// Partial sums of columns over the chunks of a stripe, added in order to those of earlier stripes.
template <class S>
void fold_column(const S& st, const Stripe& s, int64_t j) {
  int64_t chunks = divide_up(s.rows, st.chunk_rows);
  if (st.p.one_set) {  // those above the diagonal
    chunks = minimum(chunks, j / st.tile_columns - st.first_tile(s));
    if (chunks < 0) return;
    if (st.p.summary) fold_column_summary(st, s, j, chunks);
  }
  const int64_t stride = st.keys.tiles * st.tile_columns;
  LogSum sum;
  double logits = 0, count = 0;
  if (s.index > 0) sum = st.column_sum[j];
  for (int64_t at = j; at < chunks * stride; at += stride) {
    sum.add(st.bounded ? 0 : double(st.column_part_max[at]), double(st.column_part_sum[at]));
    if (st.p.smoothing == 0) continue;
    logits += double(st.column_part_logits[at]);
    count += double(st.column_part_count[at]);
  }
  st.column_sum[j] = sum;
  if (st.p.smoothing == 0) return;
  st.column_logits[j] = (s.index > 0 ? st.column_logits[j] : 0) + logits * ln2;
  st.column_count[j] = (s.index > 0 ? st.column_count[j] : 0) + count;
}

template <class S>
Negatives negatives_of_row(const S& st, const Stripe& s, int64_t local) {
  const int64_t own_count = st.p.own.count;
  LogSum sum;
  Negatives out{0, 0, 0};
  int64_t first = 0;
  if (st.p.one_set) {  // left of the diagonal, the row was a column
    first = st.first_tile(s) + local / st.tile_columns;
    sum = st.column_sum[s.begin + local];
    if (st.p.smoothing > 0) {
      out.logit_sum = st.column_logits[s.begin + local];
      out.count = st.column_count[s.begin + local];
    }
  }
  for (int64_t t = first; t < st.tiles; ++t) {
    const int64_t at = t * st.rows + local;
    if (st.p.pairwise) {
      out.lse += double(st.part_sum[at]);
      out.logit_sum += double(st.part_max[at]);
      continue;
    }
    sum.add(st.bounded ? 0 : double(st.part_max[at]), double(st.part_sum[at]));
    if (st.p.smoothing == 0) continue;
    out.logit_sum += double(st.part_logits[at]) * ln2;
    out.count += double(st.part_count[at]);
  }
  if (st.p.pairwise) return out;
  for (int64_t h = 0; h < own_count; ++h) {
    const double t = double(st.own_logit[(s.begin + local) * own_count + h]);
    if (t == -infinity<double>) continue;
    sum.add(t, 1);
    out.logit_sum += t * ln2;
    out.count += 1;
  }
  out.lse = sum.log2();
  return out;
}

template <class S>
Negatives negatives_of_column(const S& st, int64_t j) {
  Negatives out{st.column_sum[j].log2(), 0, 0};
  if (st.p.smoothing > 0) {
    out.logit_sum = st.column_logits[j];
    out.count = st.column_count[j];
  }
  return out;
}

inline Negatives given_negatives(const Stats& stats, int64_t i) {
  return {stats.lse[i] * log2e, stats.sum ? stats.sum[i] : 0, stats.count ? stats.count[i] : 0};
}

inline void report(const Stats& stats, int64_t i, const Negatives& negatives) {
  if (stats.lse) stats.lse[i] = negatives.lse * ln2;
  if (stats.sum) stats.sum[i] = negatives.logit_sum;
  if (stats.count) stats.count[i] = negatives.count;
}

// Where nothing is kept there is nothing to multiply: any finite factor and lse = inf will do.
template <class S>
RowSoftmax<typename S::Acc> softmax_of(const S& st, const Closed& closed, double weight) {
  using Acc = typename S::Acc;
  if (st.bounded) {
    const double least = sizeof(Acc) == 4 ? -120 : -1000;
    const double factor = closed.lse < least ? 0 : weight * __builtin_exp2(-closed.lse);
    return {Acc(factor), 0, Acc(closed.smooth)};
  }
  if (closed.lse == -infinity<double>) return {0, infinity<Acc>, Acc(closed.smooth)};
  // What rounding the log-sum-exp takes from it goes into the factor.
  const Acc lse = Acc(closed.lse);
  const double rest = double(lse) - closed.lse;
  return {Acc(weight * __builtin_exp2(rest)), lse, Acc(closed.smooth)};
}

template <class S>
Closed close(const S& st, int64_t i, const Negatives& negatives, double* coefficient) {
  const auto& p = st.p;
  return close_row(negatives, st.positive_logit + i * p.positives,
                   p.positive ? p.positive + i * p.positives : nullptr, p.positives,
                   double(p.smoothing), double(st.weight(i)), coefficient);
}

// Without a softmax a row needs its weight only; `row_lse` holds the row's part of the bias's
// gradient, without its positives.
template <class S>
void close_pairs(const S& st, int64_t i, const Negatives& negatives, bool first_time) {
  using Acc = typename S::Acc;
  const auto& p = st.p;
  const double weight = double(st.weight(i)), offset = double(p.bias) * log2e;
  double loss = negatives.lse * ln2;
  for (int64_t k = 0; k < p.positives; ++k) {
    const int64_t at = i * p.positives + k;
    double* coefficient = st.positive_coefficient + at;
    *coefficient = 0;
    if (st.positive_index(i, k) < 0) continue;
    loss += close_pair(double(st.positive_logit[at]) + offset, weight, coefficient);
  }
  st.softmax[i] = {Acc(weight), 0, 0};
  st.row_lse[i] = weight * negatives.logit_sum;
  if (!first_time) return;
  if (p.loss) p.loss[i] = Acc(loss);
  report(p.row, i, negatives);
}

template <class S>
void close_query(const S& st, int64_t i, const Negatives& negatives, bool first_time) {
  if (st.p.pairwise) return close_pairs(st, i, negatives, first_time);
  const Closed closed = close(st, i, negatives, st.positive_coefficient + i * st.p.positives);
  st.row_lse[i] = closed.lse;
  st.softmax[i] = softmax_of(st, closed, double(st.weight(i)));
  if (!first_time) return;
  if (st.p.loss) st.p.loss[i] = typename S::Acc(closed.loss);
  report(st.p.row, i, negatives);
}

// Column j < rows asks for its row; the others only pass their statistics on. Columns beyond the
// count are the padding of the last tile.
template <class S>
void close_column(const S& st, int64_t j, const Negatives& negatives, bool first_time) {
  using Acc = typename S::Acc;
  RowSoftmax<Acc> softmax{0, infinity<Acc>, 0};
  if (j < st.p.rows) {
    double coefficient = 0;
    const Closed closed = close(st, j, negatives, &coefficient);
    st.positive_coefficient[j] += coefficient;
    softmax = softmax_of(st, closed, double(st.weight(j)));
    if (first_time && st.p.column_loss) st.p.column_loss[j] = Acc(closed.loss);
  }
  st.column_factor[j] = softmax.factor;
  st.column_lse[j] = softmax.lse;
  st.column_smooth[j] = softmax.smooth;
  if (first_time && j < st.p.keys.count) report(st.p.column, j, negatives);
}

// Calls f(i) for i < count in parallel, each about as much work as a few logarithms.
template <class S, class F>
void for_each_closing(const S& st, int64_t count, F&& f) {
  constexpr int64_t batch = 64;
  st.tasks(divide_up(count, batch), 80.0 * double(count), [&](int64_t task, int) {
    const int64_t end = minimum(count, (task + 1) * batch);
    for (int64_t i = task * batch; i < end; ++i) f(i);
  });
}

template <class S>
void close_rows(const S& st, const Stripe& s) {
  for_each_closing(st, s.rows, [&](int64_t r) {
    close_query(st, s.begin + r, negatives_of_row(st, s, r), true);
    if (st.p.summary) summarise_row(st, s, r);
  });
}

template <class S, class F>
void close_columns(const S& st, bool first_time, F&& negatives) {
  for_each_closing(st, st.keys.tiles * st.tile_columns, [&](int64_t j) {
    close_column(st, j, j < st.p.keys.count ? negatives(j) : Negatives{}, first_time);
  });
}

// One set: what a row is to the columns above the diagonal, it is as a column to the rows.
template <class S>
void close_as_columns(const S& st) {
  using Acc = typename S::Acc;
  for (int64_t j = 0; j < st.keys.tiles * st.tile_columns; ++j) {
    const RowSoftmax<Acc> none{0, infinity<Acc>, 0};
    const RowSoftmax<Acc>& softmax = j < st.p.rows ? st.softmax[j] : none;
    st.column_factor[j] = softmax.factor;
    st.column_lse[j] = softmax.lse;
    st.column_smooth[j] = softmax.smooth;
  }
}

// The start of a backward: from the statistics that a forward left.
template <class S>
void close_given(const S& st) {
  for_each_closing(st, st.p.rows, [&](int64_t i) {
    close_query(st, i, given_negatives(st.p.row, i), false);
  });
  if (st.p.one_set) return close_as_columns(st);
  if (!st.two) return;
  close_columns(st, false, [&](int64_t j) { return given_negatives(st.p.column, j); });
}
