// What a summary is made of: the numbers of one row's kept negatives, on request, in three forms.
// Those of a strip run lane by lane, those of a tile wait for the end of the scan, and in double
// they are added up with what is not scanned.
#pragma once

// Lane by lane, over the candidates of one row or the rows that one column meets. `sum` and
// `weighted` are of 2^(t - base) and 2^(t - base) (t - base).
template <class Acc>
struct LaneSummary {
  using V = Vec<Acc>;
  V max = splat(-infinity<Acc>), sum = {}, weighted = {}, logits = {}, count = {}, above = {};

  // Bounded logits need no base; elsewhere `base` is no less than t, so that every term of
  // `weighted` has one sign: nothing cancels.
  template <bool bounded>
  void add(V t, V base, V limit) {
    const auto left_out = t == splat(-infinity<Acc>);
    const V kept = left_out ? V{} : t, one = splat(Acc(1));
    const V e = exp2(bounded ? t : t - base);
    max = vmax(t, max);
    sum += e;
    weighted += bounded ? e * kept : left_out ? V{} : e * (t - base);
    logits += kept;
    count += left_out ? V{} : one;
    above += t > limit ? one : V{};
  }
  // What came before, to a base that is no less.
  void lower(V from, V base) {
    const V shift = from == splat(-infinity<Acc>) ? V{} : from - base, factor = exp2(shift);
    weighted = (weighted + sum * shift) * factor;
    sum *= factor;
  }
};

// A tile's part of a row's.
template <class Acc>
struct PartSummary {
  Acc max, sum, weighted, logits, count, above;
};

// Exponentials 2^t with what their entropy needs: sum 2^(t - max) and sum 2^(t - max) (t - max).
struct EntropySum {
  double max = -infinity<double>, sum = 0, weighted = 0;

  void add(double other_max, double other_sum, double other_weighted) {
    if (other_sum == 0) return;
    const double most = maximum(max, other_max);
    lower(most, max, sum, weighted);
    lower(most, other_max, other_sum, other_weighted);
    max = most;
    sum += other_sum;
    weighted += other_weighted;
  }
  double nats() const {
    const double nats = sum == 0 ? 0 : std::log(sum) - weighted / sum * ln2;
    return nats < 0 ? 0 : nats;
  }

 private:
  static void lower(double most, double from, double& sum, double& weighted) {
    if (sum == 0 || from == most) return;  // always, where logits are bounded
    const double shift = from - most, factor = std::exp2(shift);
    weighted = factor == 0 ? 0 : (weighted + sum * shift) * factor;
    sum *= factor;
  }
};

struct Summary {
  EntropySum entropy;
  double hardest = -infinity<double>, above = 0, count = 0, logits = 0;

  template <class Acc>
  void add(const PartSummary<Acc>& part, bool bounded) {
    entropy.add(bounded ? 0 : double(part.max), double(part.sum), double(part.weighted));
    hardest = maximum(hardest, double(part.max));
    above += double(part.above);
    count += double(part.count);
    logits += double(part.logits);
  }
  void add(double t, double limit) {
    if (t == -infinity<double>) return;
    entropy.add(t, 1, 0);
    hardest = maximum(hardest, t);
    above += t > limit;
    ++count;
    logits += t;
  }
};
