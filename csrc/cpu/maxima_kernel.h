// A product whose columns only keep their maxima: nothing of it leaves the registers.
#pragma once

template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Of each column (a lane): the largest value, its row, the first of equals; and NaN in `doubt` once
// a value was not finite, for then comparisons alone do not tell.
template <class Acc>
struct Maxima {
  Acc value[micro_columns<Acc>];
  Index<Acc> row[micro_columns<Acc>];
  Acc doubt[micro_columns<Acc>];

  void clear() {
    for (int i = 0; i < micro_columns<Acc>; ++i) {
      value[i] = -infinity<Acc>;
      row[i] = 0;
      doubt[i] = 0;
    }
  }
};

// a: [k][micro_rows] of `rows` rows; b: a panel [k][vectors * lanes]; row r is times post[r].
template <class P, int rows, int vectors>
void maxima_kernel(const typename P::Unit* __restrict a, const typename P::Unit* __restrict b,
                   int64_t depth, const typename P::Acc* post, Index<typename P::Acc> first,
                   Maxima<typename P::Acc>& out) {
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
      const Vec<Unit> x = splat(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = P::mac(sum[r][v], x, y[v]);
    }
    a += micro_rows;
    b += vectors * n;
  }
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    Vec<Acc> value = load(out.value + v * n), doubt = load(out.doubt + v * n);
    Vec<Index<Acc>> row = load(out.row + v * n);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      if constexpr (P::pack > 1) sum[r][v] *= post[r];
      const Vec<Acc> s = sum[r][v];
      doubt += s * Acc(0);
      const auto larger = s > value;
      value = larger ? s : value;
      row = larger ? splat(Index<Acc>(first + r)) : row;
    }
    store(out.value + v * n, value);
    store(out.doubt + v * n, doubt);
    store(out.row + v * n, row);
  }
}

template <class P>
using MaximaKernel = void (*)(const typename P::Unit*, const typename P::Unit*, int64_t,
                              const typename P::Acc*, Index<typename P::Acc>,
                              Maxima<typename P::Acc>&);
template <class P, int vectors, int... r>
inline MaximaKernel<P> choose_maxima(int64_t rows, std::integer_sequence<int, r...>) {
  static constexpr MaximaKernel<P> table[] = {maxima_kernel<P, r + 1, vectors>...};
  return table[rows - 1];
}

// The same for columns in doubt, one value after another: a NaN wins, the first of several.
template <class P>
void settle_doubts(const typename P::Unit* strips, const typename P::Unit* panel, int64_t rows,
                   int64_t depth, const typename P::Acc* post, int64_t width,
                   Maxima<typename P::Acc>& out) {
  using Acc = typename P::Acc;
  Acc c[micro_rows * micro_columns<Acc>];
  const Maxima<Acc> found = out;
  out.clear();
  for (int64_t first = 0; first < rows; first += micro_rows) {
    const int64_t count = minimum<int64_t>(micro_rows, rows - first);
    multiply_panel<P, 1, micro_rows>(strips + first * depth, count, panel, depth, c, width, width,
                                     false, panel);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        const Acc s = P::pack > 1 ? c[r * width + i] * post[first + r] : c[r * width + i];
        if (out.value[i] != out.value[i] || !(s > out.value[i] || s != s)) continue;
        out.value[i] = s;
        out.row[i] = Index<Acc>(first + r);
      }
    }
  }
  for (int i = 0; i < micro_columns<Acc>; ++i) {
    if (found.doubt[i] == found.doubt[i]) {
      out.value[i] = found.value[i];
      out.row[i] = found.row[i];
    }
  }
}

// Maxima over `rows` rows in strips [strip][k][micro_rows], for one panel of `width` columns.
template <class P>
inline void panel_maxima(const typename P::Unit* strips, const typename P::Unit* panel,
                         int64_t rows, int64_t depth, const typename P::Acc* post, int64_t width,
                         Maxima<typename P::Acc>& out) {
  using Acc = typename P::Acc;
  using Sequence = std::make_integer_sequence<int, micro_rows>;
  out.clear();
  for (int64_t first = 0; first < rows; first += micro_rows) {
    const int64_t count = minimum<int64_t>(micro_rows, rows - first);
    const auto kernel = width == lanes<Acc> ? choose_maxima<P, 1>(count, Sequence{})
                                            : choose_maxima<P, 2>(count, Sequence{});
    kernel(strips + first * depth, panel, depth, post + first, Index<Acc>(first), out);
  }
  bool doubt = false;
  for (int64_t i = 0; i < width; ++i) doubt |= out.doubt[i] != out.doubt[i];
  if (doubt) settle_doubts<P>(strips, panel, rows, depth, post, width, out);
}
