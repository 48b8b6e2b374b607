// What a softmax cross-entropy problem is to the CPU kernel: raw pointers and numbers, no torch.
//
// Row i of `x` (a query) is scored against the rows of up to two shared blocks of candidates
// (`keys`, `negatives`) and against its own `own.count` rows:
//
//   similarity  s_ij  = <x_i, y_j>, of unit vectors when `normalize`
//   logit       l_ij  = scale * s_ij + bias_j (+ group_bias where column j belongs to row i)
//   positive    l_ip  = scale * (s_ip - margin), P of them, always kept apart from the rest
//   row loss    L_i   = logaddexp(lse_neg_i, lse_pos_i) - mean_p l_ip
//                       + smoothing * (mean_p l_ip - (sum of all kept logits) / (their count))
//
// lse_neg_i runs over the candidates that are neither a positive of row i nor left out. One
// positive: L_i = softplus(lse_neg_i - l_ip), never a difference of two large numbers.
#pragma once
#include <cstdint>

namespace contrastive_ops {

enum class DType { float32, float64, bfloat16, float16, int8, bits };  // the last two: select.h

// A block of candidates that every row may see. Matrices have unit stride in their last dimension.
template <class Acc>
struct Block {
  const void* y = nullptr;          // (count, dim), Problem::dtype
  int64_t count = 0;
  int64_t stride = 0;               // elements from one row of y to the next
  bool scanned = false;             // false: only looked up as positives, or absent
  const Acc* bias = nullptr;        // (count): added to the logits; -inf leaves the column out
  const int64_t* ids = nullptr;     // (id_pairs, count): left out where any pair equals the row's
  bool thresholded = false;         // the false-negative margin applies to this block
  int64_t group = 0;                // > 0: columns [i * group, (i + 1) * group) belong to row i
  Acc group_bias = 0;               // added to the logits of a row's own columns
  const float* guide = nullptr;     // (count, guide_dim) contiguous, unit rows; null: no guide
  void* grad = nullptr;             // out (count, dim) contiguous, Problem::dtype; null: frozen
};

// Candidates that only their own row sees.
template <class Acc>
struct Own {
  const void* y = nullptr;          // (rows, count, dim), Problem::dtype
  int64_t count = 0;                // per row; 0: absent
  int64_t row_stride = 0, stride = 0;
  const Acc* bias = nullptr;        // (rows, count); -inf leaves the candidate out
  void* grad = nullptr;             // out (rows, count, dim) contiguous
};

// Per-row (or per-column) results of the scan, which a later backward needs. In double whatever the
// accumulator: a log-sum-exp of 100 in float32 would put 4e-6 of error on every probability.
struct Stats {
  double* lse = nullptr;            // lse_neg; -inf where no candidate is left
                                    // pairwise: the negatives' sum of softplus, and of sigmoid in `sum`
  double* sum = nullptr;            // sum of the kept negatives' logits   (smoothing only, else null)
  double* count = nullptr;          // how many of them                    (smoothing only, else null)
};

// What a row's summary holds, in this order: how many kept negatives have a logit above that of the
// best positive; the largest of their logits (-inf: there are none); how many they are; the sum of
// their logits; the positives' mean logit; the entropy of the softmax over all, in nats.
constexpr int summary_numbers = 6;

constexpr int64_t most_prefixes = 128;  // of one pass

template <class Acc>                // float for 16- and 32-bit inputs, double for float64
struct Problem {
  DType dtype = DType::float32;
  int64_t rows = 0, dim = 0;
  const void* x = nullptr;          // (rows, dim)
  int64_t x_stride = 0;
  Block<Acc> keys, negatives;
  Own<Acc> own;
  bool normalize = true;
  Acc scale = 1;                    // 1 / temperature
  Acc margin = 0;

  // Positives: indices into `keys`, (rows, positives) row-major with -1 pads (at least one is
  // given); null: key i is the positive of row i. `positives` = 0: none at all, then the loss of a
  // row is its lse_neg and every candidate is a "negative".
  const int64_t* positive = nullptr;
  int64_t positives = 1;

  int64_t id_pairs = 0;
  const int64_t* row_ids = nullptr; // (id_pairs, rows)
  // Left out of thresholded blocks: s_ij > weakest positive's s_ip (before the margin)
  // + false_negative_margin + slack, where slack = 16 eps(Acc) (times |x_i||y_p| unless
  // `normalize`) so that equal similarities stay whatever the order of summation.
  // +inf: off. In the column direction: s_ij > s_jj + the same.
  Acc false_negative_margin;
  // Left out of every scanned block that has a guide: <row_guide_i, guide_j> > guide_threshold_i.
  int64_t guide_dim = 0;
  const float* row_guide = nullptr;        // (rows, guide_dim) contiguous, unit rows
  const float* guide_threshold = nullptr;  // (rows)
  Acc smoothing = 0;

  // Also ask each key to find its query among the rows (only with `positive` null, one positive,
  // no guide, keys.scanned): columns 0 .. rows-1 of `keys` each have a loss of the same form over
  // the rows. Explicit negatives do not take part in it.
  bool two_directions = false;

  // One set against itself: `keys` is `x`, scanned, and row i left out of its own candidates.
  // Positives are mutual, `row_ids` are the ids of both sides, and x_grad is the whole gradient.
  bool one_set = false;

  // No softmax: L_i = sum over positives of softplus(-l_ip) + sum over the rest of softplus(l_ij),
  // with `bias` added to every logit. One direction, no smoothing, no own negatives.
  bool pairwise = false;
  Acc bias = 0;

  // The sum over prefixes of the rows, ascending and ending with dim, of prefix_weight times the loss
  // on that prefix alone; none: whole rows. Without weights they are not summed: `loss` and `weight`
  // are (prefix_count, rows), in one direction. Not pairwise, and no false-negative margin where
  // columns have losses, too; bfloat16 takes even ones. Statistics come prefix by prefix.
  // `prefixes_apart` is set, and nothing else written, where a prefix is so short beside its row
  // that one scale cannot serve both.
  const int64_t* prefixes = nullptr;
  const double* prefix_weight = nullptr;
  int64_t prefix_count = 0;
  bool* prefixes_apart = nullptr;

  const Acc* weight = nullptr;      // (rows): dL/dL_i (and dL/d column loss i); null: all `weight_all`
  Acc weight_all = 1;
  int64_t workspace_bytes = 0;      // what may be kept besides inputs, outputs and O(N + M) numbers

  // Results. Forward: `loss`, `row`, `column`. Backward: the grads of the blocks, x_grad and
  // temperature_grad, for loss total = sum_i weight_i * L_i (+ sum_j weight_j * column loss_j).
  Acc* loss = nullptr;              // (rows): L_i
  Acc* column_loss = nullptr;       // (rows): two_directions only
  Stats row;                        // (rows); with prefixes (prefix_count, kinds, rows)
  Stats column;                     // (keys.count), likewise; two_directions only
  void* x_grad = nullptr;           // (rows, dim) contiguous, Problem::dtype; null: frozen
  double* summary = nullptr;        // (summary_numbers, rows), with the losses; null: not wanted
  double* temperature_grad = nullptr;  // one number: d total / d temperature; null: not wanted
  double* bias_grad = nullptr;         // likewise, pairwise only
};

enum class Mode {
  forward,   // loss, row, column
  backward,  // grads, from row, column as a forward left them
  both       // one direction: everything, each stripe of rows finished while it is in cache;
             // two directions: forward, then backward with the stripes that fit the workspace kept
};

// Chooses the best instruction set of this CPU. Throws std::invalid_argument on a description that
// contradicts itself. Deterministic: the same bits at every thread count.
void run(const Problem<float>& problem, Mode mode);
void run(const Problem<double>& problem, Mode mode);

// "portable", "avx2", "avx512", "avx512bf16": those that this CPU has, best last. The environment
// variable CONTRASTIVE_OPS_CPU_ISA, read at every call of `run`, forces one (std::invalid_argument if absent).
// `select_isa` overrides it for this process ("" restores the automatic choice).
const char* const* available_isas(int* count);
const char* current_isa();
void select_isa(const char* name);

}  // namespace contrastive_ops
