// From tensors to cpu/tokens.h and cpu/neighbours.h and back; shapes and values were checked in
// Python.
#include <array>
#include <optional>
#include <stdexcept>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/neighbours.h"
#include "cpu/tokens.h"

namespace contrastive_ops {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return DType::float32;
    case at::kDouble: return DType::float64;
    case at::kBFloat16: return DType::bfloat16;
    case at::kHalf: return DType::float16;
    default: throw std::invalid_argument("unsupported dtype");
  }
}

// Holds what the description points to.
struct Side {
  Tensor rows, mask;

  Side(const Tensor& x, const MaybeTensor& given) {
    require(x.dim() == 3 && x.is_cpu(), "tokens must be (count, length, dim) on the CPU");
    rows = x.size(2) == 1 || x.stride(2) == 1 ? x : x.contiguous();
    if (!given) return;
    require(given->sizes() == x.sizes().slice(0, 2) && given->scalar_type() == at::kBool &&
                given->is_cpu(),
            "a mask's shape, dtype or device does not match");
    mask = given->contiguous();
  }

  Tokens tokens() const {
    Tokens t;
    t.data = rows.const_data_ptr();
    t.count = rows.size(0);
    t.length = rows.size(1);
    t.stride = rows.stride(0);
    t.token_stride = rows.stride(1);
    if (mask.defined()) t.mask = mask.const_data_ptr<bool>();
    return t;
  }
};

template <class Acc>
TokenProblem<Acc> described(const Side& query, const Side& key, bool mean, bool normalize,
                            int64_t workspace_bytes) {
  require(query.rows.scalar_type() == key.rows.scalar_type() &&
              query.rows.size(2) == key.rows.size(2),
          "query and key do not match");
  TokenProblem<Acc> p;
  p.dtype = dtype_of(query.rows);
  p.dim = query.rows.size(2);
  p.queries = query.tokens();
  p.documents = key.tokens();
  p.normalize = normalize;
  p.mean = mean;
  p.workspace_bytes = workspace_bytes;
  return p;
}

template <class Acc>
void solve(const TokenProblem<Acc>& p) {
  const pybind11::gil_scoped_release release;
  token_similarity(p);
}

template <class Acc>
std::pair<Tensor, Tensor> forward_as(const Side& query, const Side& key, bool mean, bool normalize,
                                     int64_t workspace_bytes) {
  auto p = described<Acc>(query, key, mean, normalize, workspace_bytes);
  const auto options = query.rows.options();
  Tensor scores = at::empty({p.queries.count, p.documents.count},
                            options.dtype(sizeof(Acc) == 8 ? at::kDouble : at::kFloat));
  Tensor where = at::empty({p.queries.count, p.documents.count, p.queries.length},
                           options.dtype(at::kInt));
  p.scores = scores.mutable_data_ptr<Acc>();
  p.where = where.mutable_data_ptr<int32_t>();
  solve(p);
  return {scores, where};
}

// Scores (N, M), and where each maximum was, (N, M, Lq).
std::pair<Tensor, Tensor> token_similarity_forward(Tensor query, Tensor key, MaybeTensor query_mask,
                                                   MaybeTensor key_mask, bool mean, bool normalize,
                                                   int64_t workspace_bytes) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Side x(query, query_mask), y(key, key_mask);
  const auto run = query.scalar_type() == at::kDouble ? forward_as<double> : forward_as<float>;
  return run(x, y, mean, normalize, workspace_bytes);
}

template <class Acc>
std::vector<MaybeTensor> backward_as(const Tensor& grad, const Side& query, const Side& key,
                                     bool mean, bool normalize, const Tensor& where,
                                     std::array<bool, 2> wanted) {
  auto p = described<Acc>(query, key, mean, normalize, 0);
  const Tensor given = grad.to(sizeof(Acc) == 8 ? at::kDouble : at::kFloat).contiguous();
  const Tensor at = where.contiguous();
  require(given.sizes() == at::IntArrayRef({p.queries.count, p.documents.count}) &&
              at.sizes() ==
                  at::IntArrayRef({p.queries.count, p.documents.count, p.queries.length}) &&
              at.scalar_type() == at::kInt && at.is_cpu() && given.is_cpu(),
          "the gradient or the maxima are not those of this problem's forward");
  p.grad = given.const_data_ptr<Acc>();
  p.where = const_cast<int32_t*>(at.const_data_ptr<int32_t>());
  std::vector<MaybeTensor> results(2);
  const auto result = [&](int which, const Tensor& like) -> void* {
    if (!wanted[which]) return nullptr;
    results[which] = at::empty(like.sizes(), like.options());
    return results[which]->mutable_data_ptr();
  };
  p.queries.grad = result(0, query.rows);
  p.documents.grad = result(1, key.rows);
  solve(p);
  return results;
}

// A gradient or None for each of query and key.
std::vector<MaybeTensor> token_similarity_backward(Tensor grad, Tensor query, Tensor key,
                                                   MaybeTensor query_mask, MaybeTensor key_mask,
                                                   bool mean, bool normalize, Tensor where,
                                                   std::array<bool, 2> wanted) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Side x(query, query_mask), y(key, key_mask);
  const auto run = query.scalar_type() == at::kDouble ? backward_as<double> : backward_as<float>;
  return run(grad, x, y, mean, normalize, where, wanted);
}

// ---- triplets

template <class Acc>
const Acc* vector(const MaybeTensor& x, at::ScalarType type, int64_t count) {
  if (!x) return nullptr;
  require(x->numel() == count && x->is_contiguous() && x->scalar_type() == type && x->is_cpu(),
          "a vector's size, dtype or device does not match");
  return x->const_data_ptr<Acc>();
}

template <class Acc>
std::pair<Tensor, MaybeTensor> neighbours_as(const Tensor& rows, const MaybeTensor& half_norm,
                                             const Tensor& label, const MaybeTensor& bound,
                                             bool farthest, int64_t workspace_bytes) {
  NeighbourProblem<Acc> p;
  p.rows = rows.size(0);
  p.dim = rows.size(1);
  p.x = rows.const_data_ptr<Acc>();
  p.stride = rows.stride(0);
  p.half_norm = vector<Acc>(half_norm, rows.scalar_type(), p.rows);
  p.label = vector<int32_t>(label, at::kInt, p.rows);
  p.slots = bound ? bound->size(0) : 1;
  p.bound = vector<int32_t>(bound, at::kInt, p.slots * p.rows);
  p.workspace_bytes = workspace_bytes;
  const auto integers = label.options();
  Tensor closest = at::empty({p.slots, p.rows}, integers);
  MaybeTensor least;
  p.closest = closest.mutable_data_ptr<int32_t>();
  if (farthest) {
    least = at::empty({p.rows}, integers);
    p.farthest = least->mutable_data_ptr<int32_t>();
  }
  const pybind11::gil_scoped_release release;
  neighbours(p);
  return {closest, least};
}

Tensor matrix(const Tensor& x) {
  require(x.dim() == 2 && x.is_cpu() &&
              (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble),
          "rows must be a float32 or float64 matrix on the CPU");
  return x.size(1) == 1 || x.stride(1) == 1 ? x : x.contiguous();
}

// Closest rows of another label (slots, N), and the farthest (N): see cpu/neighbours.h.
std::pair<Tensor, MaybeTensor> find_neighbours(Tensor rows, MaybeTensor half_norm, Tensor label,
                                               MaybeTensor bound, bool farthest,
                                               int64_t workspace_bytes) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto run = rows.scalar_type() == at::kDouble ? neighbours_as<double> : neighbours_as<float>;
  return run(matrix(rows), half_norm, label, bound, farthest, workspace_bytes);
}

template <class Acc>
Tensor pairs_as(const Tensor& rows, const Tensor& left, const Tensor& right,
                const MaybeTensor& weight) {
  PairProblem<Acc> p;
  p.rows = rows.size(0);
  p.dim = rows.size(1);
  p.x = rows.const_data_ptr<Acc>();
  p.stride = rows.stride(0);
  p.pairs = left.numel();
  p.left = vector<int64_t>(left, at::kLong, p.pairs);
  p.right = vector<int64_t>(right, at::kLong, p.pairs);
  p.weight = vector<Acc>(weight, rows.scalar_type(), p.pairs);
  Tensor out = weight ? at::empty({p.rows, p.dim}, rows.options())
                      : at::empty({p.pairs}, rows.options());
  (weight ? p.grad : p.squares) = out.mutable_data_ptr<Acc>();
  const pybind11::gil_scoped_release release;
  pairs(p);
  return out;
}

// Squared distances of pairs (E); with their weights (E) instead the rows' gradient (N, D).
Tensor pair_distances(Tensor rows, Tensor left, Tensor right, MaybeTensor weight) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto run = rows.scalar_type() == at::kDouble ? pairs_as<double> : pairs_as<float>;
  return run(matrix(rows), left, right, weight);
}

}  // namespace

void bind_maxima(pybind11::module_& module) {
  module.def("token_similarity_forward", &token_similarity_forward);
  module.def("token_similarity_backward", &token_similarity_backward);
  module.def("neighbours", &find_neighbours);
  module.def("pair_distances", &pair_distances);
}

}  // namespace contrastive_ops
