// Triplets of a labelled set, as the CPU kernel sees them: raw pointers and numbers, no torch.
//
// The closeness of row j to anchor a is <x_a, x_j> - half_norm_j: a larger one is a smaller
// distance. It is symmetric but for the half norms, so that half of the product serves all anchors.
#pragma once
#include <cstdint>

namespace contrastive_ops {

template <class Acc>
struct NeighbourProblem {
  int64_t rows = 0, dim = 0;
  const Acc* x = nullptr;            // (rows, dim)
  int64_t stride = 0;
  const Acc* half_norm = nullptr;    // (rows): |x|^2 / 2; null: 0, for cosines
  const int32_t* label = nullptr;    // (rows)
  // Of each anchor the closest row with another label for every slot: among all, or with `bound`
  // among those less close than row bound[slot][anchor] is (-1: the slot is empty).
  int64_t slots = 1;
  const int32_t* bound = nullptr;    // (slots, rows)
  int32_t* closest = nullptr;        // out (slots, rows): the lowest of equals; -1 where none is
  int32_t* farthest = nullptr;       // out (rows), the least close with another label; may be null
  int64_t workspace_bytes = 0;
};

// Squared distances of pairs of rows, and their gradient.
template <class Acc>
struct PairProblem {
  int64_t rows = 0, dim = 0, pairs = 0;
  const Acc* x = nullptr;            // (rows, dim)
  int64_t stride = 0;
  const int64_t *left = nullptr, *right = nullptr;  // (pairs)
  Acc* squares = nullptr;            // out (pairs); or
  const Acc* weight = nullptr;       // (pairs) and
  Acc* grad = nullptr;               // out (rows, dim): of sum_e weight_e |x_left - x_right|^2
};

void neighbours(const NeighbourProblem<float>& problem);
void neighbours(const NeighbourProblem<double>& problem);
void pairs(const PairProblem<float>& problem);
void pairs(const PairProblem<double>& problem);

}  // namespace contrastive_ops
