// From gradients of unit rows to gradients of the inputs, and the candidates whose coefficients are
// few enough to be handled one by one: positives, and a row's own negatives.
#pragma once

// sum += coefficient * unit row
template <class Acc, class E>
inline void add_row(Acc* sum, const E* row, int64_t dim, Acc coefficient) {
  for_each_vector<Acc>(dim, [&](int64_t k, auto n) {
    const Vec<Acc> term = load_first<Acc>(row + k, n) * coefficient;
    store_first<Acc>(sum + k, load_first<Acc>(sum + k, n) + term, n);
  });
}

// Writes scale * (gradient - <gradient, u> u) / |row| for the unit row u, or scale * gradient where
// rows are not normalised, to `out` (null: nowhere; it may be `gradient` itself). Returns
// <gradient, u>.
template <class Acc, class E>
inline double finish_row(const Acc* gradient, const E* row, int64_t dim, Acc unit, bool normalize,
                         Acc scale, E* out) {
  const double dot = scaled_dot(gradient, Acc(1), row, unit, dim);
  if (!out) return dot;
  const Acc along = normalize ? Acc(dot) : Acc(0), factor = scale * unit;
  for_each_vector<Acc>(dim, [&](int64_t k, auto n) {
    const Vec<Acc> u = load_first<Acc>(row + k, n) * unit;
    store_first<Acc>(out + k, (load_first<Acc>(gradient + k, n) - u * along) * factor, n);
  });
  return dot;
}

// Positives among columns [begin, begin + count) of `keys`, in order of rows.
template <class S>
void add_positive_queries(const S& st, int64_t first_row, int64_t rows, int64_t begin,
                          int64_t count) {
  using Acc = typename S::Acc;
  const auto add = [&](int64_t i, int64_t k, int64_t j) {
    add_row(st.keys.grad_sum + j * st.p.dim, st.x_row(i), st.p.dim,
            Acc(st.positive_coefficient[i * st.p.positives + k] * double(st.x_scale[i].unit())));
  };
  if (st.p.positives == 0) return;
  if (!st.p.positive) {
    const int64_t last = minimum(first_row + rows, begin + count);
    for (int64_t i = maximum(first_row, begin); i < last; ++i) add(i, 0, i);
    return;
  }
  const int64_t* index = st.p.positive + first_row * st.p.positives;
  for (int64_t e = 0; e < rows * st.p.positives; ++e) {
    if (uint64_t(index[e] - begin) < uint64_t(count)) {
      add(first_row + e / st.p.positives, e % st.p.positives, index[e]);
    }
  }
}

template <class S>
void finish_candidates(const S& st, const Side<typename S::Acc>& side, int64_t begin,
                       int64_t count) {
  using E = typename S::Elem;
  for (int64_t j = begin; j < begin + count; ++j) {
    side.dot[j] = finish_row(side.grad_sum + j * st.p.dim, st.candidate_row(side, j), st.p.dim,
                             side.scale[j].unit(), st.p.normalize, st.p.scale,
                             static_cast<E*>(side.block->grad) + j * st.p.dim);
  }
}

// A row's own negatives: their gradients, and their part in `dx` (null: none is wanted).
template <class S>
void finish_own(const S& st, int64_t i, typename S::Acc* dx, typename S::Acc* buffer) {
  using Acc = typename S::Acc;
  using E = typename S::Elem;
  const auto& own = st.p.own;
  const Acc x_unit = st.x_scale[i].unit();
  double dots = 0;
  for (int64_t h = 0; h < own.count; ++h) {
    const int64_t at = i * own.count + h;
    const double t = double(st.own_logit[at]);
    const Acc unit = st.own_scale[at].unit();
    double p = 0;
    if (t != -infinity<double>) {
      p = double(st.weight(i)) * __builtin_exp2(t - st.row_lse[i]) - double(st.softmax[i].smooth);
    }
    const E* row = st.own_row(i, h);
    if (dx) add_row(dx, row, st.p.dim, Acc(p * double(unit)));
    if (!own.grad) continue;
    const Acc coefficient = Acc(p * double(x_unit));
    for_each_vector<Acc>(st.p.dim, [&](int64_t k, auto n) {
      store_first<Acc>(buffer + k, load_first<Acc>(st.x_row(i) + k, n) * coefficient, n);
    });
    dots += finish_row(buffer, row, st.p.dim, unit, st.p.normalize, st.p.scale,
                       static_cast<E*>(own.grad) + at * st.p.dim);
  }
  if (own.count) st.own_dot[i] = dots;
}

// The end of row i: `dx` holds the sum over the scanned candidates (null: no gradient of x is
// wanted). `buffer` has dim_padded numbers.
template <class S>
void finish_query(const S& st, int64_t i, typename S::Acc* dx, typename S::Acc* buffer) {
  using Acc = typename S::Acc;
  using E = typename S::Elem;
  finish_own(st, i, dx, buffer);
  if (!dx) return;
  if (st.p.one_set && i >= st.tile_columns) {  // from above the diagonal
    const Acc* above = st.keys.grad_sum + i * st.p.dim;
    for_each_vector<Acc>(st.p.dim, [&](int64_t k, auto n) {
      store_first<Acc>(dx + k, load_first<Acc>(dx + k, n) + load_first<Acc>(above + k, n), n);
    });
  }
  for (int64_t k = 0; k < st.p.positives; ++k) {
    const int64_t j = st.positive_index(i, k);
    if (j < 0) continue;
    double coefficient = st.positive_coefficient[i * st.p.positives + k];
    for (int64_t back = 0; st.p.one_set && back < st.p.positives; ++back) {
      if (st.positive_index(j, back) != i) continue;
      coefficient += st.positive_coefficient[j * st.p.positives + back];
    }
    add_row(dx, st.candidate_row(st.keys, j), st.p.dim,
            Acc(coefficient * double(st.keys.scale[j].unit())));
  }
  E* out = st.p.x_grad ? static_cast<E*>(st.p.x_grad) + i * st.p.dim : nullptr;
  st.row_dot[i] = finish_row(dx, st.x_row(i), st.p.dim, st.x_scale[i].unit(), st.p.normalize,
                             st.p.scale, out);
}

// Pairwise: the sum of all coefficients.
template <class S>
double bias_gradient(const S& st) {
  double sum = 0;
  for (int64_t i = 0; i < st.p.rows; ++i) sum += st.row_lse[i];
  for (int64_t e = 0; e < st.p.rows * st.p.positives; ++e) sum += st.positive_coefficient[e];
  return sum;
}

// With l = s / T - margin / T for positives, d total / dT = -1/T * sum of P l; and the sum of P s
// over a row is <unit row, its gradient>, which projecting has already taken.
template <class S>
double temperature_gradient(const S& st) {
  const auto& p = st.p;
  double dots = 0, positives = 0;
  if (st.temperature_from_x) {
    for (int64_t i = 0; i < p.rows; ++i) dots += st.row_dot[i];
  } else {
    for (const auto* side : {&st.keys, &st.negatives}) {
      for (int64_t j = 0; side->block && j < side->block->count; ++j) dots += side->dot[j];
    }
    for (int64_t i = 0; p.own.count && i < p.rows; ++i) dots += st.own_dot[i];
  }
  for (int64_t e = 0; e < p.rows * p.positives; ++e) positives += st.positive_coefficient[e];
  if (p.one_set) dots /= 2;  // every pair is in the gradients of both its rows
  const double scale = double(p.scale);
  return -scale * scale * (dots - double(p.margin) * positives);
}
