// Exact top-k selection, as the CPU kernel sees it: raw pointers and numbers, no torch.
//
// The score of query i and candidate j is defined in double, in one order of summation, and rounded
// to the result's type once (score.h); the k best of a row are those with the largest scores, ties
// to the lower index. A scan in low precision emits nothing but the maximum of each group of
// candidates per row. Whatever a group's maximum says, minus the scan's rigorous error bound, is a
// score that the row has; the k-th largest of these is a threshold that the k best reach, and only
// groups whose maximum plus the bound reaches it are scored. So the answer does not depend on the
// scan's precision, on blocks, groups, threads or instruction sets.
#pragma once
#include <cstdint>

#include "problem.h"

namespace contrastive_ops {

enum class Metric { dot, l2 };  // l2: score = -|x - y|^2
enum class Scan { automatic, float32, bfloat16, int8 };

struct SelectProblem {
  DType dtype = DType::float32;
  int64_t rows = 0, count = 0, dim = 0;
  const void* x = nullptr;  // (rows, dim)
  const void* y = nullptr;  // (count, dim), unit stride in the last dimension as x
  int64_t x_stride = 0, y_stride = 0;
  bool normalize = true;
  Metric metric = Metric::dot;
  Scan scan = Scan::automatic;
  int64_t first = 0;  // the index that candidate 0 goes by
  int64_t k = 1;

  // Of row i: exclude[exclude_begin[i] .. exclude_begin[i + 1]), ascending indices; null: none.
  const int64_t* exclude_begin = nullptr;
  const int64_t* exclude = nullptr;
  const void* upper = nullptr;  // (rows), of the scores' type: candidates above are left out
  int64_t workspace_bytes = 0;

  // In and out: the best so far, as (score, index) in descending order, padded with (-inf, -1).
  void* scores = nullptr;       // (rows, k): double for float64, else float
  int64_t* indices = nullptr;   // (rows, k)
  int64_t* above = nullptr;     // (rows): += candidates that `upper` left out; needs `upper`
  // Out.
  int64_t rescored = 0;         // pairs of a query and a candidate that were scored in double
  int64_t nan_rows = 0;         // candidates that hold NaN or have no direction: never selected
};

void select(SelectProblem& problem);

// ---- between the instruction sets' code and what needs none (select.cpp)

// The k-th largest of n >= k numbers, which it reorders.
float kth_largest(float* values, int64_t n, int64_t k);

template <class R>
struct Ranked {
  R score;
  int64_t index;
};

// The candidates of one row, group by group, and where the best of them go.
template <class R>
struct MergeRow {
  const SelectProblem* p;
  int64_t row, groups, group_size;
  const int32_t* group;   // (groups): their numbers
  const R* score;         // (groups, group_size)
  R bound;                // smaller scores need not be looked at
  Ranked<R>* scratch;     // room for k + groups * group_size
};
template <class R>
void merge_row(const MergeRow<R>& m);

// The first place in [begin, end) of ascending numbers that is >= value.
const int64_t* lower_bound(const int64_t* begin, const int64_t* end, int64_t value);

// Rows [0, groups) brought in order of group: `order` lists the pairs, group g's in
// [begin[g], begin[g + 1]).
void order_by_group(const int32_t* group, int64_t pairs, int64_t groups, int32_t* order,
                    int64_t* begin);

}  // namespace contrastive_ops
