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
    measure(st);
    if (p.prefix_count) {
      if (!measure_levels(st)) {
        *p.prefixes_apart = true;
        return;
      }
      for (int64_t l = 0; l < p.prefix_count; ++l) st.level[l].bounded = st.bounded;
      fill_column_posts(st);
    }
    prepare();
    if (st.mode == Mode::backward) {
      for_each_level([&](const S& level) { close_given(level); });
    } else {
      scan_sweep();
    }
    if (p.prefix_weight && st.mode != Mode::backward) sum_level_losses(st);
    if (!st.gradients) return;
    if (!st.fused) gradient_sweep();
    finish_lookups();
    if (p.temperature_grad) {
      *p.temperature_grad =
          p.prefix_count ? level_temperature_gradient(st) : temperature_gradient(st);
    }
    if (p.bias_grad) *p.bias_grad = bias_gradient(st);
  }

 private:
  S& st;
  const Problem<Acc>& p;

  static constexpr double multiply_add_ns = 0.02;

  // The state that has the statistics: of every prefix, or the only one.
  template <class F>
  void for_each_level(F&& f) const {
    if (p.prefix_count == 0) return f(st);
    for (int64_t l = 0; l < p.prefix_count; ++l) f(st.level[l]);
  }

  // Positives, and packing as far as it is done once and for the first stripe: in one list of
  // tasks, because a small problem has no time for three.
  void prepare() {
    constexpr int64_t batch = 16;
    const PackQueries<S> queries{st, st.stripe(0), st.need_candidates()};
    const bool at_once = st.panel_tiles >= st.tiles;
    const PackCandidates<S> candidates{st, 0, at_once ? st.tiles : 0, !st.direct, st.need_x};
    const int64_t first = st.apart ? 0 : queries.count();
    const int64_t second = st.apart ? 0 : first + candidates.count();
    const double ns = (st.apart ? 0 : queries.nanoseconds() + candidates.nanoseconds()) +
                      0.1 * double(p.rows * p.positives * p.dim);
    st.tasks(second + divide_up(p.rows, batch), ns, [&](int64_t task, int) {
      if (task < first) return queries(task);
      if (task < second) return candidates(task - first);
      const int64_t begin = (task - second) * batch, end = minimum(p.rows, begin + batch);
      for_each_level([&](const S& level) {
        for (int64_t i = begin; i < end; ++i) measure_positives(level, i);
      });
    });
  }

  // The gradients of candidates need panels of queries besides the strips of the scan.
  void pack_queries(const Stripe& s, bool panels) const {
    const PackQueries<S> queries{st, s, panels && st.need_candidates()};
    st.tasks(queries.count(), queries.nanoseconds(), [&](int64_t task, int) { queries(task); });
  }

  // Calls f(first tile, tiles, first panel) for runs of tiles whose packed panels are at hand.
  template <class F>
  void panel_runs(int64_t begin, int64_t end, bool yt, F&& f) const {
    if (st.panel_tiles >= st.tiles) return f(begin, end - begin, begin);
    for (int64_t t = begin; t < end; t += st.panel_tiles) {
      const int64_t count = minimum(st.panel_tiles, end - t);
      const PackCandidates<S> candidates{st, t, t + count, yt, !yt};
      st.tasks(candidates.count(), candidates.nanoseconds(),
               [&](int64_t task, int) { candidates(task); });
      f(t, count, int64_t(0));
    }
  }

  // ---- sweeps

  void scan_sweep() {
    for (int64_t index = 0; index < st.stripes; ++index) {
      const Stripe s = st.stripe(index);
      if (index > 0) pack_queries(s, st.fused);
      scan(s, st.first_tile(s), st.tiles, st.fused || (st.gradients && st.is_kept(s)));
      if (st.two) {
        for_each_level([&](const S& level) {
          for_each_closing(st, p.keys.count, [&](int64_t j) { fold_column(level, s, j); });
        });
      }
      for_each_level([&](const S& level) { close_rows(level, s); });
      if (!st.fused) continue;
      candidates(s, 0, st.tiles);
      queries(s, 0, st.tiles);
      finish_queries(s);
    }
    if (!st.two) return;
    for_each_level([&](const S& level) {
      if (p.one_set) return close_as_columns(level);
      close_columns(level, true, [&](int64_t j) { return negatives_of_column(level, j); });
    });
  }

  void gradient_sweep() {
    for_each_level([](S& level) { level.part_summary = nullptr; });  // it is complete
    for (int64_t index = 0; index < st.stripes; ++index) {
      const Stripe s = st.stripe(index);
      // What prepare() packed is still there, unless other stripes came between.
      if (index > 0 || (st.mode == Mode::both && st.stripes > 1)) pack_queries(s, true);
      for (int64_t t = st.first_tile(s); t < st.tiles; t += st.step_tiles) {
        const int64_t end = minimum(st.tiles, t + st.step_tiles);
        if (!st.is_kept(s)) scan(s, t, end, true);
        candidates(s, t, end);
        queries(s, t, end);
      }
      finish_queries(s);
    }
  }

  // ---- scan

  // Tiles [begin, end) of the stripe, written where `keep`.
  void scan(const Stripe& s, int64_t begin, int64_t end, bool keep) const {
    if constexpr (S::pairs) {
      if (st.kept16 && st.is_kept(s)) return scan_as<Bf16>(s, begin, end, keep);
    }
    scan_as<Acc>(s, begin, end, keep);
  }
  template <class Kept>
  void scan_as(const Stripe& s, int64_t begin, int64_t end, bool keep) const {
    const int64_t chunks = divide_up(s.rows, st.chunk_rows);
    if (st.apart) return scan_apart<Kept>(s, chunks);
    const auto run = [&](int64_t first, int64_t count, int64_t panel) {
      const double ns = multiply_add_ns * double(s.rows * count * st.tile_columns * p.dim);
      st.tasks(count * chunks, ns, [&](int64_t task, int worker) {
        const int64_t local = task / chunks, t = first + local;
        if (st.is_below(s, t, task % chunks)) return;
        if constexpr (std::is_same_v<Kept, Acc>) {
          if (p.prefix_count) {
            const auto plane = [&](int64_t l) {
              return keep ? st.template scanned_tile<Acc>(s, t - begin, int(l)) : nullptr;
            };
            return scan_prefixes(st, s, t, task % chunks, st.x_strips, st.yt_tile(panel + local),
                                 plane, worker);
          }
        }
        Kept* kept = keep ? st.template scanned_tile<Kept>(s, t - begin, 0) : nullptr;
        Kept* column_kept = kept;
        if (keep && st.column_plane) {
          column_kept = st.template scanned_tile<Kept>(s, t - begin, 1);
        }
        scan_chunk<S, Kept>(st, s, t, task % chunks, st.x_strips, st.yt_tile(panel + local), kept,
                            column_kept, worker);
      });
    };
    if (st.direct) return run(begin, end - begin, 0);
    panel_runs(begin, end, true, run);
  }
  template <class Kept>
  void scan_apart(const Stripe& s, int64_t chunks) const {
    const double ns = multiply_add_ns * double(s.rows * st.tiles * st.tile_columns * p.dim);
    for (int64_t i = 0; i < st.packers(); ++i) st.strips_packed[i] = false;
    st.tasks(st.tiles, ns, [&](int64_t t, int worker) {
      Unit* strips = st.x_strips + worker * st.strips_size();
      Unit* yt = st.yt_tile(worker);
      const PackQueries<S> queries{st, s, false, strips};
      if (!st.strips_packed[worker]) {
        for (int64_t i = 0; i < queries.count(); ++i) queries(i);
        st.strips_packed[worker] = true;
      }
      PackCandidates<S>{st, t, t + 1, true, false, yt}(0);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (st.is_below(s, t, chunk)) break;
        scan_chunk<S, Kept>(st, s, t, chunk, strips, yt, nullptr, nullptr, worker);
      }
    });
  }

  // ---- candidates

  void candidates(const Stripe& s, int64_t begin, int64_t end) const {
    if (!st.need_x && !st.need_candidates()) return;
    const int64_t tiles = end - begin;
    const double ns = multiply_add_ns * double(s.rows * tiles * st.tile_columns * p.dim);
    st.tasks(tiles, ns, [&](int64_t local, int) {
      const Tile<Acc> tile = st.tile(begin + local);
      if (p.prefix_count) {
        write_level_coefficients(st, s, tile, local);
      } else {
        write_any(s, tile, local, st.coefficient_tile(s, local));
      }
      if (tile.side->grad_sum) add_candidates(s, tile, local);
    });
  }

  void write_any(const Stripe& s, const Tile<Acc>& tile, int64_t local, Acc* out) const {
    if constexpr (S::pairs) {
      if (st.kept16 && st.is_kept(s)) return write<true, Bf16>(s, tile, local, out);
    }
    st.bounded ? write<true, Acc>(s, tile, local, out) : write<false, Acc>(s, tile, local, out);
  }
  template <bool bounded, class Kept>
  void write(const Stripe& s, const Tile<Acc>& tile, int64_t local, Acc* out) const {
    const Kept* kept = st.template scanned_tile<Kept>(s, local, 0);
    if (!st.two || tile.side != &st.keys) {
      return write_coefficients<bounded, false>(st, s, tile, kept, kept, out);
    }
    const Kept* column_kept =
        st.column_plane ? st.template scanned_tile<Kept>(s, local, 1) : kept;
    write_coefficients<bounded, true>(st, s, tile, kept, column_kept, out);
  }

  // dY += P^T X for the columns of a tile; all of their gradient after the last stripe.
  void add_candidates(const Stripe& s, const Tile<Acc>& tile, int64_t local) const {
    const int64_t panel_depth = divide_up(s.rows, P::pack);
    const int64_t rows = st.rows_of(s, tile, false), depth = divide_up(rows, P::pack);
    if (rows <= 0) return;
    Acc* sum = tile.side->grad_sum + tile.begin * p.dim;
    for (int64_t i = 0; i < st.piece_count; ++i) {
      const Piece& piece = st.pieces[i];
      const int64_t d = piece.panel, width = minimum<int64_t>(micro_columns<Acc>, p.dim - d);
      const Unit* panel = st.x_panels + piece.offset * panel_depth;
      Acc* coefficients = coefficients_of(s, local, piece);
      for (int64_t j = 0; j < tile.count; j += column_part<P>) {
        multiply_panel<P, 1, P::pack * tile_stride>(
            coefficients_by_column<P>(coefficients, j), minimum(column_part<P>, tile.count - j),
            panel, depth, sum + j * p.dim + d, p.dim, width, s.index > 0 || piece.begin > d,
            panel + micro_columns<Acc> * panel_depth);
      }
    }
    if (p.one_set) return;  // finish_query has the rest
    if (p.prefix_count) {
      if (s.last) finish_level_candidates(st, *tile.side, tile.begin, tile.count);
      return;
    }
    if (tile.side == &st.keys) add_positive_queries(st, s.begin, s.rows, tile.begin, tile.count);
    if (s.last) finish_candidates(st, *tile.side, tile.begin, tile.count);
  }

  // Blocks that were not scanned: keys may have been looked up as positives.
  void finish_lookups() const {
    constexpr int64_t batch = 64;
    for (const Side<Acc>* side : {&st.keys, &st.negatives}) {
      if (side->tiles > 0 || !side->grad_sum) continue;
      const int64_t count = side->block->count;
      st.tasks(divide_up(count, batch), 0.5 * double(count * p.dim), [&](int64_t task, int) {
        const int64_t begin = task * batch, some = minimum(batch, count - begin);
        __builtin_memset(side->grad_sum + begin * p.dim, 0, size_t(some * p.dim) * sizeof(Acc));
        if (p.prefix_count) {
          for (int64_t l = 0; l < p.prefix_count; ++l) {
            for (int64_t j = begin; j < begin + some; ++j) st.level[l].keys.dot[j] = 0;
          }
          return finish_level_candidates(st, *side, begin, some);
        }
        if (side == &st.keys) add_positive_queries(st, 0, p.rows, begin, some);
        finish_candidates(st, *side, begin, some);
      });
    }
  }

  // A tile's coefficients for some columns of the rows.
  Acc* coefficients_of(const Stripe& s, int64_t local, const Piece& piece) const {
    return p.prefix_count ? st.template scanned_tile<Acc>(s, local, int(piece.level))
                          : st.coefficient_tile(s, local);
  }

  // ---- queries

  // Row chunks large enough to use a panel of Y often, enough tasks to keep everyone busy. How
  // many matters to nothing else: an element's sum is one task's, in the order of the tiles.
  void queries(const Stripe& s, int64_t begin, int64_t end) const {
    if (!st.need_x) return;
    constexpr int64_t task_rows = 48, panel_columns = micro_columns<Acc>;
    const int64_t row_tasks = divide_up(s.rows, task_rows);
    const int64_t panels = divide_up(st.dim_padded, panel_columns);
    const int64_t pieces = minimum(panels, divide_up(12 * st.workers, row_tasks));
    const int64_t task_columns = divide_up(panels, pieces) * panel_columns;
    panel_runs(begin, end, false, [&](int64_t first, int64_t count, int64_t panel) {
      const double ns = multiply_add_ns * double(s.rows * count * st.tile_columns * p.dim);
      st.tasks(row_tasks * divide_up(st.dim_padded, task_columns), ns, [&](int64_t task, int) {
        const int64_t row = task % row_tasks * task_rows, rows = minimum(task_rows, s.rows - row);
        const int64_t d_begin = task / row_tasks * task_columns;
        const int64_t d_end = minimum(d_begin + task_columns, st.dim_padded);
        const int64_t row_first = st.first_tile(s) + (p.one_set ? row / st.tile_columns : 0);
        for (int64_t t = maximum(first, row_first); t < first + count;) {
          const int64_t columns = st.tile(t).count, run = equal_tiles(t, first + count);
          const int64_t depth = divide_up(columns, P::pack);
          const Unit* y = st.y_tile(panel + t - first);
          const Runs runs{run, st.tile_size(), st.y_size()};
          for (int64_t i = 0; i < st.piece_count; ++i) {
            const Piece& piece = st.pieces[i];
            const int64_t d = piece.panel, width = minimum(panel_columns, st.dim_padded - d);
            if (d < d_begin || d >= d_end) continue;
            const Acc* tile = coefficients_of(s, t - begin, piece);
            multiply_panel<P, tile_stride, 1>(
                coefficients_by_row<P>(tile, row), rows, y + piece.offset * depth, depth,
                st.dx + row * st.dim_padded + d, st.dim_padded, width,
                t > row_first || piece.begin > d, y + (piece.offset + width) * depth, runs);
          }
          t += run;
        }
      });
    });
  }

  // How many tiles from t on are alike and few enough to be summed in one go.
  int64_t equal_tiles(int64_t t, int64_t end) const {
    const int64_t columns = st.tile(t).count;
    int64_t run = 1;
    while (t + run < end && (run + 1) * columns <= most_rows && st.tile(t + run).count == columns) {
      ++run;
    }
    return run;
  }

  void finish_queries(const Stripe& s) const {
    if (!st.need_x && !(p.own.count && (p.own.grad || p.temperature_grad))) return;
    constexpr int64_t batch = 8;
    const double elements = double(s.rows * p.dim * (1 + p.positives + 2 * p.own.count));
    st.tasks(divide_up(s.rows, batch), 0.2 * elements, [&](int64_t task, int worker) {
      const int64_t end = minimum(s.rows, (task + 1) * batch);
      Acc* buffer = st.own_buffer + worker * st.dim_padded;
      for (int64_t r = task * batch; r < end; ++r) {
        Acc* dx = st.need_x ? st.dx + r * st.dim_padded : nullptr;
        if (dx && st.tiles == 0) __builtin_memset(dx, 0, size_t(st.dim_padded) * sizeof(Acc));
        if (p.prefix_count) {
          finish_level_query(st, s.begin + r, r, dx, buffer);
        } else {
          finish_query(st, s.begin + r, dx, buffer);
        }
      }
    });
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
