// Summaries, taken from a strip's logits before they turn into exponentials, and their end. The
// strips of one set serve their columns, too.
#pragma once

template <bool bounded, class S>
void summarise_rows(const Strip<S>& strip, typename S::Acc factor) {
  using Acc = typename S::Acc;
  using V = Vec<Acc>;
  const S& st = strip.st;
  // Lanes hold a few terms; tiles are added in double.
  const auto add = [](V v) { return fold(v, [](auto a, auto b) { return a + b; }); };
  PartSummary<Acc>* out =
      st.part_summary + strip.tile.index * st.rows + (strip.row - strip.stripe.begin);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Acc* s = strip.s + r * tile_stride;
    V base = {};
    if constexpr (!bounded) {
      V most = splat(-infinity<Acc>);
      for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) most = vmax(load(s + j) * factor, most);
      const Acc largest = max_lanes<Acc>(most);
      base = splat(largest == -infinity<Acc> ? Acc(0) : largest);
    }
    const V limit = splat(st.rank_limit[strip.row + r]);
    LaneSummary<Acc> seen;
    for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) {
      seen.template add<bounded>(load(s + j) * factor, base, limit);
    }
    out[r] = {max_lanes<Acc>(seen.max),
              add(seen.sum),
              add(seen.weighted),
              add(seen.logits),
              add(seen.count),
              add(seen.above)};
  }
}

// Running over the strips of a task; `s` is what the columns see.
template <bool bounded, class S>
void summarise_columns(const Strip<S>& strip, const typename S::Acc* s, typename S::Acc factor,
                       int64_t chunk, bool first) {
  using Acc = typename S::Acc;
  using V = Vec<Acc>;
  const S& st = strip.st;
  const V lowest = splat(-infinity<Acc>);
  LaneSummary<Acc>* out = st.column_part_summary +
                          (chunk * st.keys.tiles * st.tile_columns + strip.tile.begin) / lanes<Acc>;
  for (int64_t j = 0; j < strip.columns; j += lanes<Acc>, ++out) {
    LaneSummary<Acc> seen;
    if (!first) seen = *out;
    V base = {};
    if constexpr (!bounded) {
      V most = seen.max;
      for (int64_t r = 0; r < strip.rows; ++r) {
        most = vmax(load(s + r * tile_stride + j) * factor, most);
      }
      base = most == lowest ? V{} : most;
      seen.lower(seen.max, base);
    }
    const V limit = load(st.rank_limit + strip.tile.begin + j);
    for (int64_t r = 0; r < strip.rows; ++r) {
      seen.template add<bounded>(load(s + r * tile_stride + j) * factor, base, limit);
    }
    *out = seen;
  }
}

template <class S>
void summarise_strip(const Strip<S>& strip, const typename S::Acc* column_s,
                     typename S::Acc factor, int64_t chunk, bool first) {
  strip.st.bounded ? summarise_rows<true>(strip, factor) : summarise_rows<false>(strip, factor);
  if (!strip.st.column_part_summary) return;
  strip.st.bounded ? summarise_columns<true>(strip, column_s, factor, chunk, first)
                   : summarise_columns<false>(strip, column_s, factor, chunk, first);
}

// What column j of one set met in `chunks` of a stripe, added to what it met in earlier ones.
template <class S>
void fold_column_summary(const S& st, const Stripe& s, int64_t j, int64_t chunks) {
  using Acc = typename S::Acc;
  constexpr int n = lanes<Acc>;
  Summary& sum = st.column_summary[j];
  if (s.index == 0) sum = {};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const LaneSummary<Acc>& of =
        st.column_part_summary[(chunk * st.keys.tiles * st.tile_columns + j) / n];
    const int64_t i = j % n;
    sum.add(PartSummary<Acc>{of.max[i], of.sum[i], of.weighted[i], of.logits[i], of.count[i],
                             of.above[i]},
            st.bounded);
  }
}

// A row's six numbers, each to an array of its own.
template <class S>
void summarise_row(const S& st, const Stripe& s, int64_t local) {
  const auto& p = st.p;
  const int64_t row = s.begin + local;
  int64_t first = 0;
  Summary sum;
  if (p.one_set) {  // left of the diagonal, the row was a column
    first = st.first_tile(s) + local / st.tile_columns;
    sum = st.column_summary[row];
  }
  for (int64_t t = first; t < st.tiles; ++t) {
    sum.add(st.part_summary[t * st.rows + local], st.bounded);
  }
  for (int64_t h = 0; h < p.own.count; ++h) {
    sum.add(double(st.own_logit[row * p.own.count + h]), double(st.rank_limit[row]));
  }
  double positive = 0, positives = 0;
  for (int64_t k = 0; k < p.positives; ++k) {
    if (st.positive_index(row, k) < 0) continue;
    const double t = double(st.positive_logit[row * p.positives + k]);
    sum.entropy.add(t, 1, 0);
    positive += t;
    ++positives;
  }
  const double numbers[] = {sum.above,        sum.hardest * ln2,          sum.count,
                            sum.logits * ln2, positive / positives * ln2, sum.entropy.nats()};
  for (int i = 0; i < summary_numbers; ++i) p.summary[i * p.rows + row] = numbers[i];
}
