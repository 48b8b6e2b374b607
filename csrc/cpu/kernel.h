// The algorithm: which stripe, which phase, which tasks.
//
//   scan        similarities, exclusions, statistics; their exponentials (or logits) kept
//   close       a row's loss and its softmax; in two directions a column's, after the last stripe
//   candidates  coefficients in place, dY += P^T X by the one task that owns these columns
//   queries     dX = P Y
//
// One direction runs the four stripe by stripe while the stripe is in cache. Two directions, and
// stripes too wide for the workspace, need a sweep of scans before a sweep of gradients, which
// scans again what was not kept.
#pragma once

template <class E, class P>
class Kernel {
  using S = State<E, P>;
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;

 public:
  explicit Kernel(S& state) : st(state), p(state.p) {}

  void run() {
    measure_rows();
    measure_positives();
    if (st.panel_tiles >= st.tiles) pack_candidates(0, st.tiles, true, st.need_x);
    if (st.mode == Mode::backward) {
      close_from_statistics();
    } else {
      scan_sweep();
    }
    if (st.gradients) {
      if (!st.fused) gradient_sweep();
      finish_lookups();
      if (p.temperature_grad) *p.temperature_grad = temperature_gradient();
    }
  }

 private:
  S& st;
  const Problem<Acc>& p;

  template <class F>
  void tasks(int64_t count, F&& f) const {
    parallel_for(count, st.workers, f);
  }

  // ---- prologue

  void measure_rows() {
    constexpr int64_t batch = 64;
    const int64_t x_tasks = divide_up(p.rows, batch);
    int64_t total = x_tasks;
    for (const Side<Acc>* side : {&st.keys, &st.negatives}) {
      if (side->block) total += divide_up(side->block->count, batch);
    }
    tasks(total, [&](int64_t task, int) {
      if (task < x_tasks) {
        const int64_t end = minimum(p.rows, (task + 1) * batch);
        for (int64_t i = task * batch; i < end; ++i) {
          st.x_scale[i] = row_scale(st, st.x_row(i));
          measure_own(i);
        }
        return;
      }
      task -= x_tasks;
      const int64_t key_tasks = st.keys.block ? divide_up(st.keys.block->count, batch) : 0;
      const Side<Acc>& side = task < key_tasks ? st.keys : st.negatives;
      if (task >= key_tasks) task -= key_tasks;
      const int64_t end = minimum(side.block->count, (task + 1) * batch);
      for (int64_t j = task * batch; j < end; ++j) {
        side.scale[j] = row_scale(st, static_cast<const E*>(side.block->y) + j * side.block->stride);
      }
    });
    if (!p.normalize) st.bounded = st.is_bounded(longest_x(), longest_candidate());
  }

  double longest_x() const {
    Acc most = 0;  // NaN rows make their own row NaN with or without a maximum
    for (int64_t i = 0; i < p.rows; ++i) most = maximum(most, st.x_scale[i].norm);
    return double(most);
  }
  double longest_candidate() const {
    Acc most = 0;
    for (const Side<Acc>* side : {&st.keys, &st.negatives}) {
      if (side->tiles == 0) continue;
      for (int64_t j = 0; j < side->block->count; ++j) most = maximum(most, side->scale[j].norm);
    }
    return double(most);
  }

  void measure_own(int64_t i) {
    for (int64_t h = 0; h < p.own.count; ++h) {
      const int64_t at = i * p.own.count + h;
      const E* row = st.own_row(i, h);
      st.own_scale[at] = row_scale(st, row);
      double t = double(st.c) * similarity(i, row, st.own_scale[at]);
      if (p.own.bias) t += double(p.own.bias[at]) * log2e;
      st.own_logit[at] = Acc(t);
    }
  }

  double similarity(int64_t i, const E* y, const RowScale<Acc>& scale) const {
    const RowScale<Acc>& x = st.x_scale[i];
    return scaled_dot(st.x_row(i), x.element, y, scale.element, p.dim) * double(x.post) *
           double(scale.post);
  }

  void measure_positives() {
    if (p.positives == 0) {
      for (int64_t i = 0; i < p.rows; ++i) st.threshold[i] = infinity<Acc>;
      return;
    }
    constexpr int64_t batch = 64;
    tasks(divide_up(p.rows, batch), [&](int64_t task, int) {
      const int64_t end = minimum(p.rows, (task + 1) * batch);
      for (int64_t i = task * batch; i < end; ++i) {
        double weakest = infinity<double>, norm = 0;
        for (int64_t k = 0; k < p.positives; ++k) {
          const int64_t at = i * p.positives + k, j = st.positive_index(i, k);
          st.positive_logit[at] = 0;
          if (j < 0) continue;
          const E* row = static_cast<const E*>(p.keys.y) + j * p.keys.stride;
          const double s = similarity(i, row, st.keys.scale[j]);
          st.positive_logit[at] = Acc(double(st.c) * (s - double(p.margin)));
          if (!(s >= weakest)) {
            weakest = s;
            norm = double(st.keys.scale[j].norm);
          }
        }
        const double epsilon = sizeof(Acc) == 4 ? __FLT_EPSILON__ : __DBL_EPSILON__;
        const double slack =
            16 * epsilon * (p.normalize ? 1 : double(st.x_scale[i].norm) * norm);
        st.threshold[i] =
            Acc(double(st.c) * (weakest + double(p.false_negative_margin) + slack));
      }
    });
  }

  // Packed panels of tiles [begin, end), to the front of the buffers.
  void pack_candidates(int64_t begin, int64_t end, bool yt, bool y) {
    const int64_t kinds = int64_t(yt) + int64_t(y);
    tasks((end - begin) * kinds, [&](int64_t task, int) {
      const int64_t local = task / kinds;
      const Tile<Acc> tile = st.tile(begin + local);
      if (yt && task % kinds == 0) {
        pack_yt_tile(st, tile, st.yt_tile(local));
      } else {
        pack_y_tile(st, tile, st.y_tile(local));
      }
    });
  }

  // Calls f(first tile, tiles) for runs of tiles whose packed panels are at hand.
  template <class F>
  void panel_runs(int64_t begin, int64_t end, bool yt, F&& f) {
    if (st.panel_tiles >= st.tiles) return f(begin, end - begin, begin);
    for (int64_t t = begin; t < end; t += st.panel_tiles) {
      const int64_t count = minimum(st.panel_tiles, end - t);
      pack_candidates(t, t + count, yt, !yt);
      f(t, count, int64_t(0));
    }
  }

  // ---- scan

  void pack_queries(const Stripe& s, bool panels) {
    const int64_t strips = divide_up(s.rows, micro_rows);
    tasks(strips + int64_t(panels), [&](int64_t task, int) {
      if (task == strips) {
        pack_panels<P>(query_rows(st, s.begin), s.rows, p.dim, st.x_panels);
        return;
      }
      const int64_t row = task * micro_rows, count = minimum<int64_t>(micro_rows, s.rows - row);
      pack_strip<P>(query_rows(st, s.begin + row), count, p.dim,
                    st.x_strips + task * st.strip_units());
      if (p.guide_dim == 0) return;
      Acc* out = st.guide_rows + row * p.guide_dim;
      const float* guide = p.row_guide + (s.begin + row) * p.guide_dim;
      for (int64_t k = 0; k < p.guide_dim; ++k) {
        for (int64_t r = 0; r < micro_rows; ++r) {
          out[k * micro_rows + r] = r < count ? Acc(guide[r * p.guide_dim + k]) : Acc(0);
        }
      }
    });
  }

  // Tiles [begin, end) of the stripe; kept at the front of its slot where `keep`.
  template <class Kept>
  void scan(const Stripe& s, int64_t begin, int64_t end, bool keep) {
    const int64_t chunks = divide_up(s.rows, st.chunk_rows);
    panel_runs(begin, end, true, [&](int64_t first, int64_t count, int64_t panel) {
      tasks(count * chunks, [&](int64_t task, int worker) {
        const int64_t local = task / chunks, chunk = task % chunks, t = first + local;
        Kept* kept = keep ? st.template kept_tile<Kept>(s, t - begin, 0) : nullptr;
        Kept* column_kept = keep ? st.template kept_tile<Kept>(s, t - begin, 1) : nullptr;
        scan_chunk<S, Kept>(st, s, t, chunk, st.yt_tile(panel + local), kept,
                            st.column_plane && st.tile(t).side == &st.keys ? column_kept : kept,
                            worker);
      });
    });
  }
  void scan_any(const Stripe& s, int64_t begin, int64_t end, bool keep) {
    if constexpr (S::pairs) {
      if (st.kept16) return scan<Bf16>(s, begin, end, keep);
    }
    scan<Acc>(s, begin, end, keep);
  }

  void scan_sweep() {
    for (int64_t index = 0; index < st.stripes; ++index) {
      const Stripe s = st.stripe(index);
      pack_queries(s, st.fused && st.any_candidate_gradient());
      const bool keep = st.gradients && st.is_kept(s);
      scan_any(s, 0, st.tiles, keep);
      if (st.two) fold_columns(s);
      close_rows(s);
      if (st.fused) {
        candidates_any(s, 0, st.tiles);
        queries(s, 0, st.tiles);
        finish_queries(s);
      }
    }
    if (st.two) close_columns();
  }

  void gradient_sweep() {
    for (int64_t index = 0; index < st.stripes; ++index) {
      const Stripe s = st.stripe(index);
      pack_queries(s, st.any_candidate_gradient());
      const bool kept = st.mode == Mode::both && st.is_kept(s);
      for (int64_t t = 0; t < st.tiles; t += st.step_tiles) {
        const int64_t end = minimum(st.tiles, t + st.step_tiles);
        if (!kept) scan_any(s, t, end, true);
        candidates_any(s, t, end);
        queries(s, t, end);
      }
      finish_queries(s);
    }
  }

  // ---- close

  void fold_columns(const Stripe& s) {
    const int64_t chunks = divide_up(s.rows, st.chunk_rows);
    const int64_t stride = st.keys.tiles * st.tile_columns;
    const bool first = s.index == 0;
    tasks(st.keys.tiles, [&](int64_t t, int) {
      const int64_t end = minimum(p.keys.count, (t + 1) * st.tile_columns);
      for (int64_t j = t * st.tile_columns; j < end; ++j) {
        LogSum sum;
        if (!first) sum = st.column_sum[j];
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t at = chunk * stride + j;
          sum.add(st.bounded ? 0 : double(st.column_part_max[at]),
                  double(st.column_part_sum[at]));
        }
        st.column_sum[j] = sum;
        if (p.smoothing > 0) {
          double logits = 0, count = 0;
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            logits += double(st.column_part_logits[chunk * stride + j]);
            count += double(st.column_part_count[chunk * stride + j]);
          }
          st.column_logits[j] = (first ? 0 : st.column_logits[j]) + logits * ln2;
          st.column_count[j] = (first ? 0 : st.column_count[j]) + count;
        }
      }
    });
  }

  Negatives negatives_of(const Stripe& s, int64_t local) const {
    LogSum sum;
    Negatives out{0, 0, 0};
    for (int64_t t = 0; t < st.tiles; ++t) {
      const int64_t at = t * st.rows + local;
      sum.add(st.bounded ? 0 : double(st.part_max[at]), double(st.part_sum[at]));
      if (p.smoothing > 0) {
        out.logit_sum += double(st.part_logits[at]) * ln2;
        out.count += double(st.part_count[at]);
      }
    }
    for (int64_t h = 0; h < p.own.count; ++h) {
      const double t = double(st.own_logit[(s.begin + local) * p.own.count + h]);
      if (t == -infinity<double>) continue;
      sum.add(t, 1);
      out.logit_sum += t * ln2;
      out.count += 1;
    }
    out.lse = sum.log2();
    return out;
  }

  // Where nothing is kept there is nothing to multiply: any finite factor and lse = inf will do.
  RowSoftmax<Acc> softmax_of(const Closed& closed, double weight) const {
    const double limit = sizeof(Acc) == 4 ? -120 : -1000;
    if (!st.bounded) {
      if (closed.lse == -infinity<double>) return {0, infinity<Acc>, Acc(closed.smooth)};
      // What rounding the log-sum-exp takes from it goes into the factor.
      const Acc lse = Acc(closed.lse);
      const double rest = double(lse) - closed.lse;
      return {Acc(weight * __builtin_exp2(rest)), lse, Acc(closed.smooth)};
    }
    const double factor = closed.lse < limit ? 0 : weight * __builtin_exp2(-closed.lse);
    return {Acc(factor), 0, Acc(closed.smooth)};
  }

  Closed close(int64_t i, const Negatives& negatives, double* coefficient) const {
    return close_row(negatives, st.positive_logit + i * p.positives,
                     p.positive ? p.positive + i * p.positives : nullptr, p.positives,
                     double(p.smoothing), double(st.weight(i)), coefficient);
  }
  void close_query(int64_t i, const Negatives& negatives, bool report) {
    const Closed closed = close(i, negatives, st.positive_coefficient + i * p.positives);
    st.row_lse[i] = closed.lse;
    st.softmax[i] = softmax_of(closed, double(st.weight(i)));
    if (!report) return;
    report_loss(p.loss, p.row, i, closed, negatives);
  }
  void report_loss(Acc* loss, const Stats& stats, int64_t i, const Closed& closed,
                   const Negatives& negatives) const {
    if (loss) loss[i] = Acc(closed.loss);
    report_statistics(stats, i, negatives);
  }
  void report_statistics(const Stats& stats, int64_t i, const Negatives& negatives) const {
    if (stats.lse) stats.lse[i] = negatives.lse * ln2;
    if (stats.sum) stats.sum[i] = negatives.logit_sum;
    if (stats.count) stats.count[i] = negatives.count;
  }

  void close_rows(const Stripe& s) {
    constexpr int64_t batch = 32;
    tasks(divide_up(s.rows, batch), [&](int64_t task, int) {
      const int64_t end = minimum(s.rows, (task + 1) * batch);
      for (int64_t r = task * batch; r < end; ++r) {
        close_query(s.begin + r, negatives_of(s, r), true);
      }
    });
  }

  // Column j < rows asks for its row; the others only pass their statistics on.
  void close_column(int64_t j, const Negatives& negatives, bool report) {
    RowSoftmax<Acc> softmax{0, infinity<Acc>, 0};
    if (j < p.rows) {
      double coefficient = 0;
      const Closed closed = close(j, negatives, &coefficient);
      st.positive_coefficient[j] += coefficient;
      softmax = softmax_of(closed, double(st.weight(j)));
      if (report && p.column_loss) p.column_loss[j] = Acc(closed.loss);
    }
    st.column_factor[j] = softmax.factor;
    st.column_lse[j] = softmax.lse;
    st.column_smooth[j] = softmax.smooth;
    if (report) report_statistics(p.column, j, negatives);
  }
  void clear_column_padding() {
    for (int64_t j = p.keys.count; j < st.keys.tiles * st.tile_columns; ++j) {
      st.column_factor[j] = 0;
      st.column_lse[j] = infinity<Acc>;
      st.column_smooth[j] = 0;
    }
  }
  void close_columns() {
    constexpr int64_t batch = 64;
    tasks(divide_up(p.keys.count, batch), [&](int64_t task, int) {
      const int64_t end = minimum(p.keys.count, (task + 1) * batch);
      for (int64_t j = task * batch; j < end; ++j) {
        Negatives negatives{st.column_sum[j].log2(), 0, 0};
        if (p.smoothing > 0) {
          negatives.logit_sum = st.column_logits[j];
          negatives.count = st.column_count[j];
        }
        close_column(j, negatives, true);
      }
    });
    clear_column_padding();
  }

  static Negatives given(const Stats& stats, int64_t i) {
    return {stats.lse[i] * log2e, stats.sum ? stats.sum[i] : 0, stats.count ? stats.count[i] : 0};
  }
  void close_from_statistics() {
    constexpr int64_t batch = 64;
    tasks(divide_up(p.rows, batch), [&](int64_t task, int) {
      const int64_t end = minimum(p.rows, (task + 1) * batch);
      for (int64_t i = task * batch; i < end; ++i) close_query(i, given(p.row, i), false);
    });
    if (!st.two) return;
    tasks(divide_up(p.keys.count, batch), [&](int64_t task, int) {
      const int64_t end = minimum(p.keys.count, (task + 1) * batch);
      for (int64_t j = task * batch; j < end; ++j) close_column(j, given(p.column, j), false);
    });
    clear_column_padding();
  }

  // ---- candidates: coefficients, and dY

  template <bool bounded, bool two, class Kept>
  void candidates(const Stripe& s, int64_t begin, int64_t end) {
    // Half tiles where whole ones are too few to share out evenly.
    const bool halve = st.workers > 1 && st.tile_columns == most_columns && end - begin < 40 * st.workers;
    const int64_t strip_columns = halve ? most_columns / 2 : st.tile_columns;
    const int64_t parts = st.tile_columns / strip_columns;
    tasks((end - begin) * parts, [&](int64_t task, int) {
      const int64_t local = task / parts;
      const Tile<Acc> tile = st.tile(begin + local);
      const int64_t first = task % parts * strip_columns;
      if (first >= tile.count) return;
      const int64_t columns = minimum(strip_columns, tile.count - first);
      const bool is_key = tile.side == &st.keys;
      const Kept* kept = st.template kept_tile<Kept>(s, local, 0);
      const Kept* column_kept =
          st.column_plane ? st.template kept_tile<Kept>(s, local, 1) : kept;
      Acc* numbers = nullptr;
      Unit *row_pairs = nullptr, *column_pairs = nullptr;
      const Unit* by_columns;
      if constexpr (S::pairs) {
        if (st.need_x) row_pairs = st.packed_rows + local * st.rows * packed_stride;
        column_pairs = st.packed_pairs + local * (st.rows / 2) * tile_stride;
        by_columns = column_pairs;
      } else {
        by_columns = numbers = st.template kept_tile<Acc>(s, local, 0);
      }
      const int64_t padded = round_up(first + columns, lanes<Acc>);
      if (two && is_key) {
        write_coefficients<bounded, two>(st, s, tile, kept, column_kept, first, padded, numbers,
                                         row_pairs, column_pairs);
      } else {
        write_coefficients<bounded, false>(st, s, tile, kept, column_kept, first, padded, numbers,
                                           row_pairs, column_pairs);
      }
      if (!tile.side->grad_sum) return;
      Acc* sum = tile.side->grad_sum + (tile.begin + first) * p.dim;
      const int64_t depth = divide_up(s.rows, P::pack);
      for (int64_t d = 0; d < p.dim; d += micro_columns<Acc>) {
        const Unit* panel = st.x_panels + d * depth;
        multiply_panel<P, 1, tile_stride>(by_columns + first, columns, panel, depth, sum + d, p.dim,
                                          minimum<int64_t>(micro_columns<Acc>, p.dim - d),
                                          s.index > 0, panel + micro_columns<Acc> * depth);
      }
      if (is_key) add_positive_queries(st, s.begin, s.rows, tile.begin + first, columns);
      if (s.last) finish_candidates(st, *tile.side, tile.begin + first, columns);
    });
  }
  template <class Kept>
  void candidates_kept(const Stripe& s, int64_t begin, int64_t end) {
    if (st.bounded) {
      st.two ? candidates<true, true, Kept>(s, begin, end)
             : candidates<true, false, Kept>(s, begin, end);
    } else {
      st.two ? candidates<false, true, Kept>(s, begin, end)
             : candidates<false, false, Kept>(s, begin, end);
    }
  }
  void candidates_any(const Stripe& s, int64_t begin, int64_t end) {
    if (!st.need_x && !st.any_candidate_gradient()) return;
    if constexpr (S::pairs) {
      if (st.kept16) return candidates<true, true, Bf16>(s, begin, end);
    }
    candidates_kept<Acc>(s, begin, end);
  }

  // ---- queries: dX

  void queries(const Stripe& s, int64_t begin, int64_t end) {
    if (!st.need_x) return;
    // Row chunks large enough to use a panel of Y often, enough tasks to keep everyone busy. How
    // many matters to nothing else: an element's sum is one task's, in the order of the tiles.
    constexpr int64_t task_rows = 48, panel_columns = micro_columns<Acc>;
    const int64_t row_tasks = divide_up(s.rows, task_rows);
    const int64_t panels = divide_up(st.dim_padded, panel_columns);
    const int64_t pieces = minimum(panels, divide_up(12 * st.workers, row_tasks));
    const int64_t task_columns = divide_up(panels, pieces) * panel_columns;
    panel_runs(begin, end, false, [&](int64_t first, int64_t count, int64_t panel) {
      tasks(row_tasks * divide_up(st.dim_padded, task_columns), [&](int64_t task, int) {
        const int64_t row = task % row_tasks * task_rows, rows = minimum(task_rows, s.rows - row);
        const int64_t d_begin = task / row_tasks * task_columns;
        const int64_t d_end = minimum(d_begin + task_columns, st.dim_padded);
        for (int64_t t = 0; t < count;) {
          const int64_t columns = st.tile(first + t).count;
          Runs runs;
          while (runs.count * columns < most_rows && columns == st.tile_columns &&
                 t + runs.count < count &&
                 st.tile(first + t + runs.count).count == columns) {
            ++runs.count;
          }
          for (int64_t d = d_begin; d < d_end; d += panel_columns) {
            multiply_tiles(s, first + t - begin, row, rows, panel + t, columns, d,
                           first + t > 0, runs);
          }
          t += runs.count;
        }
      });
    });
  }

  // dX (rows, panel at d) (+)= P Y over `runs.count` tiles of `columns` candidates.
  void multiply_tiles(const Stripe& s, int64_t local, int64_t row, int64_t rows, int64_t panel,
                      int64_t columns, int64_t d, bool accumulate, Runs runs) const {
    const int64_t depth = divide_up(columns, P::pack);
    const int64_t width = minimum<int64_t>(micro_columns<Acc>, st.dim_padded - d);
    const Unit* y = st.y_tile(panel) + d * depth;
    Acc* out = st.dx + row * st.dim_padded + d;
    runs.b_step = st.y_tile(1) - st.y_tile(0);
    if constexpr (S::pairs) {
      runs.a_step = st.rows * packed_stride;
      const Unit* a = st.packed_rows + (local * st.rows + row) * packed_stride;
      multiply_panel<P, packed_stride, 1>(a, rows, y, depth, out, st.dim_padded, width, accumulate,
                                          y + width * depth, runs);
    } else {
      runs.a_step = st.rows * tile_stride;
      const Unit* a = st.template kept_tile<Acc>(s, local, 0) + row * tile_stride;
      multiply_panel<P, tile_stride, 1>(a, rows, y, depth, out, st.dim_padded, width, accumulate,
                                        y + width * depth, runs);
    }
  }

  void finish_queries(const Stripe& s) {
    if (!st.need_x && !(p.own.count && (p.own.grad || p.temperature_grad))) return;
    tasks(s.rows, [&](int64_t r, int worker) {
      Acc* dx = st.need_x ? st.dx + r * st.dim_padded : nullptr;
      if (dx && st.tiles == 0) __builtin_memset(dx, 0, size_t(st.dim_padded) * sizeof(Acc));
      finish_query(st, s.begin + r, dx, st.own_buffer + worker * st.dim_padded);
    });
  }

  // Blocks that were not scanned: keys may have been looked up as positives.
  void finish_lookups() {
    constexpr int64_t batch = 64;
    for (const Side<Acc>* side : {&st.keys, &st.negatives}) {
      if (side->tiles > 0 || !side->grad_sum) continue;
      tasks(divide_up(side->block->count, batch), [&](int64_t task, int) {
        const int64_t begin = task * batch;
        const int64_t count = minimum(batch, side->block->count - begin);
        __builtin_memset(side->grad_sum + begin * p.dim, 0, size_t(count * p.dim) * sizeof(Acc));
        if (side == &st.keys) add_positive_queries(st, 0, p.rows, begin, count);
        finish_candidates(st, *side, begin, count);
      });
    }
  }

  // With l = s / T - margin / T for positives, d total / dT = -1/T * sum of P l; and the sum of
  // P s over a row is <unit row, its gradient>, which projecting has already taken.
  double temperature_gradient() const {
    double dots = 0;
    if (st.temperature_from_x) {
      for (int64_t i = 0; i < p.rows; ++i) dots += st.row_dot[i];
    } else {
      for (const Side<Acc>* side : {&st.keys, &st.negatives}) {
        if (!side->block) continue;
        for (int64_t j = 0; j < side->block->count; ++j) dots += side->dot[j];
      }
      for (int64_t i = 0; p.own.count && i < p.rows; ++i) dots += st.own_dot[i];
    }
    double positives = 0;
    for (int64_t e = 0; e < p.rows * p.positives; ++e) positives += st.positive_coefficient[e];
    const double scale = double(p.scale);
    return -scale * scale * (dots - double(p.margin) * positives);
  }
};

template <class E, class P>
void run_as(const Problem<typename P::Acc>& problem, Mode mode) {
  State<E, P> state(problem, mode, workers_for(problem, mode));
  Cursor measure(nullptr);
  state.layout(measure);
  const Arena arena(measure.used());
  Cursor cursor(arena.data());
  state.layout(cursor);
  Kernel<E, P>(state).run();
}
