// From tensors to cpu/problem.h and back. Shapes and values were checked in Python, where errors
// name the user's argument; here only what memory safety depends on is checked again.
#include <array>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/problem.h"
#include "cpu/select.h"
#include "peak.h"

namespace contrastive_ops {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return DType::float32;
    case at::kDouble: return DType::float64;
    case at::kBFloat16: return DType::bfloat16;
    case at::kHalf: return DType::float16;
    case at::kChar: return DType::int8;
    case at::kByte: return DType::bits;
    default: throw std::invalid_argument("unsupported dtype");
  }
}

// The tensors and numbers of a problem, in the order of Operands and SimilarityProblem
// (contrastive_ops/engine/problem.py).
struct Arguments {
  Tensor query, key;
  MaybeTensor negatives, own_negatives, temperature, bias, positives;
  MaybeTensor query_ids, key_ids, negative_ids, negative_bias, own_bias;
  MaybeTensor guide_query, guide_key, guide_negatives, guide_threshold;
  bool normalize, in_batch, symmetric;
  double scale, margin, false_negative_margin;
  int64_t group;
  double group_log_weight;
  int64_t first_row;
  double label_smoothing;
  int64_t workspace_bytes;
  bool one_set;
  std::vector<int64_t> prefixes;
  std::vector<double> prefix_weights;
  std::string tile_map;
  double offset;
};

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Keeps converted copies alive for the length of a call.
class Operands {
 public:
  explicit Operands(const Tensor& query) : query_(query) {}

  // Rows of unit stride: no copy unless the last dimension is strided.
  const Tensor& rows(const Tensor& x, at::IntArrayRef shape) {
    require(x.sizes() == shape && x.scalar_type() == query_.scalar_type() && x.is_cpu(),
            "an operand's shape, dtype or device does not match");
    return keep(x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous());
  }

  template <class T>
  const T* numbers(const MaybeTensor& x, at::ScalarType type, at::IntArrayRef shape) {
    if (!x) return nullptr;
    require(x->sizes() == shape && x->is_cpu(), "an operand's shape or device does not match");
    return keep(x->to(type).contiguous()).template const_data_ptr<T>();
  }

 private:
  const Tensor& keep(const Tensor& x) {
    kept_.push_back(x);
    return kept_.back();
  }

  const Tensor& query_;
  std::vector<Tensor> kept_;
};

template <class Acc>
at::ScalarType accumulator() {
  return sizeof(Acc) == 8 ? at::kDouble : at::kFloat;
}

// A matrix' stride between rows; that of a single row may be anything and is never used.
int64_t row_stride(const Tensor& x) { return x.stride(-2); }

// Nothing but Nones where prefixes do not fit one pass. Else losses (N), or (prefixes, N) where they
// are not summed, row stats, column stats (these three with `statistics`), total (0-dim), then a
// gradient or None for each of query, key, negatives, own negatives, temperature, bias.
template <class Acc>
std::vector<MaybeTensor> run_problem(
    Mode mode, bool statistics, const Arguments& a, const MaybeTensor& weight, double weight_all,
    const std::array<bool, 6>& wanted, const MaybeTensor& row_stats,
    const MaybeTensor& column_stats, const MaybeTensor& summary) {
  const at::ScalarType acc = accumulator<Acc>();
  const auto options = a.query.options();
  const auto numbers = options.dtype(acc);
  Operands hold(a.query);
  Problem<Acc> p;

  require(a.query.dim() == 2 && a.key.dim() == 2, "query and key must be matrices");
  const int64_t n = a.query.size(0), d = a.query.size(1);
  const int64_t m = a.one_set ? n : a.key.size(0);
  const Tensor x = hold.rows(a.query, {n, d});
  const Tensor y = a.one_set ? x : hold.rows(a.key, {m, d});
  p.dtype = dtype_of(x);
  p.rows = n;
  p.dim = d;
  p.x = x.const_data_ptr();
  p.x_stride = row_stride(x);
  p.normalize = a.normalize;
  p.margin = static_cast<Acc>(a.margin);
  p.smoothing = static_cast<Acc>(a.label_smoothing);
  p.two_directions = a.symmetric;
  p.workspace_bytes = a.workspace_bytes;
  p.scale = static_cast<Acc>(a.scale);
  if (a.temperature) {
    require(a.temperature->numel() == 1, "temperature must be one number");
    p.scale = static_cast<Acc>(1.0 / a.temperature->item<double>());
  }

  p.one_set = a.one_set;
  require(a.tile_map.empty() || a.tile_map == "softplus", "unknown tile map");
  p.pairwise = !a.tile_map.empty();
  p.bias = static_cast<Acc>(a.bias ? a.bias->item<double>() : a.offset);

  bool apart = false;
  p.prefixes = a.prefixes.data();
  p.prefix_weight = a.prefix_weights.empty() ? nullptr : a.prefix_weights.data();
  p.prefix_count = static_cast<int64_t>(a.prefixes.size());
  p.prefixes_apart = &apart;
  require(!p.prefix_weight || a.prefixes.size() == a.prefix_weights.size(),
          "prefixes without a weight each");
  std::vector<int64_t> losses_shape{n};  // and that of their weights
  if (p.prefix_count && !p.prefix_weight) losses_shape = {p.prefix_count, n};

  p.id_pairs = a.query_ids ? a.query_ids->size(0) : 0;
  p.row_ids = hold.numbers<int64_t>(a.query_ids, at::kLong, {p.id_pairs, n});

  p.guide_dim = a.guide_query ? a.guide_query->size(1) : 0;
  p.row_guide = hold.numbers<float>(a.guide_query, at::kFloat, {n, p.guide_dim});
  p.guide_threshold = hold.numbers<float>(a.guide_threshold, at::kFloat, {n});

  p.keys.y = y.const_data_ptr();
  p.keys.count = m;
  p.keys.stride = row_stride(y);
  p.keys.scanned = a.in_batch;
  p.keys.thresholded = true;
  p.keys.ids = hold.numbers<int64_t>(a.one_set ? a.query_ids : a.key_ids, at::kLong, {p.id_pairs, m});
  p.keys.guide = hold.numbers<float>(a.guide_key, at::kFloat, {m, p.guide_dim});
  p.false_negative_margin = static_cast<Acc>(a.false_negative_margin);

  if (a.positives) {
    p.positives = a.positives->size(1);
    if (p.positives) p.positive = hold.numbers<int64_t>(a.positives, at::kLong, {n, p.positives});
    for (int64_t i = 0; i < n * p.positives; ++i)
      require(p.positive[i] >= -1 && p.positive[i] < m, "positives: an index is out of range");
  } else {
    require(m >= n, "key has fewer rows than query");
  }

  if (a.negatives) {
    const int64_t k = a.negatives->size(0);
    const Tensor negatives = hold.rows(*a.negatives, {k, d});
    p.negatives.y = negatives.const_data_ptr();
    p.negatives.count = k;
    p.negatives.stride = row_stride(negatives);
    p.negatives.scanned = true;
    p.negatives.bias = hold.numbers<Acc>(a.negative_bias, acc, {k});
    p.negatives.ids = hold.numbers<int64_t>(a.negative_ids, at::kLong, {p.id_pairs, k});
    p.negatives.group = a.group;
    p.negatives.group_bias = static_cast<Acc>(a.group_log_weight);
    p.negatives.guide = hold.numbers<float>(a.guide_negatives, at::kFloat, {k, p.guide_dim});
  }
  if (a.own_negatives) {
    const int64_t h = a.own_negatives->size(1);
    const Tensor own = hold.rows(*a.own_negatives, {n, h, d});
    p.own.y = own.const_data_ptr();
    p.own.count = h;
    p.own.row_stride = own.stride(0);
    p.own.stride = own.stride(1);
    p.own.bias = hold.numbers<Acc>(a.own_bias, acc, {n, h});
  }
  p.weight = hold.numbers<Acc>(weight, acc, losses_shape);
  p.weight_all = static_cast<Acc>(weight_all);

  // Results.
  const int64_t kinds = a.label_smoothing > 0 ? 3 : p.pairwise ? 2 : 1;
  const int64_t columns = a.symmetric ? m : 0;
  Tensor losses = at::empty(losses_shape, numbers), column_losses;
  const auto wide = options.dtype(at::kDouble);
  Tensor row, column;
  const int64_t levels = p.prefix_count ? p.prefix_count : 1;
  const auto fill = [&](Stats& stats, Tensor& x, const MaybeTensor& given, int64_t count) {
    x = given ? *given : at::empty({levels * kinds, count}, wide);
    require(x.sizes() == at::IntArrayRef({levels * kinds, count}) && x.is_contiguous() &&
                x.scalar_type() == at::kDouble,
            "the statistics are not those of this problem's forward");
    double* data = x.mutable_data_ptr<double>();
    stats.lse = data;
    if (kinds > 1) stats.sum = data + count;
    if (kinds > 2) stats.count = data + 2 * count;
  };
  if (statistics) {
    fill(p.row, row, row_stats, n);
    fill(p.column, column, column_stats, columns);
  }
  if (summary) {
    require(summary->sizes() == at::IntArrayRef({summary_numbers, n}) && summary->is_contiguous() &&
                summary->scalar_type() == at::kDouble && summary->is_cpu(),
            "the summary's shape or dtype does not match");
    p.summary = summary->mutable_data_ptr<double>();
  }
  p.loss = losses.mutable_data_ptr<Acc>();
  if (a.symmetric) {
    column_losses = at::empty({n}, numbers);
    p.column_loss = column_losses.mutable_data_ptr<Acc>();
    // L_i is the mean of both directions.
    p.weight_all /= 2;
    if (p.weight) p.weight = hold.numbers<Acc>(*weight / 2, acc, {n});
  }

  std::vector<MaybeTensor> results(10);
  const bool gradients = mode != Mode::forward;
  double temperature_grad = 0, bias_grad = 0;
  auto grad = [&](int which, at::IntArrayRef shape) -> void* {
    if (!gradients || !wanted[which]) return nullptr;
    results[4 + which] = at::empty(shape, options);
    return results[4 + which]->mutable_data_ptr();
  };
  p.x_grad = grad(0, {n, d});
  if (!a.one_set) p.keys.grad = grad(1, {m, d});
  if (a.negatives) p.negatives.grad = grad(2, {p.negatives.count, d});
  if (a.own_negatives) p.own.grad = grad(3, {n, p.own.count, d});
  if (gradients && wanted[4] && a.temperature) p.temperature_grad = &temperature_grad;
  if (gradients && wanted[5] && a.bias) p.bias_grad = &bias_grad;

  {
    pybind11::gil_scoped_release release;
    run(p, mode);
  }
  if (apart) return std::vector<MaybeTensor>(results.size());

  if (p.temperature_grad)
    results[8] = at::full({}, temperature_grad, a.temperature->options());
  if (p.bias_grad) results[9] = at::full({}, bias_grad, a.bias->options());
  if (mode != Mode::backward) {
    const Acc* loss = p.loss;
    Acc* row_loss = p.loss;
    double total = 0;
    for (int64_t i = 0; i < losses.numel(); ++i) {
      const double both = a.symmetric ? double(loss[i]) + double(p.column_loss[i]) : double(loss[i]);
      total += both * (p.weight ? p.weight[i] : p.weight_all);
      if (a.symmetric) row_loss[i] = static_cast<Acc>(both / 2);
    }
    if (statistics) {
      results[0] = losses;
      results[1] = row;
      results[2] = column;
    }
    results[3] = at::full({}, total, numbers);
  }
  return results;
}

std::vector<MaybeTensor> softmax_ce(
    int mode, Tensor query, Tensor key, MaybeTensor negatives, MaybeTensor own_negatives,
    MaybeTensor temperature, MaybeTensor bias, MaybeTensor positives, MaybeTensor query_ids,
    MaybeTensor key_ids,
    MaybeTensor negative_ids, MaybeTensor negative_bias, MaybeTensor own_bias,
    MaybeTensor guide_query, MaybeTensor guide_key, MaybeTensor guide_negatives,
    MaybeTensor guide_threshold, bool normalize, bool in_batch, bool symmetric, double scale,
    double margin, double false_negative_margin, int64_t group, double group_log_weight,
    int64_t first_row, double label_smoothing, int64_t workspace_bytes, bool one_set,
    std::vector<int64_t> prefixes, std::vector<double> prefix_weights, std::string tile_map,
    double offset, MaybeTensor weight, double weight_all, std::array<bool, 6> wanted,
    MaybeTensor row_stats, MaybeTensor column_stats, MaybeTensor summary) {
  require(first_row == 0, "first_row belongs to stripes of the torch backend");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Arguments a{
      query, key, negatives, own_negatives, temperature, bias, positives, query_ids, key_ids,
      negative_ids, negative_bias, own_bias, guide_query, guide_key, guide_negatives,
      guide_threshold, normalize, in_batch, symmetric, scale, margin, false_negative_margin, group,
      group_log_weight, first_row, label_smoothing, workspace_bytes, one_set, std::move(prefixes),
      std::move(prefix_weights), std::move(tile_map), offset};
  const auto run_as = query.scalar_type() == at::kDouble ? run_problem<double> : run_problem<float>;
  // The three modes of the kernel, and the loss alone.
  const bool loss_alone = mode == 3;
  const Mode kernel_mode = loss_alone ? Mode::forward : static_cast<Mode>(mode);
  const bool statistics = kernel_mode != Mode::both && !loss_alone;
  return run_as(kernel_mode, statistics, a, weight, weight_all, wanted, row_stats, column_stats,
                summary);
}

// Merges the k best of `corpus`, whose rows go by first, first + 1, ..., into scores and indices.
// Returns how many pairs were scored in double, and how many rows of the corpus cannot be selected.
std::pair<int64_t, int64_t> row_select(
    Tensor query, Tensor corpus, bool normalize, bool l2, int scan, int64_t first,
    MaybeTensor exclude_begin, MaybeTensor exclude, MaybeTensor upper, MaybeTensor above,
    int64_t workspace_bytes, Tensor scores, Tensor indices) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  require(query.dim() == 2 && corpus.dim() == 2, "query and corpus must be matrices");
  require(scan >= 0 && scan <= int(Scan::int8), "unknown scan");
  Operands hold(query);
  SelectProblem p;
  p.rows = query.size(0);
  p.count = corpus.size(0);
  const Tensor x = hold.rows(query, {p.rows, query.size(1)});
  const Tensor y = hold.rows(corpus, {p.count, query.size(1)});
  p.dim = query.size(1) * (x.scalar_type() == at::kByte ? 8 : 1);
  const auto result = p.dim && x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  p.dtype = dtype_of(x);
  p.x = x.const_data_ptr();
  p.y = y.const_data_ptr();
  p.x_stride = row_stride(x);
  p.y_stride = row_stride(y);
  p.normalize = normalize;
  p.metric = l2 ? Metric::l2 : Metric::dot;
  p.scan = static_cast<Scan>(scan);
  p.first = first;
  p.k = scores.size(-1);
  p.workspace_bytes = workspace_bytes;
  require(scores.sizes() == at::IntArrayRef({p.rows, p.k}) && scores.is_contiguous() &&
              scores.scalar_type() == result && indices.sizes() == scores.sizes() &&
              indices.is_contiguous() && indices.scalar_type() == at::kLong,
          "the results' shape or dtype does not match");
  if (exclude_begin) {
    require(exclude.has_value(), "exclusions need both arrays");
    const int64_t size = exclude->numel();
    p.exclude_begin = hold.numbers<int64_t>(exclude_begin, at::kLong, {p.rows + 1});
    for (int64_t i = 0; i < p.rows; ++i) {
      require(0 <= p.exclude_begin[i] && p.exclude_begin[i] <= p.exclude_begin[i + 1],
              "exclusions are not in order");
    }
    require(p.exclude_begin[p.rows] <= size, "exclusions are out of range");
    p.exclude = hold.numbers<int64_t>(exclude, at::kLong, {size});
    if (size == 0) p.exclude_begin = p.exclude = nullptr;
  }
  if (upper) {
    p.upper = result == at::kDouble
                  ? static_cast<const void*>(hold.numbers<double>(upper, at::kDouble, {p.rows}))
                  : hold.numbers<float>(upper, at::kFloat, {p.rows});
  }
  if (above) {
    require(above->sizes() == at::IntArrayRef({p.rows}) && above->is_contiguous() &&
                above->scalar_type() == at::kLong,
            "above must be int64 and contiguous");
    p.above = above->mutable_data_ptr<int64_t>();
  }
  p.scores = scores.mutable_data_ptr();
  p.indices = indices.mutable_data_ptr<int64_t>();
  {
    pybind11::gil_scoped_release release;
    select(p);
  }
  return {p.rescored, p.nan_rows};
}

std::vector<std::string> isas() {
  int count = 0;
  const char* const* names = available_isas(&count);
  return {names, names + count};
}

}  // namespace

void bind_maxima(pybind11::module_& module);

}  // namespace contrastive_ops

PYBIND11_MODULE(_C, module) {
  using namespace contrastive_ops;
  module.def("softmax_ce", &softmax_ce);
  module.def("row_select", &row_select);
  bind_maxima(module);
  module.def("available_isas", &isas, "Instruction sets of this CPU that have a kernel, best last.");
  module.def("current_isa", &current_isa, "The one that the next call uses.");
  module.def("select_isa", &select_isa, "Forces one; an empty name restores the best.");
  module.def("measure_peak", &measure_peak, pybind11::arg("kind"), pybind11::arg("threads"),
             pybind11::arg("seconds"));
}
