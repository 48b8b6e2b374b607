// Nearest rows of another label: blocks of rows against blocks from themselves on.
//
// A tile serves the anchors of its columns as it lies and those of its rows transposed: in both, a
// lane is an anchor and the other rows follow one another. Every worker has candidates of its own
// for all anchors; the best of them, and of equals the lowest row, do not depend on who had which.
#pragma once

template <class Acc>
class Neighbours {
  using P = Plain<Acc>;
  using I = Index<Acc>;
  static constexpr int n = lanes<Acc>;
  static constexpr int64_t side = 96;  // a multiple of every micro-kernel's sides
  static constexpr int group = 4;      // slots whose candidates are in registers together

  struct State {  // (slots or 1, padded)
    Acc *value, *far_value;
    I *row, *far_row;
  };

 public:
  Neighbours(const NeighbourProblem<Acc>& problem, int workers) : p(problem) {
    padded_ = round_up(p.rows, side);
    blocks_ = padded_ / side;
    const int64_t each = (p.slots + 1) * padded_ * int64_t(sizeof(Acc) + sizeof(I));
    workers_ = int(clamp<int64_t>(p.workspace_bytes / 2 / each, 1, workers));
  }

  void layout(Cursor& cursor) {
    strips_ = cursor.take<Acc>(blocks_ * block_strips());
    panels_ = cursor.take<Acc>(padded_ * p.dim);
    label_ = cursor.take<I>(padded_);
    half_norm_ = cursor.take<Acc>(padded_);
    bound_ = cursor.take<Acc>(p.slots * padded_);
    states_ = cursor.take<State>(workers_);
    tiles_ = cursor.take<Acc>(workers_ * 2 * side * side);
    for (int w = 0; w < workers_; ++w) {
      State s;
      s.value = cursor.take<Acc>(p.slots * padded_);
      s.row = cursor.take<I>(p.slots * padded_);
      s.far_value = cursor.take<Acc>(p.farthest ? padded_ : 0);
      s.far_row = cursor.take<I>(p.farthest ? padded_ : 0);
      if (states_) states_[w] = s;
    }
  }

  void run() {
    parallel_for(blocks_, workers_, [&](int64_t block, int) { pack(block); });
    parallel_for(blocks_, workers_, [&](int64_t block, int) { measure_bounds(block); });
    parallel_for(workers_, workers_, [&](int64_t w, int) { clear(states_[w]); });
    parallel_for(blocks_ * (blocks_ + 1) / 2, workers_, [&](int64_t task, int worker) {
      int64_t row = 0;
      while (task >= blocks_ - row) task -= blocks_ - row++;
      meet(row, row + task, worker);
    });
    parallel_for(blocks_, workers_, [&](int64_t block, int) { choose(block); });
  }

 private:
  const NeighbourProblem<Acc>& p;
  int workers_;
  int64_t padded_, blocks_;
  Acc *strips_, *panels_, *half_norm_, *bound_, *tiles_;
  I* label_;
  State* states_;

  const Acc* row(int64_t i) const { return p.x + i * p.stride; }
  // Slack for each block, whose neighbour another worker packs: see pack_strip.
  int64_t block_strips() const { return side * p.dim + 2 * n; }

  void pack(int64_t block) const {
    const int64_t begin = block * side, end = minimum(p.rows, begin + side);
    for (int64_t i = begin; i < begin + side; ++i) {
      label_[i] = i < p.rows ? p.label[i] : -1;
      half_norm_[i] = i < p.rows && p.half_norm ? p.half_norm[i] : 0;
    }
    const auto from = [&](int64_t first) {
      return [this, first](int64_t r) { return packed_row(row(first + r), Acc(1)); };
    };
    for (int64_t at = begin; at < begin + side; at += micro_rows) {
      const int64_t count = clamp<int64_t>(end - at, 0, micro_rows);
      pack_strip<P>(from(at), count, p.dim,
                    strips_ + block * block_strips() + (at - begin) * p.dim);
    }
    constexpr int64_t width = micro_columns<Acc>;
    for (int64_t at = begin; at < begin + side; at += width) {
      const int64_t count = clamp<int64_t>(end - at, 0, width);
      pack_transposed<P>(from(at), count, p.dim, panels_ + at * p.dim, width);
    }
  }

  // The closeness that a slot's row has, by the sum that a tile's has, k after k: equal rows
  // compare equal. Some slots at a time hide an addition's latency.
  void measure_bounds(int64_t block) const {
    const int64_t begin = block * side;
    for (int64_t i = begin; i < begin + side; ++i) {
      for (int64_t slot = 0; slot < p.slots; slot += group) {
        const int64_t count = minimum<int64_t>(group, p.slots - slot);
        int64_t other[group];
        const Acc* y[group];
        for (int64_t t = 0; t < group; ++t) {
          const bool given = p.bound && i < p.rows && t < count;
          other[t] = given ? p.bound[(slot + t) * p.rows + i] : -1;
          y[t] = other[t] < 0 ? p.x : row(other[t]);
        }
        Vec<Acc> sum[group] = {};
        for (int64_t k = 0; p.bound && i < p.rows && k < p.dim; ++k) {
          const Vec<Acc> x = splat(row(i)[k]);
          for (int t = 0; t < group; ++t) sum[t] = P::mac(sum[t], x, splat(y[t][k]));
        }
        for (int64_t t = 0; t < count; ++t) {
          Acc& out = bound_[(slot + t) * padded_ + i];
          out = !p.bound ? infinity<Acc>
                : other[t] < 0 ? -infinity<Acc>
                               : sum[t][0] - half_norm_[other[t]];
        }
      }
    }
  }

  void clear(const State& s) const {
    for (int64_t i = 0; i < p.slots * padded_; ++i) {
      s.value[i] = -infinity<Acc>;
      s.row[i] = -1;
    }
    for (int64_t i = 0; p.farthest && i < padded_; ++i) {
      s.far_value[i] = infinity<Acc>;
      s.far_row[i] = -1;
    }
  }

  void meet(int64_t rows, int64_t columns, int worker) const {
    Acc* tile = tiles_ + worker * 2 * side * side;
    constexpr int64_t width = micro_columns<Acc>;
    for (int64_t c = 0; c < side; c += width) {
      const Acc* panel = panels_ + (columns * side + c) * p.dim;
      for (int64_t r = 0; r < side; r += micro_rows) {
        multiply_panel<P, 1, micro_rows>(strips_ + rows * block_strips() + r * p.dim, micro_rows,
                                         panel, p.dim, tile + r * side + c, side, width, false,
                                         panel);
      }
    }
    sweep(tile, rows, columns, states_[worker]);
    if (rows == columns) return;
    Acc* turned = tile + side * side;
    for (int64_t r = 0; r < side; r += n) {
      for (int64_t c = 0; c < side; c += n) {
        Vec<Acc> block[n];
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) block[i] = load(tile + (r + i) * side + c);
        transpose<Acc>(block);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) store(turned + (c + i) * side + r, block[i]);
      }
    }
    sweep(turned, columns, rows, states_[worker]);
  }

  // tile[other][anchor]: the rows of block `others` as candidates for the anchors of a block.
  void sweep(const Acc* tile, int64_t others, int64_t anchors, const State& s) const {
    const int64_t first = others * side, count = minimum(side, p.rows - first);
    for (int64_t a = 0; a < side; a += n) {
      const int64_t anchor = anchors * side + a;
      if (anchor >= p.rows) break;
      int64_t slot = 0;
      for (; slot + group <= p.slots; slot += group) {
        offer<group, false>(tile + a, first, count, anchor, slot, s);
      }
      for (; slot < p.slots; ++slot) offer<1, false>(tile + a, first, count, anchor, slot, s);
      if (p.farthest) offer<0, true>(tile + a, first, count, anchor, slot, s);
    }
  }

  template <int slots, bool far>
  void offer(const Acc* tile, int64_t first, int64_t count, int64_t anchor, int64_t slot,
             const State& s) const {
    const Vec<I> label = load(label_ + anchor);
    Vec<Acc> bound[slots + 1], value[slots + 1];
    Vec<I> row[slots + 1];
#pragma GCC unroll 4
    for (int t = 0; t < slots; ++t) {
      const int64_t at = (slot + t) * padded_ + anchor;
      bound[t] = load(bound_ + at);
      value[t] = load(s.value + at);
      row[t] = load(s.row + at);
    }
    if constexpr (far) {
      value[slots] = load(s.far_value + anchor);
      row[slots] = load(s.far_row + anchor);
    }
    for (int64_t r = 0; r < count; ++r) {
      const Vec<Acc> raw = load(tile + r * side) - splat(half_norm_[first + r]);
      // NaN is chosen by no comparison.
      const Vec<Acc> v = label == splat(label_[first + r]) ? splat(Acc(__builtin_nan(""))) : raw;
      const Vec<I> here = splat(I(first + r));
#pragma GCC unroll 4
      for (int t = 0; t < slots; ++t) {
        const auto better = (v < bound[t]) & (v > value[t]);
        value[t] = better ? v : value[t];
        row[t] = better ? here : row[t];
      }
      if constexpr (far) {
        const auto better = v < value[slots];
        value[slots] = better ? v : value[slots];
        row[slots] = better ? here : row[slots];
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < slots; ++t) {
      const int64_t at = (slot + t) * padded_ + anchor;
      store(s.value + at, value[t]);
      store(s.row + at, row[t]);
    }
    if constexpr (far) {
      store(s.far_value + anchor, value[slots]);
      store(s.far_row + anchor, row[slots]);
    }
  }

  void choose(int64_t block) const {
    const int64_t begin = block * side, end = minimum(p.rows, begin + side);
    for (int64_t slot = 0; slot < p.slots; ++slot) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = slot * padded_ + i;
        I best = -1;
        Acc most = 0;
        for (int w = 0; w < workers_; ++w) {
          const I found = states_[w].row[at];
          const Acc value = states_[w].value[at];
          if (found < 0) continue;
          if (best < 0 || value > most || (value == most && found < best)) {
            best = found;
            most = value;
          }
        }
        p.closest[slot * p.rows + i] = int32_t(best);
      }
    }
    for (int64_t i = begin; p.farthest && i < end; ++i) {
      I best = -1;
      Acc least = 0;
      for (int w = 0; w < workers_; ++w) {
        const I found = states_[w].far_row[i];
        const Acc value = states_[w].far_value[i];
        if (found < 0) continue;
        if (best < 0 || value < least || (value == least && found < best)) {
          best = found;
          least = value;
        }
      }
      p.farthest[i] = int32_t(best);
    }
  }
};

template <class Acc>
void neighbours_as(const NeighbourProblem<Acc>& problem) {
  const double work = double(problem.rows) * double(problem.rows) * double(problem.dim);
  Neighbours<Acc> kernel(problem, work < 1e6 ? 1 : available_workers());
  Cursor measured(nullptr);
  kernel.layout(measured);
  const Arena arena(measured.used());
  Cursor cursor(arena.data());
  kernel.layout(cursor);
  kernel.run();
}

// Every row's gradient is one task's, which adds its pairs in their order.
template <class Acc>
void pairs_as(const PairProblem<Acc>& p) {
  const int workers = double(p.pairs) * double(p.dim) < 1e6 ? 1 : available_workers();
  constexpr int64_t batch = 64;
  const auto row = [&](int64_t i) { return p.x + i * p.stride; };
  if (!p.grad) {
    return parallel_for(divide_up(p.pairs, batch), workers, [&](int64_t task, int) {
      const int64_t end = minimum(p.pairs, (task + 1) * batch);
      for (int64_t e = task * batch; e < end; ++e) {
        const Acc *x = row(p.left[e]), *y = row(p.right[e]);
        p.squares[e] = Acc(sum_vectors<Acc>(p.dim, [&](int64_t k, auto count) {
          const Vec<Acc> d = load_first<Acc>(x + k, count) - load_first<Acc>(y + k, count);
          return d * d;
        }));
      }
    });
  }
  int64_t *begin = nullptr, *pair = nullptr;
  const auto layout = [&](Cursor& cursor) {
    begin = cursor.take<int64_t>(p.rows + 2);
    pair = cursor.take<int64_t>(2 * p.pairs);
  };
  Cursor measured(nullptr);
  layout(measured);
  const Arena arena(measured.used());
  Cursor cursor(arena.data());
  layout(cursor);
  // Which pairs each row is in, by counting.
  __builtin_memset(begin, 0, size_t(p.rows + 2) * sizeof(int64_t));
  int64_t* next = begin + 1;
  for (const int64_t* of : {p.left, p.right}) {
    for (int64_t e = 0; e < p.pairs; ++e) ++begin[of[e] + 2];
  }
  for (int64_t i = 0; i < p.rows; ++i) next[i + 1] += next[i];
  for (const int64_t* of : {p.left, p.right}) {
    for (int64_t e = 0; e < p.pairs; ++e) pair[next[of[e]]++] = e;
  }
  parallel_for(divide_up(p.rows, batch), workers, [&](int64_t task, int) {
    const int64_t end = minimum(p.rows, (task + 1) * batch);
    for (int64_t i = task * batch; i < end; ++i) {
      Acc* out = p.grad + i * p.dim;
      __builtin_memset(out, 0, size_t(p.dim) * sizeof(Acc));
      for (int64_t at = begin[i]; at < begin[i + 1]; ++at) {
        const int64_t e = pair[at], other = p.left[e] == i ? p.right[e] : p.left[e];
        const Acc w = 2 * p.weight[e];
        if (w == 0) continue;
        const Acc *x = row(i), *y = row(other);
        for_each_vector<Acc>(p.dim, [&](int64_t k, auto count) {
          const Vec<Acc> d = load_first<Acc>(x + k, count) - load_first<Acc>(y + k, count);
          store_first<Acc>(out + k, load_first<Acc>(out + k, count) + d * w, count);
        });
      }
    }
  });
}
