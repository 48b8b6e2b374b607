// The parts of the selection that no instruction set makes faster.
#include "select.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"

namespace contrastive_ops {

void check(const SelectProblem& p) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("contrastive_ops::select: ") + what);
  };
  require(p.rows > 0 && p.count > 0 && p.dim > 0 && p.x && p.y, "there are no rows");
  require(p.count < std::numeric_limits<int32_t>::max(), "too many candidates for one call");
  require(p.k > 0 && p.scores && p.indices, "there is nothing to select");
  require(!p.above || p.upper, "a count needs a limit");
  require(!p.exclude_begin == !p.exclude, "exclusions need both arrays");
  if (!p.exclude_begin) return;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t e = p.exclude_begin[i] + 1; e < p.exclude_begin[i + 1]; ++e) {
      require(p.exclude[e - 1] < p.exclude[e], "exclusions are not in ascending order");
    }
  }
}

float kth_largest(float* values, int64_t n, int64_t k) {
  std::nth_element(values, values + (k - 1), values + n, std::greater<float>());
  return values[k - 1];
}

const int64_t* lower_bound(const int64_t* begin, const int64_t* end, int64_t value) {
  return std::lower_bound(begin, end, value);
}

void order_by_group(const int32_t* group, int64_t pairs, int64_t groups, int32_t* order,
                    int64_t* begin) {
  std::fill(begin, begin + groups + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) ++begin[group[i] + 1];
  for (int64_t g = 0; g < groups; ++g) begin[g + 1] += begin[g];
  for (int64_t i = 0; i < pairs; ++i) order[begin[group[i]]++] = int32_t(i);
  for (int64_t g = groups; g > 0; --g) begin[g] = begin[g - 1];
  begin[0] = 0;
}

template <class R>
void merge_row(const MergeRow<R>& m) {
  const SelectProblem& p = *m.p;
  R* scores = static_cast<R*>(p.scores) + m.row * p.k;
  int64_t* indices = p.indices + m.row * p.k;
  const bool full = indices[p.k - 1] >= 0;
  const R bound = full ? std::max(m.bound, scores[p.k - 1]) : m.bound;
  const R upper =
      p.upper ? static_cast<const R*>(p.upper)[m.row] : std::numeric_limits<R>::infinity();
  const int64_t *out_begin = nullptr, *out_end = nullptr;
  if (p.exclude_begin) {
    out_begin = p.exclude + p.exclude_begin[m.row];
    out_end = p.exclude + p.exclude_begin[m.row + 1];
  }
  int64_t found = 0, above = 0;
  for (int64_t g = 0; g < m.groups; ++g) {
    const int64_t first = int64_t(m.group[g]) * m.group_size;
    const int64_t count = std::min(m.group_size, p.count - first);
    const R* score = m.score + g * m.group_size;
    for (int64_t c = 0; c < count; ++c) {
      if (!(score[c] >= bound)) continue;  // nor NaN
      const int64_t index = p.first + first + c;
      if (out_begin && std::binary_search(out_begin, out_end, index)) continue;
      if (score[c] > upper) {
        ++above;
        continue;
      }
      m.scratch[found++] = {score[c], index};
    }
  }
  if (p.above) p.above[m.row] += above;
  if (found == 0) return;
  for (int64_t e = 0; e < p.k && indices[e] >= 0; ++e) {
    m.scratch[found++] = {scores[e], indices[e]};
  }
  const auto better = [](const Ranked<R>& a, const Ranked<R>& b) {
    return a.score > b.score || (a.score == b.score && a.index < b.index);
  };
  const int64_t kept = std::min(found, p.k);
  if (kept < found) std::nth_element(m.scratch, m.scratch + (kept - 1), m.scratch + found, better);
  std::sort(m.scratch, m.scratch + kept, better);
  for (int64_t e = 0; e < kept; ++e) {
    scores[e] = m.scratch[e].score;
    indices[e] = m.scratch[e].index;
  }
}
template void merge_row(const MergeRow<float>&);
template void merge_row(const MergeRow<double>&);

}  // namespace contrastive_ops
