// What a row sees, on request: how many kept negatives are above its best positive, the largest,
// their count and sum, and the entropy of its softmax. Taken from a strip's logits, before they
// turn into exponentials.
#pragma once

template <class S>
void summarise_strip(const Strip<S>& strip, typename S::Acc factor) {
  using Acc = typename S::Acc;
  using V = Vec<Acc>;
  const S& st = strip.st;
  RowSummary<Acc>* out =
      st.part_summary + strip.tile.index * st.rows + (strip.row - strip.stripe.begin);
  const V one = splat(Acc(1)), lowest = splat(-infinity<Acc>);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Acc* s = strip.s + r * tile_stride;
    const V limit = splat(st.rank_limit[strip.row + r]);
    V most = lowest, logits = {}, count = {}, above = {};
    for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) {
      const V t = load(s + j) * factor;
      const auto left_out = t == lowest;
      most = vmax(t, most);
      logits += left_out ? V{} : t;
      count += left_out ? V{} : one;
      above += t > limit ? one : V{};
    }
    const Acc largest = max_lanes<Acc>(most);
    const Acc base = largest == -infinity<Acc> ? Acc(0) : largest;
    // Relative to the largest every term of the weighted sum has one sign: nothing cancels.
    V sum = {}, weighted = {};
    for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) {
      const V t = load(s + j) * factor;
      const V below = t - base, e = exp2(below);
      sum += e;
      weighted += t == lowest ? V{} : e * below;
    }
    out[r] = {largest,
              Acc(sum_lanes<Acc>(sum)),
              Acc(sum_lanes<Acc>(weighted)),
              Acc(sum_lanes<Acc>(logits)),
              Acc(sum_lanes<Acc>(count)),
              Acc(sum_lanes<Acc>(above))};
  }
}

// Exponentials 2^t with what their entropy needs: sum 2^(t - max) and sum 2^(t - max) (t - max).
struct EntropySum {
  double max = -infinity<double>, sum = 0, weighted = 0;

  void add(double other_max, double other_sum, double other_weighted) {
    if (other_max == -infinity<double>) return;
    const double most = maximum(max, other_max);
    lower_to(most, max, sum, weighted);
    lower_to(most, other_max, other_sum, other_weighted);
    max = most;
    sum += other_sum;
    weighted += other_weighted;
  }
  double nats() const { return sum == 0 ? 0 : std::log(sum) - weighted / sum * ln2; }

 private:
  static void lower_to(double most, double from, double& sum, double& weighted) {
    if (sum == 0) return;
    const double shift = from - most, factor = std::exp2(shift);
    weighted = factor == 0 ? 0 : (weighted + sum * shift) * factor;
    sum *= factor;
  }
};

// From the partial summaries of a row to its numbers, each in an array of its own.
template <class S>
void summarise_row(const S& st, const Stripe& s, int64_t local) {
  const auto& p = st.p;
  const int64_t row = s.begin + local;
  const double limit = double(st.rank_limit[row]);
  EntropySum entropy;
  double hardest = -infinity<double>, above = 0, count = 0, logits = 0;
  for (int64_t t = 0; t < st.tiles; ++t) {
    const auto& part = st.part_summary[t * st.rows + local];
    entropy.add(double(part.max), double(part.sum), double(part.weighted));
    hardest = maximum(hardest, double(part.max));
    above += double(part.above);
    count += double(part.count);
    logits += double(part.logits);
  }
  for (int64_t h = 0; h < p.own.count; ++h) {
    const double t = double(st.own_logit[row * p.own.count + h]);
    if (t == -infinity<double>) continue;
    entropy.add(t, 1, 0);
    hardest = maximum(hardest, t);
    above += t > limit;
    ++count;
    logits += t;
  }
  double positive = 0, positives = 0;
  for (int64_t k = 0; k < p.positives; ++k) {
    if (st.positive_index(row, k) < 0) continue;
    const double t = double(st.positive_logit[row * p.positives + k]);
    entropy.add(t, 1, 0);
    positive += t;
    ++positives;
  }
  const double numbers[] = {above,        hardest * ln2, count, logits * ln2,
                            positive / positives * ln2, entropy.nats()};
  for (int i = 0; i < summary_numbers; ++i) p.summary[i * p.rows + row] = numbers[i];
}
