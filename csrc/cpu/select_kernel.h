// The selection: stripes of rows, spans of columns.
//
//   scan     maxima of all groups of the span, for every row of the stripe
//   rank     a threshold per row, and which groups reach it
//   score    their columns in double, group by group, so that a candidate is read once
//   merge    into the row's k best
#pragma once

template <class R>
class Selector {
  static constexpr int n = lanes<float>;

 public:
  Selector(SelectProblem& problem, int workers) : p(problem), workers_(workers) {
    width = padded(p.dim);
    plan();
  }

  void layout(Cursor& cursor) {
    x_rows = cursor.take<R>(stripe_rows * width);
    x_strips = cursor.take<uint32_t>(stripe_rows * strip_units());
    x_coarse = cursor.take<Coarse>(stripe_rows);
    tau = cursor.take<double>(stripe_rows);
    visited = cursor.take<uint16_t>(stripe_rows * span_blocks());
    counts = cursor.take<int64_t>(stripe_rows + 1);
    most = cursor.take<float>(stripe_rows * span_groups);
    lost = cursor.take<uint8_t>(p.upper ? stripe_rows * span_groups : 0);
    block_norm = cursor.take<double>(span_blocks());
    block_residual = cursor.take<double>(span_blocks());
    pair_group = cursor.take<int32_t>(pair_capacity);
    pair_row = cursor.take<int32_t>(pair_capacity);
    pair_order = cursor.take<int32_t>(pair_capacity);
    pair_score = cursor.take<R>(pair_capacity * group);
    group_begin = cursor.take<int64_t>(span_groups + 1);
    const int64_t w = workers_;
    panels = cursor.take<uint32_t>(w * panel_units() * group / 2);
    terms = cursor.take<PanelTerms>(w * group / 2);
    y_rows = cursor.take<R>(w * 2 * n * width);
    scanned = cursor.take<uint32_t>(w * 2 * n * width);
    eps_of = cursor.take<float>(w * span_blocks());
    values = cursor.take<float>(w * (span_groups + 2 * n));
    y_measure = cursor.take<Measure>(span_columns());
    y_wide = cursor.take<double>(w * group * width);
    merge_scratch = cursor.take<Ranked<R>>(w * (p.k + span_groups * group));
    bad = cursor.take<int64_t>(w);
    above_lanes = cursor.take<int32_t>(w * micro_rows * n);
    lefts = cursor.take<Left>(w * micro_rows * block_columns());
  }

  void run() {
    __builtin_memset(bad, 0, size_t(workers_) * sizeof(int64_t));
    Scan scan = widest(p.scan);
    const int64_t spans = divide_up(p.count, span_columns());
    double harmonic = 0;
    for (int64_t s = 1; s <= spans; ++s) harmonic += 1 / double(s);
    for (int64_t begin = 0; begin < p.rows; begin += stripe_rows) {
      row0 = begin;
      rows = minimum(stripe_rows, p.rows - begin);
      prepare_queries();
      Scan packed = Scan::automatic;
      for (int64_t s = 0; s < spans; ++s) {
        col0 = s * span_columns();
        columns = minimum(span_columns(), p.count - col0);
        blocks = divide_up(columns, block_columns());
        if (packed != scan) pack_queries(scan);
        packed = scan;
        measured = spans == 1 && begin > 0;
        scan_span(scan);
        const int64_t before = p.rescored;
        __builtin_memset(visited, 0, size_t(rows * span_blocks()) * sizeof(uint16_t));
        score_first_groups(false);
        if (p.scan == Scan::automatic && scan != Scan::float32 && too_many()) {
          // The bound tells too little apart: a finer scan costs less than that many scores.
          pack_queries(packed = scan = Scan::float32);
          measured = true;
          scan_span(scan);
          score_first_groups(true);
        }
        score_other_groups();
        if (p.scan != Scan::automatic) continue;
        // What is scored falls from span to span as thresholds rise: the first has seen little.
        const double share = double(p.rescored - before) / (double(rows) * double(columns));
        const double mean = share * double(s + 1) * harmonic / double(spans);
        if (mean > worthwhile(scan)) scan = narrower(scan);
      }
    }
    for (int w = 0; w < workers_; ++w) p.nan_rows += bad[w];
  }

 private:
  SelectProblem& p;
  const int workers_;
  double roundings = 0;
  int64_t width = 0, stripe_rows = 0, span_groups = 0, group = 0, pair_capacity = 0;
  // ---- the stripe and span at hand
  bool first_pass = false;
  bool measured = false;  // the candidates' norms are known, and those without one counted
  int64_t row0 = 0, rows = 0, col0 = 0, columns = 0, blocks = 0;
  // ---- memory
  R *x_rows, *pair_score, *y_rows;
  uint32_t *x_strips, *panels, *scanned;
  Coarse* x_coarse;
  Measure* y_measure;
  double *tau, *block_norm, *block_residual, *y_wide;
  int64_t *counts, *group_begin, *bad;
  float *most, *eps_of, *values;
  uint8_t* lost;
  uint16_t* visited;  // of a row and block: the groups that were scored, a bit each
  int32_t *pair_group, *pair_row, *pair_order, *above_lanes;
  PanelTerms* terms;
  Ranked<R>* merge_scratch;
  Left* lefts;

  int64_t block_columns() const { return n * group; }
  int64_t span_blocks() const { return span_groups / n; }
  int64_t span_columns() const { return span_groups * group; }
  int64_t strip_units() const { return width; }
  int64_t panel_units() const { return 2 * n * width; }
  int64_t groups() const { return blocks * n; }

  // Groups so small that the k best of them are few columns, so large that their maxima are few
  // numbers; stripes so high that packing the candidates is little work.
  void plan() {
    const int64_t budget = maximum<int64_t>(p.workspace_bytes, int64_t(1) << 20);
    group = 16;
    while (group > 4 && group * p.k * 64 > p.count) group /= 2;
    while (group > 2 && n * (group / 2) >= p.count) group /= 2;
    const int64_t row_bytes = width * int64_t(sizeof(R) + 4), group_bytes = p.upper ? 5 : 4;
    const int64_t all = divide_up(p.count, block_columns()), share = budget / 8;
    // One span sees all candidates, and so the best threshold, if that leaves stripes of some
    // height.
    const int64_t fitting = 5 * share / (all * n * group_bytes);
    stripe_rows = clamp<int64_t>(fitting, 768, 2048);
    stripe_rows = clamp<int64_t>(minimum(stripe_rows, share / row_bytes), micro_rows, p.rows);
    stripe_rows = round_up(divide_up(p.rows, divide_up(p.rows, stripe_rows)), micro_rows);
    int64_t span = 5 * share / (stripe_rows * group_bytes * n);
    // What is merged of one row may be all columns of the span.
    const int64_t merged = share / (workers_ * block_columns() * int64_t(sizeof(Ranked<R>)));
    span = clamp<int64_t>(minimum(span, merged), 1, all);
    span = divide_up(all, divide_up(all, span));
    span_groups = span * n;
    pair_capacity = share / int64_t(group * sizeof(R) + 12);
    pair_capacity = maximum(minimum(pair_capacity, stripe_rows * span_groups), span_groups);
  }

  // ---- which scan

  Scan widest(Scan asked) const {
    if (asked == Scan::float32) return asked;
#if ISA_VNNI
    if (asked != Scan::bfloat16 && p.dim <= 1 << 16) return Scan::int8;  // sums of 32 bits
#endif
#if ISA_BF16
    return Scan::bfloat16;
#endif
    return Scan::float32;
  }
  static Scan narrower(Scan scan) {
    return scan == Scan::int8 ? Scan::bfloat16 : Scan::float32;
  }
  // The share of columns that costs as much to score as the finer scan would cost more.
  static double worthwhile(Scan scan) {
    return scan == Scan::int8 ? 0.06 : scan == Scan::bfloat16 ? 0.12 : 2;
  }

  template <class F>
  void with_policy(Scan scan, F&& f) {
    switch (scan) {
#if ISA_VNNI
      case Scan::int8: return f(Bytes{});
#endif
#if ISA_BF16
      case Scan::bfloat16: return f(Pairs{});
#endif
      default: return f(Plain<float>{});
    }
  }

  // Of what the entries of a row are whole multiples; 0: of nothing.
  float unit_of(const Measure& measure) const {
    const bool whole = p.dtype == DType::int8 || p.dtype == DType::bits;
    return whole && measure.factor == measure.factor ? float(measure.factor) : 0;
  }

  // ---- queries

  void prepare_queries() {
    parallel_for(rows, workers_, [&](int64_t i, int) {
      const KeepSubnormals keep;
      R* row = x_rows + i * width;
      read_row(p.dtype, p.x, p.x_stride, row0 + i, p.dim, row);
      const Measure measure = measure_row(row, width, p.normalize);
      scale_row(row, width, measure.factor);
      x_coarse[i].norm = measure.norm;
      x_coarse[i].unit = unit_of(measure);
    });
  }

  void pack_queries(Scan scan) {
    roundings = scan == Scan::int8 ? 32 : double(p.dim) + 32;  // sums of integers have none
    with_policy(scan, [&](auto policy) {
      using P = decltype(policy);
      using Elem = typename Quantise<P>::Elem;
      parallel_for(divide_up(rows, micro_rows), workers_, [&](int64_t strip, int worker) {
        const KeepSubnormals keep;
        const int64_t begin = strip * micro_rows;
        const int64_t count = minimum<int64_t>(micro_rows, rows - begin);
        Elem* buffer = reinterpret_cast<Elem*>(scanned + worker * 2 * n * width);
        for (int64_t r = 0; r < count; ++r) {
          Coarse& coarse = x_coarse[begin + r];
          coarse.scale = 1;
          Quantise<P>::row(x_rows + (begin + r) * width, p.dim, buffer + r * width, coarse, true);
        }
        pack_scanned<P>(buffer, width, count, p.dim,
                        reinterpret_cast<typename P::Unit*>(x_strips + begin * strip_units()),
                        micro_rows);
      });
    });
  }

  // ---- error bounds

  // How far a scanned value, in units of the row, is from the real one; inf where nothing is known.
  // Beyond the products: roundings of the scan's sums, of the score to R, and of the comparisons.
  float epsilon(const Coarse& x, int64_t block) const {
    const double y = block_norm[block], left = block_residual[block];
    const double xs = x.norm + x.residual, ys = y + left;
    const double u = 0x1p-24;
    double e = x.residual * y + xs * left + roundings * u * 1.01 * xs * ys;
    double size = x.norm * y;
    if (p.metric == Metric::l2) {
      e += 8 * u * (x.norm + y) * (x.norm + y);
      size = (x.norm + y) * (x.norm + y);
    }
    e += 16 * u * size + double(p.dim) * 0x1p-124;
    e /= double(x.scale);
    const double reach = maximum(size, xs * ys) / minimum(1.0, double(x.scale));
    if (!(e < 1e37 && reach < 1e37 && size < 1e37)) return infinity<float>;
    return float(e * 1.000001) + __FLT_MIN__;
  }

  double to_scan(const Coarse& x, double score) const {
    if (p.metric == Metric::l2) score = (score + x.norm * x.norm) / 2;
    return score / double(x.scale);
  }
  // Rounded down: thresholds went through floats.
  double to_score(const Coarse& x, double value) const {
    value *= double(x.scale);
    if (p.metric != Metric::l2) return value - magnitude(value) * 0x1p-20;
    const double square = x.norm * x.norm;
    return 2 * value - square - 0x1p-20 * (square + magnitude(value));
  }
  double upper_of(int64_t i) const {
    const double upper = double(static_cast<const R*>(p.upper)[row0 + i]);
    return clamp(to_scan(x_coarse[i], upper), -1e37, 1e37);
  }
  float cap_of(int64_t i, float e) const {
    const double cap = upper_of(i) + double(e);
    return cap < 0.99e37 ? float(cap) + float(magnitude(cap)) * 0x1p-23f : infinity<float>;
  }

  // ---- scan

  void scan_span(Scan scan) {
    with_policy(scan, [&](auto policy) {
      using P = decltype(policy);
      parallel_for(blocks, workers_, [&](int64_t block, int worker) {
        pack_block<P>(block, worker);
        p.upper ? scan_block<P, true>(block, worker) : scan_block<P, false>(block, worker);
      });
    });
  }

  template <class P>
  typename P::Unit* panel_of(int worker, int64_t panel) const {
    const int64_t units = 2 * n * divide_up(p.dim, P::pack);
    uint32_t* mine = panels + worker * (group / 2) * panel_units();
    return reinterpret_cast<typename P::Unit*>(mine) + panel * units;
  }

  template <class P>
  void pack_block(int64_t block, int worker) {
    using Elem = typename Quantise<P>::Elem;
    const KeepSubnormals keep;
    R* row = y_rows + worker * 2 * n * width;
    Elem* buffer = reinterpret_cast<Elem*>(scanned + worker * 2 * n * width);
    double norm = 0, residual = 0;
    bool known = true;
    for (int64_t panel = 0; panel < group / 2; ++panel) {
      PanelTerms& t = terms[worker * (group / 2) + panel];
      for (int64_t place = 0; place < 2 * n; ++place) {
        const int64_t column =
            block * block_columns() + place % n * group + 2 * panel + place / n;
        Elem* out = buffer + place * width;
        t.scale[place] = 1;
        t.shift[place] = 0;
        t.bias[place] = -infinity<float>;
        Coarse coarse;
        coarse.norm = __builtin_nan("");
        if (column < columns) {
          read_row(p.dtype, p.y, p.y_stride, col0 + column, p.dim, row);
          Measure& measure = y_measure[column];
          if (!measured) measure = measure_row(row, width, p.normalize);
          scale_row(row, width, measure.factor);
          coarse.norm = measure.norm;
          coarse.unit = unit_of(measure);
        }
        if (!(coarse.norm == coarse.norm)) {
          if (column < columns && row0 == 0 && !measured) ++bad[worker];
          __builtin_memset(out, 0, size_t(width) * sizeof(Elem));
          continue;
        }
        Quantise<P>::row(row, p.dim, out, coarse, false);
        t.scale[place] = coarse.scale;
        t.shift[place] = -128 * coarse.sum;
        t.bias[place] =
            p.metric == Metric::l2 ? float(-0.5 * coarse.norm * coarse.norm) : 0.0f;
        norm = maximum(norm, coarse.norm);
        residual = maximum(residual, coarse.residual);
        known = known && coarse.norm < 1e37 && coarse.residual < 1e37;
      }
      pack_scanned<P>(buffer, width, 2 * n, p.dim, panel_of<P>(worker, panel), 2 * n);
    }
    // Beyond the largest norm's, measured in double, roundings of the measurement.
    block_norm[block] = known ? norm * 1.000001 : infinity<double>;
    block_residual[block] = known ? residual * 1.000001 : infinity<double>;
  }

  template <class P, bool capped>
  void scan_block(int64_t block, int worker) {
    const int64_t depth = divide_up(p.dim, P::pack), count = group / 2;
    int32_t* above = above_lanes + worker * micro_rows * n;
    Left* left = lefts + worker * micro_rows * block_columns();
    StripTerms strip;
    for (int64_t row = 0; row < rows; row += micro_rows) {
      const auto* a = reinterpret_cast<const typename P::Unit*>(x_strips + row * strip_units());
      for (int r = 0; r < micro_rows; ++r) {
        const int64_t i = row + r;
        const bool real = i < rows;
        const float scale = real ? x_coarse[i].scale : 1;
        strip.bias_scale[r] = scale > 0 ? 1 / scale : 1;
        if constexpr (capped) {
          strip.cap[r] = real ? cap_of(i, epsilon(x_coarse[i], block)) : infinity<float>;
        }
      }
      const int64_t found = p.exclude_begin ? find_left(block, row, left) : 0;
      float* out = most + row * span_groups + block * n;
      int64_t at = 0;
      for (int64_t panel = 0; panel < count; ++panel) {
        const PanelTerms& t = terms[worker * count + panel];
        const auto* b = panel_of<P>(worker, panel);
        const int64_t begin = at;
        while (at < found && left[at].panel == panel) ++at;
        if (at > begin) {
          maximum_without<P, capped>(a, b, depth, t, strip, left + begin, at - begin, out,
                                     span_groups, above, panel == 0);
        } else {
          const auto* next = panel + 1 < count ? panel_of<P>(worker, panel + 1)
                                               : panel_of<P>(worker, 0);
          maximum_kernel<P, capped>(a, b, depth, t, strip, out, span_groups, above, panel == 0,
                                    next);
        }
      }
      if constexpr (capped) {
        for (int64_t r = 0; r < minimum<int64_t>(micro_rows, rows - row); ++r) {
          uint8_t* to = lost + (row + r) * span_groups + block * n;
          for (int l = 0; l < n; ++l) to[l] = uint8_t(above[r * n + l]);
        }
      }
    }
  }

  // What the rows of a strip leave out of a block, in order of panels.
  int64_t find_left(int64_t block, int64_t row, Left* left) const {
    const int64_t first = p.first + col0 + block * block_columns();
    int64_t found = 0;
    for (int r = 0; r < minimum<int64_t>(micro_rows, rows - row); ++r) {
      const int64_t* begin = p.exclude + p.exclude_begin[row0 + row + r];
      const int64_t* end = p.exclude + p.exclude_begin[row0 + row + r + 1];
      if (begin == end || *begin >= first + block_columns() || end[-1] < first) continue;
      for (begin = lower_bound(begin, end, first); begin < end; ++begin) {
        const int64_t column = *begin - first;
        if (column >= block_columns()) break;
        const int64_t v = column % group;
        Left l{int32_t(v / 2), r, int32_t(v % 2 * n + column / group)};
        int64_t at = found++;
        for (; at > 0 && left[at - 1].panel > l.panel; --at) left[at] = left[at - 1];
        left[at] = l;
        if (found == micro_rows * block_columns()) return found;
      }
    }
    return found;
  }

  // ---- rank, score, merge

  // The groups with the k largest maxima: their scores are a threshold that few others reach.
  // Rows that have k already have one, but maybe a poor one of a coarser scan (`again`).
  void score_first_groups(bool again) {
    first_pass = true;
    parallel_for(rows, workers_, [&](int64_t i, int worker) {
      counts[i] = again || !is_full(i) ? first_groups(i, worker) : 0;
    });
    score_counted();
    first_pass = false;
  }

  void score_other_groups() {
    parallel_for(rows, workers_, [&](int64_t i, int worker) {
      counts[i] = other_groups(i, worker);
      if (p.above) p.above[row0 + i] += lost_of_others(i, worker);
    });
    score_counted();
  }

  // Whether the other groups are so many that scanning anew is less work.
  bool too_many() {
    parallel_for(rows, workers_, [&](int64_t i, int worker) { counts[i] = other_groups(i, worker); });
    int64_t pairs = 0;
    for (int64_t i = 0; i < rows; ++i) pairs += counts[i];
    return double(pairs * group) > 0.2 * double(rows) * double(columns);
  }

  // As many rows at once as there is room for.
  void score_counted() {
    for (int64_t begin = 0; begin < rows;) {
      int64_t end = begin, pairs = 0;
      while (end < rows && pairs + counts[end] <= pair_capacity) pairs += counts[end++];
      if (pairs > 0) score_rows(begin, end, pairs);
      begin = end;
    }
  }

  const float* bounds_of(int64_t i, int worker) {
    float* e = eps_of + worker * span_blocks();
    for (int64_t b = 0; b < blocks; ++b) e[b] = first_pass ? 0 : epsilon(x_coarse[i], b);
    return e;
  }
  // Groups whose maximum is below cannot hold a winner; -inf: every group may.
  float reach(int64_t i, float e) const {
    const double least = tau[i] - double(e);
    if (!(e < 1e37f)) return -infinity<float>;
    if (!(least > -1e37)) return -largest_finite<float>;
    if (first_pass) return float(least);
    return float(least) - float(magnitude(least)) * 0x1p-23f;
  }
  bool is_full(int64_t i) const { return p.indices[(row0 + i) * p.k + p.k - 1] >= 0; }

  // Which groups of a block of row i are to be scored: those that reach `least`, but not twice.
  uint32_t chosen(int64_t i, int64_t b, float least) const {
    const Vec<float> value = load(most + i * span_groups + b * n);
    return bits_of(~(value < least)) & ~uint32_t(visited[i * span_blocks() + b]);
  }

  int64_t first_groups(int64_t i, int worker) {
    if (!(x_coarse[i].norm == x_coarse[i].norm)) return 0;
    const float* m = most + i * span_groups;
    const auto known = [&](int64_t b) {
      const Vec<float> v = load(m + b * n);
      return v <= largest_finite<float> ? v : splat(-infinity<float>);
    };
    tau[i] = double(kth_best(known, worker));
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) count += __builtin_popcount(chosen(i, b, reach(i, 0)));
    return count;
  }

  int64_t other_groups(int64_t i, int worker) {
    const Coarse& x = x_coarse[i];
    if (!(x.norm == x.norm)) return 0;
    const float* e = bounds_of(i, worker);
    const float* m = most + i * span_groups;
    if (is_full(i)) {
      tau[i] = to_scan(x, double(static_cast<R*>(p.scores)[(row0 + i) * p.k + p.k - 1]));
    } else {
      // What a group certainly holds; nothing where its maximum may be above the limit.
      const float upper = p.upper ? float(upper_of(i)) : infinity<float>;
      tau[i] = double(kth_best(
          [&](int64_t b) {
            const Vec<float> value = load(m + b * n);
            const Vec<float> sure = value - e[b];
            const float limit = upper < infinity<float>
                                    ? upper - e[b] - magnitude(upper) * 0x1p-22f
                                    : infinity<float>;
            return (sure <= largest_finite<float>) & (value <= limit) ? sure
                                                                      : splat(-infinity<float>);
          },
          worker));
    }
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      count += __builtin_popcount(chosen(i, b, reach(i, e[b])));
    }
    return count;
  }

  // How many candidates are above the limit in groups of row i that are never scored.
  int64_t lost_of_others(int64_t i, int worker) {
    if (!(x_coarse[i].norm == x_coarse[i].norm)) return 0;
    const float* e = bounds_of(i, worker);
    int64_t over = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const uint32_t scored = chosen(i, b, reach(i, e[b])) | visited[i * span_blocks() + b];
      for (int l = 0; l < n; ++l) over += scored >> l & 1 ? 0 : lost[i * span_groups + b * n + l];
    }
    return over;
  }

  // The k-th largest lane of value(b) over the blocks, -inf where there are fewer.
  template <class F>
  float kth_best(F&& value, int worker) {
    float bound = -infinity<float>;
    if (groups() < p.k) return bound;
    float* v = values + worker * (span_groups + 2 * n);
    // Maxima of maxima are fewer: their k-th largest is a first bound.
    const int64_t step = clamp<int64_t>(groups() / (4 * p.k), 1, 16);
    int64_t found = 0;
    if (step > 1) {
      for (int64_t b = 0; b < blocks; b += step) {
        Vec<float> best = value(b);
        for (int64_t j = b + 1; j < minimum(blocks, b + step); ++j) best = vmax(best, value(j));
        store(v + found, best);
        found += n;
      }
      if (found >= p.k) bound = kth_largest(v, found, p.k);
      found = 0;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const Vec<float> some = value(b);
      found = append(v, found, some, some >= bound);
    }
    return kth_largest(v, found, p.k);
  }

  template <class Mask>
  static uint32_t bits_of(Mask mask) {
#if ISA_AVX512
    return _mm512_movepi32_mask((__m512i)mask);
#else
    uint32_t bits = 0;
    for (int l = 0; l < n; ++l) bits |= uint32_t(mask[l] & 1) << l;
    return bits;
#endif
  }
  template <class Mask>
  static int64_t append(float* out, int64_t at, Vec<float> value, Mask mask) {
#if ISA_AVX512
    const __mmask16 bits = _mm512_movepi32_mask((__m512i)mask);
    if (!bits) return at;
    store(out + at, (Vec<float>)_mm512_maskz_compress_ps(bits, (__m512)value));
    return at + __builtin_popcount(bits);
#else
    for (int l = 0; l < n; ++l) {
      if (mask[l]) out[at++] = value[l];
    }
    return at;
#endif
  }

  void score_rows(int64_t begin, int64_t end, int64_t pairs) {
    int64_t total = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = counts[i];
      counts[i] = total;
      total += count;
    }
    parallel_for(end - begin, workers_, [&](int64_t at, int worker) {
      const int64_t i = begin + at, stop = i + 1 < end ? counts[i + 1] : pairs;
      if (counts[i] == stop) return;
      const float* e = bounds_of(i, worker);
      int64_t slot = counts[i];
      for (int64_t b = 0; b < blocks; ++b) {
        uint32_t now = chosen(i, b, reach(i, e[b]));
        visited[i * span_blocks() + b] |= uint16_t(now);
        for (; now; now &= now - 1) {
          pair_group[slot] = int32_t(b * n + __builtin_ctz(now));
          pair_row[slot++] = int32_t(i);
        }
      }
    });
    order_by_group(pair_group, pairs, groups(), pair_order, group_begin);
    p.metric == Metric::l2 ? score_groups<Metric::l2>() : score_groups<Metric::dot>();
    parallel_for(end - begin, workers_, [&](int64_t at, int worker) {
      const int64_t i = begin + at, stop = i + 1 < end ? counts[i + 1] : pairs;
      if (counts[i] == stop) return;
      SelectProblem shifted = p;
      shifted.first = p.first + col0;
      shifted.count = columns;
      const double least = first_pass ? -infinity<double> : to_score(x_coarse[i], tau[i]);
      MergeRow<R> merge;
      merge.p = &shifted;
      merge.row = row0 + i;
      merge.groups = stop - counts[i];
      merge.group_size = group;
      merge.group = pair_group + counts[i];
      merge.score = pair_score + counts[i] * group;
      merge.bound = R(least);
      merge.scratch = merge_scratch + worker * (p.k + span_groups * group);
      merge_row(merge);
    });
    p.rescored += pairs * group;
  }

  template <Metric metric>
  void score_groups() {
    parallel_for(groups(), workers_, [&](int64_t g, int worker) {
      if (group_begin[g] == group_begin[g + 1]) return;
      const KeepSubnormals keep;
      double* wide = y_wide + worker * group * width;
      for (int64_t c = 0; c < group; ++c) {
        const int64_t column = g * group + c;
        double* to = wide + c * width;
        if (column >= columns) {
          __builtin_memset(to, 0, size_t(width) * sizeof(double));
          continue;
        }
        const R* row = static_cast<const R*>(p.y) + (col0 + column) * p.y_stride;
        const bool as_it_lies = p.dim == width &&
                                p.dtype == (sizeof(R) == 8 ? DType::float64 : DType::float32);
        if (!as_it_lies) {
          R* copy = y_rows + worker * 2 * n * width;
          read_row(p.dtype, p.y, p.y_stride, col0 + column, p.dim, copy);
          row = copy;
        }
        widen_row(row, width, y_measure[column].factor, to);
      }
      constexpr int step = ISA_AVX512 ? 8 : 2;
      for (int64_t c = 0; c < group; c += minimum<int64_t>(step, group)) {
        const double* y = wide + c * width;
        int64_t at = group_begin[g];
        for (; at + 1 < group_begin[g + 1]; at += 2) score_pairs<metric, 2>(at, y, c);
        if (at < group_begin[g + 1]) score_pairs<metric, 1>(at, y, c);
      }
    });
  }

  // Columns [c, c + step) of a group with the queries of some pairs.
  template <Metric metric, int queries>
  void score_pairs(int64_t at, const double* y, int64_t c) {
    constexpr int step = ISA_AVX512 ? 8 : 2;
    const R* x[queries];
    R* out[queries];
    for (int q = 0; q < queries; ++q) {
      const int64_t pair = pair_order[at + q];
      x[q] = x_rows + pair_row[pair] * width;
      out[q] = pair_score + pair * group + c;
    }
    if (group >= step) return score_columns<R, metric, queries, step>(x, y, width, out);
    if (group == 4) return score_columns<R, metric, queries, 4>(x, y, width, out);
    score_columns<R, metric, queries, 2>(x, y, width, out);
  }
};

template <class R>
void select_as(SelectProblem& problem) {
  const double work = double(problem.rows) * double(problem.count) * double(problem.dim);
  Selector<R> selector(problem, work < 1e6 ? 1 : available_workers());
  Cursor measure(nullptr);
  selector.layout(measure);
  const Arena arena(measure.used());
  Cursor cursor(arena.data());
  selector.layout(cursor);
  selector.run();
}
