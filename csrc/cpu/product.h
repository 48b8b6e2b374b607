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

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

constexpr int micro_rows = ISA_MICRO_ROWS;
template <class T>
constexpr int micro_columns = 2 * lanes<T>;

// Columns [begin, end) of the rows as the products of gradients take them: panel `panel` of
// micro_columns, and zeros in it outside of them. A panel that a prefix ends in is several pieces,
// each with the coefficients of its level.
struct Piece {
  int64_t panel, begin, end, level;
  int64_t offset;  // of its packed columns
};

// Where the sum over k continues: `count` runs of `depth` units, so that a tile boundary need not
// be a pass over C.
struct Runs {
  int64_t count = 1;
  int64_t a_step = 0, b_step = 0;  // units from one run to the next
};

// a(r, k) = a[r * row_step + k * depth_step]; b: one panel, [depth][vectors * lanes].
//
// C is fetched while the sums run. So are the next rows of A where they lie row by row (a dozen
// short streams are more than the hardware follows), and a share of the next panel of B.
template <class P, int rows, int vectors, int row_step, int depth_step>
void micro_kernel(const typename P::Unit* __restrict a, const typename P::Unit* __restrict b,
                  int64_t depth, const Runs& runs, typename P::Acc* __restrict c,
                  int64_t c_stride, bool accumulate,
                  const typename P::Unit* next_b) {
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  constexpr int n = lanes<Acc>;
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + r * c_stride + v * n, 1);
  }
  Vec<Acc> sum[rows][vectors] = {};
  for (int64_t run = 0; run < runs.count; ++run) {
    const Unit* x = a + run * runs.a_step;
    const Unit* panel = b + run * runs.b_step;
    const char* next_rows = reinterpret_cast<const char*>(x + rows * row_step);
    const char* next_panel = reinterpret_cast<const char*>(next_b + run * runs.b_step);
    for (int64_t k = 0; k < depth; ++k) {
      Vec<Unit> y[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) y[v] = load(panel + v * n);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const Vec<Unit> x_r = splat(x[r * row_step]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[r][v] = P::mac(sum[r][v], x_r, y[v]);
      }
      x += depth_step;
      panel += vectors * n;
      if constexpr (row_step > 1) {
#pragma GCC unroll 2
        for (int i = 0; i < P::pack; ++i) __builtin_prefetch(next_rows + 64 * i, 0, 2);
        next_rows += 64 * P::pack;
      }
      __builtin_prefetch(next_panel, 0, 2);
      next_panel += 64;
    }
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
                             const Runs&, typename P::Acc*, int64_t, bool,
                             const typename P::Unit*);

// Of a panel with `columns` columns to come: one vector if that is enough.
template <class T>
inline int64_t panel_width(int64_t columns) {
  return columns <= lanes<T> ? lanes<T> : micro_columns<T>;
}

// The kernels of every smaller row count, for the edges.
template <class P, int vectors, int row_step, int depth_step, int... r>
inline MicroKernel<P> choose_kernel(int64_t rows, std::integer_sequence<int, r...>) {
  static constexpr MicroKernel<P> table[] = {
      micro_kernel<P, r + 1, vectors, row_step, depth_step>...};
  return table[rows - 1];
}

// C (rows x columns) (+)= A * B for one panel of B, columns <= micro_columns. `next_b` is the panel
// that the caller will come with next.
template <class P, int row_step, int depth_step>
inline void multiply_panel(const typename P::Unit* a, int64_t rows, const typename P::Unit* b,
                           int64_t depth, typename P::Acc* c, int64_t c_stride, int64_t columns,
                           bool accumulate, const typename P::Unit* next_b,
                           const Runs& runs = {}) {
  using Acc = typename P::Acc;
  using Sequence = std::make_integer_sequence<int, micro_rows>;
  const int64_t width = panel_width<Acc>(columns);
  const bool narrow = width == lanes<Acc>;
  const int64_t share = divide_up(width * depth, divide_up(rows, micro_rows));
  for (int64_t r = 0; r < rows; r += micro_rows) {
    const typename P::Unit* next = next_b + r / micro_rows * share;
    const int64_t count = minimum<int64_t>(micro_rows, rows - r);
    const auto kernel = narrow ? choose_kernel<P, 1, row_step, depth_step>(count, Sequence{})
                               : choose_kernel<P, 2, row_step, depth_step>(count, Sequence{});
    Acc* target = c + r * c_stride;
    if (columns == width) {
      kernel(a + r * row_step, b, depth, runs, target, c_stride, accumulate, next);
      continue;
    }
    Acc edge[micro_rows * micro_columns<Acc>];
    kernel(a + r * row_step, b, depth, runs, edge, width, false, next);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        Acc& out = target[i * c_stride + j];
        out = accumulate ? out + edge[i * width + j] : edge[i * width + j];
      }
    }
  }
}
