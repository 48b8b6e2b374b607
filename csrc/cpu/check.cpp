#include "check.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace contrastive_ops {
namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("contrastive_ops::run: ") + what);
}

template <class Acc>
void check_block(const Problem<Acc>& p, const Block<Acc>& block) {
  require(block.count >= 0, "a block's count is negative");
  require(block.count == 0 || block.y, "a block has rows but no data");
  require(block.group >= 0, "a block's group is negative");
  require(!block.ids || (p.row_ids && p.id_pairs > 0), "a block has ids but the rows have none");
  require(!block.guide || (p.row_guide && p.guide_threshold && p.guide_dim > 0),
          "a block has a guide but the rows have none");
}

}  // namespace

template <class Acc>
void check(const Problem<Acc>& p, Mode mode) {
  require(sizeof(Acc) == 8 ? p.dtype == DType::float64 : p.dtype != DType::float64,
          "dtype does not go with the type of the accumulator");
  require(p.rows > 0 && p.dim > 0 && p.x, "there are no rows");
  require(p.scale > 0, "scale is not positive");
  require(p.positives >= 0, "positives is negative");
  require(p.smoothing >= 0 && p.smoothing <= 1, "smoothing is not in [0, 1]");
  check_block(p, p.keys);
  check_block(p, p.negatives);
  require(p.own.count >= 0 && (p.own.count == 0 || p.own.y), "own has a count but no data");
  if (p.positives == 0) {
    require(p.smoothing == 0, "smoothing needs positives");
    require(!p.two_directions, "two directions need positives");
    require(!(p.false_negative_margin < Acc(__builtin_inff())),
            "a false-negative margin needs positives");
  } else if (!p.positive) {
    require(p.positives == 1, "several positives need an index");
    require(p.keys.count >= p.rows, "there are fewer keys than rows");
  } else {
    for (int64_t e = 0; e < p.rows * p.positives; ++e) {
      require(p.positive[e] < p.keys.count, "a positive is out of range");
    }
  }
  if (p.two_directions) {
    require(!p.positive && p.positives == 1, "two directions take key i as the positive of row i");
    require(p.keys.scanned && !p.keys.guide, "two directions need scanned keys without a guide");
  }
  if (p.one_set) {
    require(p.keys.y == p.x && p.keys.count == p.rows && p.keys.scanned, "one set has one matrix");
    require(!p.two_directions && p.own.count == 0 && p.negatives.count == 0 && !p.keys.guide &&
                !p.keys.grad,
            "one set takes no other candidates, guide, or second direction");
    require(p.positive || p.positives == 0, "one set takes its positives by index");
  }
  if (p.pairwise) {
    require(!p.two_directions && !p.one_set && p.own.count == 0 && p.smoothing == 0,
            "pairs that are not normalised have one direction and no smoothing");
  }
  if (p.prefix_count) {
    require(p.prefixes && p.prefixes_apart && p.prefix_count <= most_prefixes,
            "prefixes need their arrays");
    require(!p.pairwise, "prefixes are of a softmax");
    require(!(p.two_directions || p.one_set) || !(p.false_negative_margin < Acc(__builtin_inff())),
            "prefixes whose columns have losses take no false-negative margin");
    require(p.prefix_weight || !p.two_directions, "losses that are not summed have one direction");
    require(p.prefix_weight || p.weight || mode == Mode::forward,
            "losses that are not summed need their weights");
    for (int64_t l = 0; l < p.prefix_count; ++l) {
      require(p.prefixes[l] > (l ? p.prefixes[l - 1] : 0), "prefixes are not ascending");
      require(p.prefixes[l] % 2 == 0 || p.dtype != DType::bfloat16 || l == p.prefix_count - 1,
              "prefixes of bfloat16 rows are even");
    }
    require(p.prefixes[p.prefix_count - 1] == p.dim, "the last prefix is not the whole row");
  }
  if (mode == Mode::backward) {
    require(p.row.lse, "a backward needs the rows' statistics");
    require(!p.two_directions || p.column.lse, "a backward needs the columns' statistics");
    require(!p.pairwise || p.row.sum, "a pairwise backward needs the rows' sums");
    require(p.smoothing == 0 || (p.row.sum && p.row.count),
            "a backward with smoothing needs sums and counts");
    require(p.smoothing == 0 || !p.two_directions || (p.column.sum && p.column.count),
            "a backward with smoothing needs the columns' sums and counts");
  }
}

template <class Acc>
void check(const TokenProblem<Acc>& p) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("contrastive_ops::token_similarity: ") + what);
  };
  require(sizeof(Acc) == 8 ? p.dtype == DType::float64 : p.dtype != DType::float64,
          "dtype does not go with the type of the accumulator");
  require(p.dim > 0, "rows have no elements");
  for (const Tokens* t : {&p.queries, &p.documents}) {
    require(t->count > 0 && t->length > 0 && t->data, "there are no tokens");
    require(t->length <= std::numeric_limits<int32_t>::max(), "too many tokens");
  }
  require(p.where && (p.scores || p.grad), "there is nowhere to write to");
  if (!p.grad) return;
  const int64_t length = p.queries.length, width = p.documents.length;
  const int32_t* at = p.where;
  for (int64_t query = 0; query < p.queries.count; ++query) {
    for (int64_t document = 0; document < p.documents.count; ++document, at += length) {
      bool inside = true;
      for (int64_t i = 0; i < length; ++i) inside &= at[i] >= -1 && at[i] < width;
      require(inside, "a token is out of range");
      const bool* there = p.queries.mask ? p.queries.mask + query * length : nullptr;
      const bool* theirs = p.documents.mask ? p.documents.mask + document * width : nullptr;
      if (!there && !theirs) continue;
      for (int64_t i = 0; i < length; ++i) {
        if (at[i] < 0) continue;
        require((!there || there[i]) && (!theirs || theirs[at[i]]),
                "a maximum is at a masked token");
      }
    }
  }
}

template <class Acc>
void check(const NeighbourProblem<Acc>& p) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("contrastive_ops::neighbours: ") + what);
  };
  require(p.rows > 0 && p.dim > 0 && p.x && p.label, "there are no rows");
  require(p.rows < std::numeric_limits<int32_t>::max(), "too many rows");
  require(p.slots > 0 && p.closest, "there is nothing to look for");
  for (int64_t i = 0; p.bound && i < p.slots * p.rows; ++i) {
    require(p.bound[i] >= -1 && p.bound[i] < p.rows, "a row is out of range");
  }
}

template <class Acc>
void check(const PairProblem<Acc>& p) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("contrastive_ops::pairs: ") + what);
  };
  require(p.rows > 0 && p.dim > 0 && p.x && p.pairs >= 0, "there are no rows");
  require(p.pairs == 0 || p.squares || (p.weight && p.grad), "there is nowhere to write to");
  for (int64_t e = 0; e < p.pairs; ++e) {
    require(p.left[e] >= 0 && p.left[e] < p.rows && p.right[e] >= 0 && p.right[e] < p.rows,
            "a row is out of range");
  }
}

template void check(const Problem<float>&, Mode);
template void check(const Problem<double>&, Mode);
template void check(const TokenProblem<float>&);
template void check(const TokenProblem<double>&);
template void check(const NeighbourProblem<float>&);
template void check(const NeighbourProblem<double>&);
template void check(const PairProblem<float>&);
template void check(const PairProblem<double>&);

}  // namespace contrastive_ops
