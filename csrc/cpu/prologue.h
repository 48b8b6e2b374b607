// Before the first product: scales of rows, logits of the candidates that are looked up one by one,
// packed operands.
#pragma once

template <class S>
double similarity(const S& st, int64_t i, const typename S::Elem* y,
                  const RowScale<typename S::Acc>& scale) {
  const auto& x = st.x_scale[i];
  return scaled_dot(st.x_row(i), x.element, y, scale.element, st.p.dim) * double(x.post) *
         double(scale.post);
}

// The logit of a row's own negative, whose scales are there.
template <class S>
void measure_own(const S& st, int64_t i, int64_t h) {
  const auto& own = st.p.own;
  const int64_t at = i * own.count + h;
  double t = double(st.c) * similarity(st, i, st.own_row(i, h), st.own_scale[at]);
  if (own.bias) t += double(own.bias[at]) * log2e;
  st.own_logit[at] = typename S::Acc(t);
}

// Row i and its own negatives; their logits only where there are no prefixes, which have theirs.
template <class S>
void measure_query(const S& st, int64_t i) {
  st.x_scale[i] = row_scale(st, st.x_row(i));
  for (int64_t h = 0; h < st.p.own.count; ++h) {
    st.own_scale[i * st.p.own.count + h] = row_scale(st, st.own_row(i, h));
    if (st.p.prefix_count == 0) measure_own(st, i, h);
  }
}

// Logits of the positives of row i, and the similarity above which candidates are left out.
template <class S>
void measure_positives(const S& st, int64_t i) {
  using Acc = typename S::Acc;
  const auto& p = st.p;
  double weakest = infinity<double>, norm = 0, best = -infinity<double>, best_norm = 0;
  for (int64_t k = 0; k < p.positives; ++k) {
    const int64_t at = i * p.positives + k, j = st.positive_index(i, k);
    st.positive_logit[at] = 0;
    if (j < 0) continue;
    const double s = similarity(st, i, st.candidate_row(st.keys, j), st.keys.scale[j]);
    st.positive_logit[at] = Acc(double(st.c) * (s - double(p.margin)));
    if (!(s >= weakest)) {
      weakest = s;
      norm = double(st.keys.scale[j].norm);
    }
    if (!(s <= best)) {
      best = s;
      best_norm = double(st.keys.scale[j].norm);
    }
  }
  const double epsilon = sizeof(Acc) == 4 ? __FLT_EPSILON__ : __DBL_EPSILON__;
  const auto slack = [&](double y_norm) {
    return 16 * epsilon * (p.normalize ? 1 : double(st.x_scale[i].norm) * y_norm);
  };
  st.threshold[i] = Acc(double(st.c) * (weakest + double(p.false_negative_margin) + slack(norm)));
  if (p.summary) st.rank_limit[i] = Acc(double(st.c) * (best - double(p.margin) + slack(best_norm)));
}

// The norms decide whether logits are bounded; NaN rows are NaN either way.
template <class S>
double longest(const RowScale<typename S::Acc>* scale, int64_t count) {
  typename S::Acc most = 0;
  for (int64_t i = 0; i < count; ++i) most = maximum(most, scale[i].norm);
  return double(most);
}

template <class S>
void measure(S& st) {
  constexpr int64_t batch = 64;
  const auto& p = st.p;
  const int64_t key_count = st.keys.block ? p.keys.count : 0;
  const int64_t negative_count = st.negatives.block ? p.negatives.count : 0;
  const int64_t x_tasks = divide_up(p.rows, batch), key_tasks = divide_up(key_count, batch);
  const int64_t all = x_tasks + key_tasks + divide_up(negative_count, batch);
  const double elements =
      double(p.rows * (1 + 2 * p.own.count) + key_count + negative_count) * double(p.dim);
  st.tasks(all, 0.05 * elements, [&](int64_t task, int) {
    if (task < x_tasks) {
      const int64_t end = minimum(p.rows, (task + 1) * batch);
      for (int64_t i = task * batch; i < end; ++i) measure_query(st, i);
      return;
    }
    task -= x_tasks;
    const auto& side = task < key_tasks ? st.keys : st.negatives;
    if (task >= key_tasks) task -= key_tasks;
    const int64_t end = minimum(side.block->count, (task + 1) * batch);
    for (int64_t j = task * batch; j < end; ++j) {
      side.scale[j] = row_scale(st, st.candidate_row(side, j));
    }
  });
  if (!p.normalize) {
    const double y = maximum(st.keys.tiles ? longest<S>(st.keys.scale, key_count) : 0,
                             st.negatives.tiles ? longest<S>(st.negatives.scale, negative_count)
                                                : 0);
    st.bounded = p.pairwise || st.is_bounded(longest<S>(st.x_scale, p.rows), y);
  }
}

// ---- packing, as lists of tasks that may be run together

constexpr int64_t panel_task_pieces = 4;

// Strips of a stripe's rows for the scan, and panels of them for dY.
template <class S>
struct PackQueries {
  using P = typename S::Policy;
  const S& st;
  Stripe s;
  bool panels;
  typename S::Unit* out = st.x_strips;

  int64_t strips() const { return st.direct ? 0 : divide_up(s.rows, micro_rows); }
  int64_t count() const {
    return strips() + (panels ? divide_up(st.piece_count, panel_task_pieces) : 0);
  }
  double nanoseconds() const { return 0.2 * double(s.rows * st.p.dim); }

  void operator()(int64_t task) const {
    if (task >= strips()) {
      const int64_t begin = (task - strips()) * panel_task_pieces;
      for (int64_t i = begin; i < minimum(begin + panel_task_pieces, st.piece_count); ++i) {
        pack_piece<P>(rows_from(s.begin), s.rows, st.p.dim, st.pieces[i], st.x_panels);
      }
      return;
    }
    const int64_t row = task * micro_rows, count = minimum<int64_t>(micro_rows, s.rows - row);
    pack_strip<P>(rows_from(s.begin + row), count, st.p.dim, out + task * st.strip_size());
    if (st.p.guide_dim > 0) pack_guide(row, count);
  }

 private:
  auto rows_from(int64_t begin) const {
    return [x = st.x_row(begin), stride = st.p.x_stride, scale = st.x_scale + begin](int64_t r) {
      return packed_row(x + r * stride, scale[r].element);
    };
  }
  void pack_guide(int64_t row, int64_t count) const {
    using Acc = typename S::Acc;
    const int64_t dim = st.p.guide_dim;
    Acc* out = st.guide_rows + row * dim;
    const float* guide = st.p.row_guide + (s.begin + row) * dim;
    for (int64_t k = 0; k < dim; ++k) {
      for (int64_t r = 0; r < micro_rows; ++r) {
        out[k * micro_rows + r] = r < count ? Acc(guide[r * dim + k]) : Acc(0);
      }
    }
  }
};

// Panels of the tiles [begin, end), to the front of the buffers: transposed ones for the scan (yt),
// and as they lie for dX (y).
template <class S>
struct PackCandidates {
  using P = typename S::Policy;
  const S& st;
  int64_t begin, end;
  bool yt, y;
  typename S::Unit* out = st.yt_panels;

  int64_t kinds() const { return int64_t(yt) + int64_t(y); }
  int64_t count() const { return (end - begin) * kinds(); }
  double nanoseconds() const {
    return 0.2 * double((end - begin) * kinds() * st.tile_columns * st.p.dim);
  }

  void operator()(int64_t task) const {
    using Acc = typename S::Acc;
    const int64_t local = task / kinds(), dim = st.p.dim;
    const auto tile = st.tile(begin + local);
    if (!yt || task % kinds() > 0) {
      for (int64_t i = 0; i < st.piece_count; ++i) {
        pack_piece<P>(rows_from(tile, 0), tile.count, dim, st.pieces[i], st.y_tile(local));
      }
      return;
    }
    for (int64_t j = 0; j < tile.count; j += micro_columns<Acc>) {
      const int64_t count = minimum<int64_t>(micro_columns<Acc>, tile.count - j);
      pack_transposed<P>(rows_from(tile, j), count, dim,
                         out + local * st.yt_size() + j * st.depth, panel_width<Acc>(count));
    }
  }

 private:
  auto rows_from(const Tile<typename S::Acc>& tile, int64_t j) const {
    const auto& side = *tile.side;
    return [y = st.candidate_row(side, tile.begin + j), stride = side.block->stride,
            scale = side.scale + tile.begin + j](int64_t r) {
      return packed_row(y + r * stride, scale[r].element);
    };
  }
};
