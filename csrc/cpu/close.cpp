#include "close.h"

namespace contrastive_ops {

double close_pair(double logit, double weight, double* coefficient) {
  const double x = -logit * ln2, e = std::exp(-std::fabs(x));
  *coefficient = -weight * (x >= 0 ? 1 : e) / (1 + e);
  return x == x ? (x > 0 ? x : 0) + std::log1p(e) : x;
}

template <class Acc>
Closed close_row(const Negatives& negatives, const Acc* positive, const int64_t* index,
                 int64_t positives, double smoothing, double weight, double* coefficient) {
  if (positives == 0) return {negatives.lse * ln2, negatives.lse, 0};
  if (positives == 1) {
    // softplus and sigmoid of the same difference: the positive's own exponential never enters,
    // so nothing cancels however close the row is to being solved.
    const double p = double(*positive);
    const double x = (negatives.lse - p) * ln2;
    const double e = std::exp(-std::fabs(x));
    const double sigmoid = x >= 0 ? 1 / (1 + e) : e / (1 + e);
    const double softplus = (x > 0 ? x : 0) + std::log1p(e);
    Closed closed{x == x ? softplus : x, 0, 0};
    closed.lse = p + closed.loss * log2e;
    double c = -sigmoid;
    if (smoothing > 0) {
      const double n = negatives.count + 1;
      closed.loss += smoothing * (p * ln2 - (negatives.logit_sum + p * ln2) / n);
      closed.smooth = weight * smoothing / n;
      c += smoothing * (1 - 1 / n);
    }
    *coefficient = weight * c;
    return closed;
  }
  LogSum sum;
  double total = 0, count = 0;
  for (int64_t i = 0; i < positives; ++i) {
    if (index && index[i] < 0) continue;
    sum.add(double(positive[i]), 1);
    total += double(positive[i]);
    ++count;
  }
  const double mean = count > 0 ? total / count : 0;
  sum.add(negatives.lse, negatives.lse == -std::numeric_limits<double>::infinity() ? 0 : 1);
  Closed closed{0, sum.log2(), 0};
  closed.loss = (closed.lse - mean) * ln2;
  double target = 1 / count, spread = 0;
  if (smoothing > 0) {
    const double n = negatives.count + count;
    closed.loss += smoothing * (mean * ln2 - (negatives.logit_sum + total * ln2) / n);
    spread = smoothing / n;
    target *= 1 - smoothing;
  }
  closed.smooth = weight * spread;
  for (int64_t i = 0; i < positives; ++i) {
    coefficient[i] = index && index[i] < 0
                         ? 0
                         : weight * (std::exp2(double(positive[i]) - closed.lse) - target - spread);
  }
  return closed;
}

template Closed close_row(const Negatives&, const float*, const int64_t*, int64_t, double, double,
                          double*);
template Closed close_row(const Negatives&, const double*, const int64_t*, int64_t, double, double,
                          double*);

}  // namespace contrastive_ops
