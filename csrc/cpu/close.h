// The scalar end of a row (or column): from the log-sum-exp of its negatives and the logits of its
// positives to its loss and to the coefficients of its gradient. All in double, and all logits in
// units of log 2, as the kernel keeps them.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace contrastive_ops {

constexpr double log2e = 1.4426950408889634;
constexpr double ln2 = 0.6931471805599453;

// A sum of exponentials, sum * 2^max.
struct LogSum {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;

  void add(double other_max, double other_sum) {
    if (other_sum == 0) return;
    if (other_max == max) {  // always, where maxima are not needed
      sum += other_sum;
    } else if (other_max < max) {
      sum += other_sum * std::exp2(other_max - max);
    } else {
      sum = (sum == 0 ? 0 : sum * std::exp2(max - other_max)) + other_sum;
      max = other_max;
    }
  }
  double log2() const {
    return sum == 0 ? -std::numeric_limits<double>::infinity() : max + std::log2(sum);
  }
};

struct Negatives {
  double lse;        // -inf: there are none
  double logit_sum;  // smoothing only: of the kept ones, and how many
  double count;
};

struct Closed {
  double loss;
  double lse;     // over positives and negatives
  double smooth;  // what smoothing takes off the coefficient of every kept candidate
};

// One pair that is a yes of its own: softplus(-l) of its logit, and its coefficient.
double close_pair(double logit, double weight, double* coefficient);

// `positive`: `positives` logits, those of a negative `index` skipped (null: none to skip).
// Writes dL/dl * weight of the positives to `coefficient`, 0 for skipped ones.
template <class Acc>
Closed close_row(const Negatives& negatives, const Acc* positive, const int64_t* index,
                 int64_t positives, double smoothing, double weight, double* coefficient);

}  // namespace contrastive_ops
