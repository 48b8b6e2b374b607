// The CPU kernel without torch, on threads of its own, for ThreadSanitizer: torch's OpenMP runtime
// is not instrumented and would drown every finding in false ones. Each problem is solved at several
// thread counts; the results must be the same bits, and the sanitizer must see no race.
//
// Exits with 0, or prints what differed and exits with 1.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/flush.h"
#include "cpu/neighbours.h"
#include "cpu/parallel.h"
#include "cpu/problem.h"
#include "cpu/tokens.h"

namespace {
int thread_count = 1;
}

// In place of parallel.cpp.
namespace contrastive_ops {

int available_workers() { return thread_count; }

void parallel_tasks(int64_t tasks, int workers, void (*body)(void*, int64_t, int), void* context) {
  std::atomic<int64_t> next{0};
  auto work = [&](int worker) {
    const FlushSubnormals flush;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      body(context, task, worker);
    }
  };
  std::vector<std::thread> pool;
  for (int worker = 1; worker < workers && worker < tasks; ++worker) pool.emplace_back(work, worker);
  work(0);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace contrastive_ops

namespace {

using contrastive_ops::DType;
using contrastive_ops::Mode;
using contrastive_ops::Problem;

struct Shape {
  const char* name;
  int64_t rows, keys, negatives, own, dim;
  bool two_directions, ids, smoothing;
  int64_t workspace_bytes;
  enum { pair_of_sets, one_set, pairwise } kind = pair_of_sets;
  bool prefixes = false;
};

// Sizes off every block's edge, several stripes and tiles of rows and columns.
const Shape kShapes[] = {
    {"one direction", 611, 703, 0, 0, 40, false, false, false, 64 << 20},
    {"one direction, small workspace", 611, 703, 0, 0, 40, false, false, false, 1 << 16},
    {"two directions", 611, 703, 0, 0, 40, true, false, false, 64 << 20},
    {"two directions, small workspace", 611, 703, 0, 0, 40, true, false, false, 1 << 16},
    {"every block", 301, 333, 77, 3, 24, false, true, true, 1 << 20},
    {"two directions with negatives and ids", 301, 333, 77, 0, 24, true, true, false, 1 << 20},
    {"one row", 1, 1, 0, 0, 8, true, false, false, 1 << 20},
    {"one set", 290, 290, 0, 0, 40, false, true, true, 64 << 20, Shape::one_set},
    {"one set, small workspace", 290, 290, 0, 0, 40, false, false, false, 1 << 16, Shape::one_set},
    {"one pair of one set", 2, 2, 0, 0, 8, false, false, false, 1 << 20, Shape::one_set},
    {"pairs", 291, 333, 37, 0, 40, false, true, false, 64 << 20, Shape::pairwise},
    {"pairs, small workspace", 291, 333, 0, 0, 40, false, false, false, 1 << 16, Shape::pairwise},
    {"prefixes", 291, 333, 37, 3, 40, false, true, true, 64 << 20, Shape::pair_of_sets, true},
    {"prefixes, small workspace", 291, 333, 0, 3, 40, false, false, false, 1 << 16,
     Shape::pair_of_sets, true},
    {"prefixes both ways", 291, 333, 37, 3, 40, true, true, true, 64 << 20, Shape::pair_of_sets,
     true},
    {"prefixes both ways, small workspace", 291, 333, 0, 0, 40, true, false, false, 1 << 16,
     Shape::pair_of_sets, true},
    {"prefixes of one set", 290, 290, 0, 0, 40, false, true, true, 64 << 20, Shape::one_set, true},
    {"prefixes of one set, small workspace", 290, 290, 0, 0, 40, false, false, false, 1 << 16,
     Shape::one_set, true},
};

using Bytes = std::vector<unsigned char>;

size_t size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Normal numbers in any of the dtypes.
Bytes matrix(DType dtype, int64_t rows, int64_t dim, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Bytes out(size_t(rows) * dim * size_of(dtype));
  for (int64_t i = 0; i < rows * dim; ++i) {
    const double value = normal(random);
    const float single = float(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    unsigned char* at = out.data() + i * size_of(dtype);
    if (dtype == DType::float64) std::memcpy(at, &value, 8);
    if (dtype == DType::float32) std::memcpy(at, &single, 4);
    if (dtype == DType::bfloat16) std::memcpy(at, reinterpret_cast<unsigned char*>(&bits) + 2, 2);
    if (dtype == DType::float16) {
      // Exponents of small normal numbers only: sign, rebased exponent, truncated fraction.
      const int exponent = int(bits >> 23 & 0xff) - 127 + 15;
      uint16_t half = uint16_t(bits >> 16 & 0x8000);
      if (exponent > 0) half |= uint16_t(exponent << 10 | (bits >> 13 & 0x3ff));
      std::memcpy(at, &half, 2);
    }
  }
  return out;
}

// All that a run writes, as bytes.
template <class Acc>
Bytes solve(const Shape& shape, DType dtype, int threads, bool split) {
  thread_count = threads;
  std::mt19937 random(7);
  const size_t element = size_of(dtype);
  const Bytes x = matrix(dtype, shape.rows, shape.dim, random);
  const Bytes keys = matrix(dtype, shape.keys, shape.dim, random);
  const Bytes negatives = matrix(dtype, shape.negatives, shape.dim, random);
  const Bytes own = matrix(dtype, shape.rows * shape.own, shape.dim, random);
  std::vector<int64_t> row_ids(shape.rows), key_ids(shape.keys), negative_ids(shape.negatives);
  for (int64_t& id : row_ids) id = int64_t(random() % 50);
  for (int64_t& id : key_ids) id = int64_t(random() % 50);
  for (int64_t& id : negative_ids) id = int64_t(random() % 50);

  Bytes x_grad(x.size()), key_grad(keys.size()), negative_grad(negatives.size());
  Bytes own_grad(own.size());
  std::vector<Acc> loss(shape.rows), column_loss(shape.rows);
  const int64_t prefixes[] = {4, 10, 36, shape.dim};
  const double prefix_weight[] = {1, -0.5, 2, 1};
  const int64_t levels = shape.prefixes ? 4 : 1;
  std::vector<double> row(3 * shape.rows * levels), column(3 * shape.keys * levels);
  std::vector<double> summary(contrastive_ops::summary_numbers * shape.rows);
  std::vector<int64_t> mutual(shape.rows);  // positives: 0 and 1, 2 and 3, ...
  for (int64_t i = 0; i < shape.rows; ++i) mutual[i] = i ^ 1;
  bool apart = false;
  double temperature_grad = 0, bias_grad = 0;

  Problem<Acc> p;
  p.dtype = dtype;
  p.rows = shape.rows;
  p.dim = shape.dim;
  p.x = x.data();
  p.x_stride = shape.dim;
  p.scale = Acc(20);
  p.false_negative_margin = std::numeric_limits<Acc>::infinity();
  p.two_directions = shape.two_directions;
  p.workspace_bytes = shape.workspace_bytes;
  p.smoothing = shape.smoothing ? Acc(0.1) : Acc(0);
  p.keys.y = keys.data();
  p.keys.count = shape.keys;
  p.keys.stride = shape.dim;
  p.keys.scanned = true;
  if (shape.negatives > 0) {
    p.negatives.y = negatives.data();
    p.negatives.count = shape.negatives;
    p.negatives.stride = shape.dim;
    p.negatives.scanned = true;
  }
  if (shape.own > 0) {
    p.own.y = own.data();
    p.own.count = shape.own;
    p.own.row_stride = shape.own * shape.dim;
    p.own.stride = shape.dim;
  }
  if (shape.ids) {
    p.id_pairs = 1;
    p.row_ids = row_ids.data();
    p.keys.ids = key_ids.data();
    if (shape.negatives > 0) p.negatives.ids = negative_ids.data();
  }
  if (shape.kind == Shape::one_set) {
    p.one_set = true;
    p.keys.y = p.x;
    p.keys.ids = shape.ids ? row_ids.data() : nullptr;
    p.positive = mutual.data();
  }
  if (shape.kind == Shape::pairwise) {
    p.pairwise = true;
    p.bias = Acc(-3);
  }
  if (shape.prefixes) {
    p.prefixes = prefixes;
    p.prefix_weight = prefix_weight;
    p.prefix_count = levels;
    p.prefixes_apart = &apart;
  }
  p.loss = loss.data();
  if (!p.pairwise) p.summary = summary.data();
  p.row = {row.data(), nullptr, nullptr};
  if (shape.smoothing || p.pairwise) p.row.sum = row.data() + shape.rows;
  if (shape.smoothing) p.row.count = row.data() + 2 * shape.rows;
  if (shape.two_directions) {
    p.column_loss = column_loss.data();
    p.column = {column.data(), nullptr, nullptr};
    if (shape.smoothing) p.column.sum = column.data() + shape.keys;
    if (shape.smoothing) p.column.count = column.data() + 2 * shape.keys;
  }
  auto ask_for_gradients = [&] {
    p.x_grad = x_grad.data();
    if (!p.one_set) p.keys.grad = key_grad.data();
    if (p.pairwise) p.bias_grad = &bias_grad;
    if (shape.negatives > 0) p.negatives.grad = negative_grad.data();
    if (shape.own > 0) p.own.grad = own_grad.data();
    p.temperature_grad = &temperature_grad;
  };
  if (split) {
    run(p, Mode::forward);
    p.summary = nullptr;
    ask_for_gradients();
    run(p, Mode::backward);
  } else {
    ask_for_gradients();
    run(p, Mode::both);
  }

  Bytes all;
  auto append = [&](const void* data, size_t bytes) {
    const auto* from = static_cast<const unsigned char*>(data);
    all.insert(all.end(), from, from + bytes);
  };
  append(loss.data(), loss.size() * sizeof(Acc));
  append(summary.data(), summary.size() * sizeof(double));
  append(&temperature_grad, sizeof temperature_grad);
  append(&bias_grad, sizeof bias_grad);
  append(x_grad.data(), shape.rows * shape.dim * element);
  append(key_grad.data(), shape.keys * shape.dim * element);
  append(negative_grad.data(), negative_grad.size());
  append(own_grad.data(), own_grad.size());
  if (shape.two_directions) append(column_loss.data(), column_loss.size() * sizeof(Acc));
  for (const Acc value : loss) {
    if (!std::isfinite(double(value))) all.clear();
  }
  if (apart) all.clear();
  return all;
}

template <class Acc>
int compare(const Shape& shape, DType dtype, const char* dtype_name) {
  int failures = 0;
  for (const bool split : {false, true}) {
    const Bytes alone = solve<Acc>(shape, dtype, 1, split);
    for (const int threads : {2, 5}) {
      if (!alone.empty() && solve<Acc>(shape, dtype, threads, split) == alone) continue;
      std::printf("%s, %s, %s, %s: %s at %d threads\n", contrastive_ops::current_isa(), shape.name,
                  dtype_name, split ? "forward then backward" : "both at once",
                  alone.empty() ? "a loss is not finite" : "other bits", threads);
      ++failures;
    }
  }
  return failures;
}

template <class T>
void append(Bytes& all, const std::vector<T>& values) {
  const auto* from = reinterpret_cast<const unsigned char*>(values.data());
  all.insert(all.end(), from, from + values.size() * sizeof(T));
}

// MaxSim forward and backward, some tokens masked.
template <class Acc>
Bytes solve_tokens(DType dtype, int threads) {
  constexpr int64_t n = 23, m = 9, length = 31, width = 45, dim = 40;
  thread_count = threads;
  std::mt19937 random(5);
  const Bytes x = matrix(dtype, n * length, dim, random), y = matrix(dtype, m * width, dim, random);
  bool x_mask[n * length], y_mask[m * width];
  for (bool& there : x_mask) there = random() % 4 > 0;
  for (bool& there : y_mask) there = random() % 4 > 0;
  std::vector<Acc> scores(n * m), grad(n * m, Acc(0.5));
  std::vector<int32_t> where(n * m * length);
  Bytes x_grad(x.size()), y_grad(y.size());
  contrastive_ops::TokenProblem<Acc> p;
  p.dtype = dtype;
  p.dim = dim;
  p.queries = {x.data(), n, length, length * dim, dim, x_mask, nullptr};
  p.documents = {y.data(), m, width, width * dim, dim, y_mask, nullptr};
  p.workspace_bytes = 1 << 14;
  p.scores = scores.data();
  p.where = where.data();
  token_similarity(p);
  p.grad = grad.data();
  p.queries.grad = x_grad.data();
  p.documents.grad = y_grad.data();
  token_similarity(p);
  Bytes all;
  append(all, scores);
  append(all, where);
  append(all, x_grad);
  append(all, y_grad);
  return all;
}

// Nearest rows of other labels with a bound in each slot, and the gradient of their distances.
template <class Acc>
Bytes solve_neighbours(DType dtype, int threads) {
  constexpr int64_t n = 291, dim = 37, slots = 5;
  thread_count = threads;
  std::mt19937 random(6);
  const Bytes x = matrix(dtype, n, dim, random);
  std::vector<int32_t> label(n), bound(slots * n), closest(slots * n), farthest(n);
  for (int32_t& l : label) l = int32_t(random() % 90);
  for (int32_t& b : bound) b = int32_t(random() % n);
  contrastive_ops::NeighbourProblem<Acc> p;
  p.rows = n;
  p.dim = p.stride = dim;
  p.x = reinterpret_cast<const Acc*>(x.data());
  p.label = label.data();
  p.slots = slots;
  p.bound = bound.data();
  p.closest = closest.data();
  p.farthest = farthest.data();
  p.workspace_bytes = 1 << 20;
  neighbours(p);
  std::vector<int64_t> left(n), right(farthest.begin(), farthest.end());
  for (int64_t i = 0; i < n; ++i) left[i] = i;
  std::vector<Acc> weight(n, Acc(1)), squares(n), grad(n * dim);
  contrastive_ops::PairProblem<Acc> pair;
  pair.rows = pair.pairs = n;
  pair.dim = pair.stride = dim;
  pair.x = p.x;
  pair.left = left.data();
  pair.right = right.data();
  pair.squares = squares.data();
  pairs(pair);
  pair.squares = nullptr;
  pair.weight = weight.data();
  pair.grad = grad.data();
  pairs(pair);
  Bytes all;
  append(all, closest);
  append(all, farthest);
  append(all, squares);
  append(all, grad);
  return all;
}

int compare_maxima(const char* name, DType dtype, Bytes (*solve)(DType, int)) {
  const Bytes alone = solve(dtype, 1);
  int failures = 0;
  for (const int threads : {2, 5}) {
    if (solve(dtype, threads) == alone) continue;
    std::printf("%s, %s: other bits at %d threads\n", contrastive_ops::current_isa(), name, threads);
    ++failures;
  }
  return failures;
}

}  // namespace

int main() {
  int failures = 0, isas = 0;
  const char* const* names = contrastive_ops::available_isas(&isas);
  for (int isa = 0; isa < isas; ++isa) {
    contrastive_ops::select_isa(names[isa]);
    for (const Shape& shape : kShapes) {
      failures += compare<float>(shape, DType::float32, "float32");
      failures += compare<float>(shape, DType::bfloat16, "bfloat16");
      failures += compare<float>(shape, DType::float16, "float16");
      failures += compare<double>(shape, DType::float64, "float64");
    }
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      failures += compare_maxima("tokens", dtype, solve_tokens<float>);
    }
    failures += compare_maxima("tokens, float64", DType::float64, solve_tokens<double>);
    failures += compare_maxima("neighbours", DType::float32, solve_neighbours<float>);
    failures += compare_maxima("neighbours, float64", DType::float64, solve_neighbours<double>);
    std::printf("%s: %zu problems in four dtypes at 1, 2 and 5 threads\n", names[isa],
                sizeof kShapes / sizeof *kShapes);
  }
  return failures ? 1 : 0;
}
