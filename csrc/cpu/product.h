// The micro-kernel: a block of C in registers, (+)= A (one broadcast element) * B (vectors).
//
// A "unit" is what one multiply-accumulate takes from a lane: a number, or for bfloat16 a pair of
// them. `depth` counts units.
#pragma once

template <class A>
struct Plain {
  using Acc = A;
  using Unit = A;
  static constexpr int pack = 1;  // elements in a unit
  static Vec<Acc> mac(Vec<Acc> c, Vec<Unit> a, Vec<Unit> b) { return a * b + c; }
};

#if ISA_BF16
struct Pairs {
  using Acc = float;
  using Unit = uint32_t;
  static constexpr int pack = 2;
  static Vec<Acc> mac(Vec<Acc> c, Vec<Unit> a, Vec<Unit> b) {
    return (Vec<Acc>)_mm512_dpbf16_ps((__m512)c, (__m512bh)(__m512i)a, (__m512bh)(__m512i)b);
  }
};
#endif

constexpr int micro_rows = ISA_MICRO_ROWS;
template <class T>
constexpr int micro_columns = 2 * lanes<T>;

// a(r, k) = a[r * row_step + k * depth_step]; b: one panel, [depth][vectors * lanes].
template <class P, int rows, int vectors, int row_step, int depth_step>
void micro_kernel(const typename P::Unit* __restrict a, const typename P::Unit* __restrict b,
                  int64_t depth, typename P::Acc* __restrict c, int64_t c_stride,
                  bool accumulate) {
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  constexpr int n = lanes<Acc>;
  Vec<Acc> sum[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<Unit> y[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) y[v] = load(b + v * n);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const Vec<Unit> x = splat(a[r * row_step]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = P::mac(sum[r][v], x, y[v]);
    }
    a += depth_step;
    b += vectors * n;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      Acc* p = c + r * c_stride + v * n;
      store(p, accumulate ? load(p) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class P>
using MicroKernel = void (*)(const typename P::Unit*, const typename P::Unit*, int64_t,
                             typename P::Acc*, int64_t, bool);

// The kernels of every smaller row count, for the edges.
template <class P, int vectors, int row_step, int depth_step, int... r>
inline MicroKernel<P> choose_kernel(int64_t rows, std::integer_sequence<int, r...>) {
  static constexpr MicroKernel<P> table[] = {
      micro_kernel<P, r + 1, vectors, row_step, depth_step>...};
  return table[rows - 1];
}

// C (rows x columns) (+)= A * B for one panel of B, columns <= micro_columns.
template <class P, int row_step, int depth_step>
inline void multiply_panel(const typename P::Unit* a, int64_t rows, const typename P::Unit* b,
                           int64_t depth, typename P::Acc* c, int64_t c_stride, int64_t columns,
                           bool accumulate) {
  using Acc = typename P::Acc;
  using Sequence = std::make_integer_sequence<int, micro_rows>;
  const bool narrow = columns <= lanes<Acc>;
  const int64_t width = narrow ? lanes<Acc> : micro_columns<Acc>;
  for (int64_t r = 0; r < rows; r += micro_rows) {
    const int64_t count = minimum<int64_t>(micro_rows, rows - r);
    const auto kernel = narrow ? choose_kernel<P, 1, row_step, depth_step>(count, Sequence{})
                               : choose_kernel<P, 2, row_step, depth_step>(count, Sequence{});
    Acc* target = c + r * c_stride;
    if (columns == width) {
      kernel(a + r * row_step, b, depth, target, c_stride, accumulate);
      continue;
    }
    Acc edge[micro_rows * micro_columns<Acc>];
    kernel(a + r * row_step, b, depth, edge, width, false);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        Acc& out = target[i * c_stride + j];
        out = accumulate ? out + edge[i * width + j] : edge[i * width + j];
      }
    }
  }
}
