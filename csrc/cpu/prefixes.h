// Losses on prefixes of the rows, in one pass over them: a prefix's similarity is a partial sum of
// the whole one, times both inverse norms of the prefix.
//
// The scan keeps every prefix's logits t in a plane of its own. With P = dL/dlogit of prefix l and
// its scales u_i, u_j (from packed rows to the prefix's unit rows), the entries of a row that lie
// between prefixes g - 1 and g have the coefficients
//
//   A_g = sum over l >= g of P_l u_i u_j                           in place of plane g
//
// and what projecting takes off them is the packed row times
//
//   K_g = sum over l >= g of u_i^2 <P_l, s_l>,   <P_l, s_l> the sum of P s over a row (or column),
//
// where s is t without its bias. A row's own negatives are handled one by one, as everywhere.
#pragma once

// The scales of a prefix' rows besides the packed ones. False where they are out of range.
template <class S>
bool prefix_scale(const S& level, const RowScale<typename S::Acc>& whole,
                  const typename S::Elem* row, RowScale<typename S::Acc>& out) {
  using Acc = typename S::Acc;
  const double norm = row_norm<Acc>(row, level.p.dim);
  out = {whole.element, 1, Acc(norm)};
  if (!level.p.normalize) return true;
  out.post = norm > 0 ? Acc(1 / (norm * double(whole.element))) : Acc(0);
  constexpr double least = sizeof(Acc) == 4 ? 0x1p-40 : 0x1p-400;
  return norm == 0 || norm >= double(whole.norm) * least;
}

// Row i and its own negatives.
template <class S>
bool measure_level_query(const S& st, const S& level, int64_t i) {
  bool served = prefix_scale(level, st.x_scale[i], st.x_row(i), level.x_scale[i]);
  for (int64_t h = 0; h < st.p.own.count; ++h) {
    const int64_t at = i * st.p.own.count + h;
    served &= prefix_scale(level, st.own_scale[at], st.own_row(i, h), level.own_scale[at]);
    measure_own(level, i, h);
  }
  return served;
}

// Scales of all prefixes. False where one scale cannot serve a row and its prefix.
template <class S>
bool measure_levels(const S& st) {
  constexpr int64_t batch = 64;
  const auto& p = st.p;
  const int64_t key_count = p.keys.count, count = p.rows + key_count + p.negatives.count;
  const int64_t tasks = divide_up(count, batch);
  bool* served = st.level_served;
  st.tasks(tasks, 0.1 * double(count * p.dim), [&](int64_t task, int) {
    bool all = true;
    for (int64_t i = task * batch; i < minimum(count, (task + 1) * batch); ++i) {
      for (int64_t l = 0; l < p.prefix_count; ++l) {
        const S& level = st.level[l];
        int64_t j = i;
        if (j < p.rows) {
          all &= measure_level_query(st, level, j);
        } else {
          const bool key = (j -= p.rows) < key_count;
          if (!key) j -= key_count;
          const auto &whole = key ? st.keys : st.negatives, &part = key ? level.keys : level.negatives;
          all &= prefix_scale(level, whole.scale[j], st.candidate_row(whole, j), part.scale[j]);
        }
      }
    }
    served[task] = all;
  });
  bool all = true;
  for (int64_t task = 0; task < tasks; ++task) all &= served[task];
  return all;
}

// The columns' scales, tile by tile; 0 for the padding of a tile that is not full.
template <class S>
void fill_column_posts(const S& st) {
  for (int64_t t = 0; t < st.tiles; ++t) {
    const auto tile = st.tile(t);
    for (int64_t l = 0; l < st.p.prefix_count; ++l) {
      const S& level = st.level[l];
      const auto& side = tile.side == &st.keys ? level.keys : level.negatives;
      for (int64_t j = 0; j < st.tile_columns; ++j) {
        level.column_post[t * st.tile_columns + j] =
            j < tile.count ? side.scale[tile.begin + j].post : 0;
      }
    }
  }
}

// L_i from the prefixes' losses, and a column's.
template <class S>
void sum_level_losses(const S& st) {
  using Acc = typename S::Acc;
  for (Acc* Problem<Acc>::*loss : {&Problem<Acc>::loss, &Problem<Acc>::column_loss}) {
    for (int64_t i = 0; st.p.*loss && i < st.p.rows; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < st.p.prefix_count; ++l) {
        sum += st.level[l].level_weight * double((st.level[l].p.*loss)[i]);
      }
      (st.p.*loss)[i] = Acc(sum);
    }
  }
}

// What the coefficients of a tile take from a prefix, and where they go.
template <class Acc>
struct LevelTile {
  const RowSoftmax<Acc>* softmax;  // of the stripe's rows
  ColumnSoftmax<Acc> column;       // where columns have losses, too
  const RowScale<Acc>* x_scale;
  const Acc* y_post;
  Acc *plane, *row_sum;
};

// The biases of a row's logits, the same on every prefix; null where the tile has none.
template <class S>
class RowBias {
  using Acc = typename S::Acc;

 public:
  RowBias(const S& st, const Stripe& stripe, const Tile<Acc>& tile)
      : st_(st), tile_(tile), first_row_(stripe.begin), block_(*tile.side->block) {
    for (int64_t j = 0; j < most_columns; ++j) {
      const bool given = block_.bias && j < tile.count;
      columns_[j] = given ? Acc(double(block_.bias[tile.begin + j]) * log2e) : Acc(0);
    }
  }
  const Acc* operator()(int64_t r) {
    if (block_.group == 0) return columns_;
    int64_t begin, end;
    group_of_row(st_, tile_, first_row_ + r, &begin, &end);
    if (begin >= end) return columns_;
    __builtin_memcpy(row_, columns_, sizeof row_);
    for (int64_t j = begin; j < end; ++j) row_[j] += Acc(double(block_.group_bias) * log2e);
    return row_;
  }

 private:
  const S& st_;
  const Tile<Acc>& tile_;
  int64_t first_row_;
  const Block<Acc>& block_;
  Acc columns_[most_columns], row_[most_columns];
};
struct NoBias {
  std::nullptr_t operator()(int64_t) const { return nullptr; }
};

// From the kept logits of all planes of a tile to its coefficients A, and the tile's part of the
// sums of P s over rows (`row_sum`) and, of the first `column_rows` rows, over columns.
template <bool bounded, bool two, class Policy, class Acc, class Width, class Bias>
void write_levels(const LevelTile<Acc>* levels, int64_t count, int64_t rows, int64_t column_rows,
                  bool smoothing, Width width, Bias&& bias,
                  Vec<Acc> (*column_sum)[most_columns / lanes<Acc>]) {
  using V = Vec<Acc>;
  constexpr int n = lanes<Acc>;
  const V left_out = splat(-infinity<Acc>);
  [[maybe_unused]] Acc ones[most_columns];
  for (Acc& one : ones) one = 1;
  const auto add_level = [&](const LevelTile<Acc>& level, int64_t r, auto added, V* a, V* columns) {
    const RowSoftmax<Acc> softmax = level.softmax[r];
    const V x_post = splat(level.x_scale[r].post);
    const Acc *kept = level.plane + r * tile_stride, *y_post = level.y_post;
    V row_sum = {};
    for (int64_t j = 0; j < width; j += n) {
      __builtin_prefetch(kept + rows_ahead * tile_stride + j);
      const V t = load(kept + j);
      const auto out = t == left_out;
      const V kept_as = bounded ? exp2(t) : t;
      const V p = coefficients<bounded, two>(kept_as, kept_as, softmax, level.column, j, smoothing);
      V s = t;
      if constexpr (!std::is_null_pointer_v<decltype(added)>) s -= load(added + j);
      const V product = out ? V{} : p * s;
      row_sum += product;
      if (columns) columns[j / n] += product;
      a[j / n] += p * x_post * load(y_post + j);
    }
    level.row_sum[r] = Acc(sum_lanes<Acc>(row_sum));
  };
  // Rows outside, levels within: the sums A of a row (a pair of rows) stay at hand.
  for (int64_t r = 0; r < rows; r += Policy::pack) {
    V a[most_columns / n] = {};
    [[maybe_unused]] V b[most_columns / n] = {};
    for (int64_t l = count - 1; l >= 0; --l) {
      const LevelTile<Acc>& level = levels[l];
      V* columns = r < column_rows ? column_sum[l] : nullptr;
      add_level(level, r, bias(r), a, columns);
      if constexpr (Policy::pack == 1) {
        for (int64_t j = 0; j < width; j += n) store(level.plane + r * tile_stride + j, a[j / n]);
      } else {
#if ISA_BF16
        if (r + 1 < rows) add_level(level, r + 1, bias(r + 1), b, columns);
        write_pairs(a, b, int(width / n), Acc(1), Acc(1), ones, level.plane, r);
#endif
      }
    }
  }
}

template <class S>
void write_level_coefficients(const S& st, const Stripe& stripe, const Tile<typename S::Acc>& tile,
                              int64_t local) {
  using Acc = typename S::Acc;
  constexpr int n = lanes<Acc>;
  const bool is_key = tile.side == &st.keys;
  Vec<Acc> columns[most_prefixes][most_columns / n];
  LevelTile<Acc> levels[most_prefixes];
  for (int64_t l = 0; l < st.p.prefix_count; ++l) {
    for (auto& column : columns[l]) column = Vec<Acc>{};
    const S& level = st.level[l];
    levels[l] = {level.softmax + stripe.begin,
                 {level.column_factor + tile.begin, level.column_lse + tile.begin,
                  level.column_smooth + tile.begin},
                 level.x_scale + stripe.begin,
                 level.column_post + tile.index * st.tile_columns,
                 st.template scanned_tile<Acc>(stripe, local, int(l)),
                 level.part_sum + tile.index * st.rows};
  }
  const int64_t rows = st.rows_of(stripe, tile, true), above = st.rows_of(stripe, tile, false);
  const auto write = [&](auto two, auto&& bias) {
    with_columns(round_up(tile.count, n), [&](auto width) {
      using Policy = typename S::Policy;
      const auto run = [&](auto bounded) {
        write_levels<bounded, two, Policy>(levels, st.p.prefix_count, rows, above,
                                           st.p.smoothing > 0, width, bias, columns);
      };
      st.bounded ? run(std::true_type()) : run(std::false_type());
    });
  };
  if (st.two && is_key) {
    write(std::true_type(), NoBias());
  } else if (tile.side->block->bias || tile.side->block->group > 0) {
    write(std::false_type(), RowBias<S>(st, stripe, tile));
  } else {
    write(std::false_type(), NoBias());
  }
  for (int64_t l = 0; l < st.p.prefix_count; ++l) {
    const auto& side = is_key ? st.level[l].keys : st.level[l].negatives;
    for (int64_t j = 0; j < tile.count; ++j) {
      const double before = stripe.index > 0 ? side.dot[tile.begin + j] : 0;
      side.dot[tile.begin + j] = before + double(columns[l][j / n][j % n]) / double(st.c);
    }
  }
}

// Calls f(level, begin, end) for the stretches of a row between prefixes.
template <class S, class F>
void for_each_stretch(const S& st, F&& f) {
  for (int64_t l = 0, begin = 0; l < st.p.prefix_count; ++l) {
    f(l, begin, st.p.prefixes[l]);
    begin = st.p.prefixes[l];
  }
}

// Positive k of row i is row j of the keys: calls f(level, coefficient, similarity) from the last
// prefix down and then adds its part of A, times the packed row, to `sum`.
template <class S, class F>
void add_level_positive(const S& st, int64_t i, int64_t k, int64_t j, typename S::Acc* sum,
                        const typename S::Elem* row, typename S::Acc element, F&& f) {
  using Acc = typename S::Acc;
  const int64_t at = i * st.p.positives + k;
  double a[most_prefixes], total = 0;
  for (int64_t l = st.p.prefix_count - 1; l >= 0; --l) {
    const S& level = st.level[l];
    double coefficient = level.positive_coefficient[at];
    for (int64_t back = 0; st.p.one_set && back < st.p.positives; ++back) {
      if (st.positive_index(j, back) != i) continue;
      coefficient += level.positive_coefficient[j * st.p.positives + back];
    }
    total += coefficient * double(level.x_scale[i].post) * double(level.keys.scale[j].post);
    a[l] = total;
    f(l, coefficient,
      double(level.positive_logit[at]) / double(st.c) + double(st.p.margin));
  }
  for_each_stretch(st, [&](int64_t l, int64_t begin, int64_t end) {
    add_row(sum + begin, row + begin, end - begin, Acc(a[l] * double(element)));
  });
}

// From the sums over A to the gradient of an input row; `sum` may be `out`. `dot(l)` and `post(l)`
// are the row's <P_l, s_l> and scale.
template <class S, class Dot, class Post>
void finish_level_row(const S& st, const typename S::Acc* sum, const typename S::Elem* row,
                      typename S::Acc element, Dot&& dot, Post&& post, typename S::Elem* out) {
  using Acc = typename S::Acc;
  double along[most_prefixes], total = 0;
  for (int64_t l = st.p.prefix_count - 1; l >= 0; --l) {
    if (st.p.normalize) total += dot(l) * double(post(l)) * double(post(l));
    along[l] = total;
  }
  for_each_stretch(st, [&](int64_t l, int64_t begin, int64_t end) {
    const Acc a = Acc(along[l]) * element, factor = st.p.scale * element;
    for_each_vector<Acc>(end - begin, [&](int64_t k, auto n) {
      const Vec<Acc> y = load_first<Acc>(row + begin + k, n);
      store_first<Acc>(out + begin + k, (load_first<Acc>(sum + begin + k, n) - y * a) * factor, n);
    });
  });
}

// The end of candidates [begin, begin + count) of a side, with the rows they are positives of.
template <class S>
void finish_level_candidates(const S& st, const Side<typename S::Acc>& side, int64_t begin,
                             int64_t count) {
  using E = typename S::Elem;
  const bool is_key = &side == &st.keys;
  const auto part = [&](int64_t l) -> const auto& {
    return is_key ? st.level[l].keys : st.level[l].negatives;
  };
  for (int64_t i = 0; is_key && i < st.p.rows; ++i) {
    for (int64_t k = 0; k < st.p.positives; ++k) {
      const int64_t j = st.positive_index(i, k);
      if (uint64_t(j - begin) >= uint64_t(count)) continue;
      add_level_positive(st, i, k, j, side.grad_sum + j * st.p.dim, st.x_row(i),
                         st.x_scale[i].element, [&](int64_t l, double c, double s) {
                           part(l).dot[j] += c * s;
                         });
    }
  }
  for (int64_t j = begin; j < begin + count; ++j) {
    finish_level_row(
        st, side.grad_sum + j * st.p.dim, st.candidate_row(side, j), side.scale[j].element,
        [&](int64_t l) { return part(l).dot[j]; },
        [&](int64_t l) { return part(l).scale[j].post; },
        static_cast<E*>(side.block->grad) + j * st.p.dim);
  }
}

// A row's own negatives: their gradients, and their part in `dx` (null: none is wanted) and in the
// row's sums of P s.
template <class S>
void finish_level_own(const S& st, int64_t i, typename S::Acc* dx, typename S::Acc* buffer) {
  using Acc = typename S::Acc;
  using E = typename S::Elem;
  const auto& own = st.p.own;
  for (int64_t h = 0; h < own.count; ++h) {
    const int64_t at = i * own.count + h;
    const double bias = own.bias ? double(own.bias[at]) * log2e : 0;
    double a[most_prefixes], dots[most_prefixes], total = 0;
    for (int64_t l = st.p.prefix_count - 1; l >= 0; --l) {
      const S& level = st.level[l];
      const double t = double(level.own_logit[at]);
      const bool kept = t != -infinity<double>;
      double p = 0;
      if (kept) {
        p = double(level.weight(i)) * __builtin_exp2(t - level.row_lse[i]) -
            double(level.softmax[i].smooth);
      }
      dots[l] = kept ? p * (t - bias) / double(st.c) : 0;
      level.row_dot[i] += dots[l];
      total += p * double(level.x_scale[i].post) * double(level.own_scale[at].post);
      a[l] = total;
    }
    const E *x = st.x_row(i), *row = st.own_row(i, h);
    const double x_element = double(st.x_scale[i].element);
    const Acc element = st.own_scale[at].element;
    for_each_stretch(st, [&](int64_t l, int64_t begin, int64_t end) {
      if (dx) add_row(dx + begin, row + begin, end - begin, Acc(a[l] * double(element)));
      if (!own.grad) return;
      const Acc coefficient = Acc(a[l] * x_element);
      for_each_vector<Acc>(end - begin, [&](int64_t k, auto n) {
        const Vec<Acc> term = load_first<Acc>(x + begin + k, n) * coefficient;
        store_first<Acc>(buffer + begin + k, term, n);
      });
    });
    if (!own.grad) continue;
    finish_level_row(
        st, buffer, row, element, [&](int64_t l) { return dots[l]; },
        [&](int64_t l) { return st.level[l].own_scale[at].post; },
        static_cast<E*>(own.grad) + at * st.p.dim);
  }
}

// The end of row i, row `local` of its stripe; `dx` null: only its own negatives have gradients.
template <class S>
void finish_level_query(const S& st, int64_t i, int64_t local, typename S::Acc* dx,
                        typename S::Acc* buffer) {
  using Acc = typename S::Acc;
  using E = typename S::Elem;
  const int64_t first = st.p.one_set ? i / st.tile_columns : 0;
  for (int64_t l = 0; l < st.p.prefix_count; ++l) {
    const S& level = st.level[l];
    double sum = 0;
    for (int64_t t = first; dx && t < st.tiles; ++t) {
      sum += double(level.part_sum[t * st.rows + local]);
    }
    level.row_dot[i] = sum / double(st.c) + (st.p.one_set ? level.keys.dot[i] : 0);
  }
  finish_level_own(st, i, dx, buffer);
  if (!dx) return;
  if (st.p.one_set && first > 0) add_row(dx, st.keys.grad_sum + i * st.p.dim, st.p.dim, Acc(1));
  for (int64_t k = 0; k < st.p.positives; ++k) {
    const int64_t j = st.positive_index(i, k);
    if (j < 0) continue;
    add_level_positive(st, i, k, j, dx, st.candidate_row(st.keys, j), st.keys.scale[j].element,
                       [&](int64_t l, double c, double s) { st.level[l].row_dot[i] += c * s; });
  }
  if (!st.p.x_grad) return;
  finish_level_row(
      st, dx, st.x_row(i), st.x_scale[i].element,
      [&](int64_t l) { return st.level[l].row_dot[i]; },
      [&](int64_t l) { return st.level[l].x_scale[i].post; },
      static_cast<E*>(st.p.x_grad) + i * st.p.dim);
}

template <class S>
double level_temperature_gradient(const S& st) {
  double sum = 0;
  for (int64_t l = 0; l < st.p.prefix_count; ++l) {
    const S& level = st.level[l];
    // Every pair of one set is in the sums of both its rows.
    for (int64_t i = 0; i < st.p.rows; ++i) sum += level.row_dot[i] / (st.p.one_set ? 2 : 1);
    for (int64_t e = 0; e < st.p.rows * st.p.positives; ++e) {
      sum -= double(st.p.margin) * level.positive_coefficient[e];
    }
  }
  return -double(st.p.scale) * double(st.p.scale) * sum;
}
