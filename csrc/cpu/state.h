// The plan of one call and its memory.
//
// Columns (the candidates of the scanned blocks, keys first) are cut into tiles that never straddle
// blocks, rows into stripes. How they are cut depends on the problem and the instruction set alone,
// never on the number of threads: so every sum has one order, and the same inputs give the same
// bits on any machine load.
#pragma once

constexpr int64_t most_columns = 192;   // of a tile; a multiple of every micro-kernel's sides
constexpr int64_t tile_stride = 208;    // between rows of a tile: an odd number of cache lines
constexpr int64_t packed_stride = 112;  // the same for rows of bfloat16 pairs
constexpr int64_t most_rows = 384;      // of a stripe
constexpr int64_t row_step = 12;        // a multiple of every micro-kernel's rows
constexpr int64_t column_step = 32;     // a multiple of every micro-kernel's columns

// A packed row is the row times `element`; the unit row is the packed row times `post`. Rows of
// float32 and float64 are packed as unit rows; bfloat16 rows only by an exact power of two, so
// that they are not rounded again.
template <class Acc>
struct RowScale {
  Acc element, post, norm;
  Acc unit() const { return element * post; }
};

// P = factor * 2^(t - lse) - smooth, or factor * e - smooth where e = 2^t is at hand.
template <class Acc>
struct RowSoftmax {
  Acc factor, lse, smooth;
};

template <class Acc>
struct Side {
  const Block<Acc>* block = nullptr;
  int64_t first_tile = 0, tiles = 0;
  RowScale<Acc>* scale = nullptr;
  Acc* grad_sum = nullptr;  // (count, dim): the output itself where its type is Acc
  double* dot = nullptr;    // (count): <unit row, its gradient>, for the temperature
};

template <class Acc>
struct Tile {
  const Side<Acc>* side;
  int64_t index, begin, count;
};

struct Stripe {
  int64_t index, begin, rows;
  bool last;
};

template <class E, class P>
struct State {
  using Elem = E;
  using Policy = P;
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  static constexpr bool pairs = P::pack == 2;
  static constexpr bool same_type = std::is_same_v<E, Acc>;

  const Problem<Acc>& p;
  const Mode mode;
  const int workers;

  // ---- plan
  const Acc c;       // logits in units of log 2 are c * similarity (+ bias)
  bool two;          // both directions
  bool column_plane; // the column direction has exclusions of its own
  bool gradients;    // any wanted
  bool need_x, temperature_from_x;
  bool bounded = false;  // 2^t of every logit t is an ordinary number: no maxima needed
  bool kept16 = false;   // kept tiles are bfloat16
  bool fused = false;    // one direction: a stripe's gradient while it is in cache
  Side<Acc> keys, negatives;
  int64_t tile_columns = 0, tiles = 0;
  int64_t rows = 0 /* of a stripe */, chunk_rows = 0 /* of a scan task */, stripes = 0;
  int64_t depth = 0 /* units of dim */, dim_padded = 0;
  int64_t panel_tiles = 0;   // how many tiles' packed panels are at hand at once
  int64_t kept_stripes = 0;  // two directions: the last ones keep their tiles between the sweeps
  int64_t step_tiles = 0;    // tiles whose coefficients are at hand at once
  int64_t capacity = 0;      // columns of a tile that are packed

  // ---- O(N + M) numbers
  RowScale<Acc>*x_scale, *own_scale;
  Acc *positive_logit, *threshold, *own_logit;
  double *positive_coefficient, *row_lse, *row_dot, *own_dot;
  RowSoftmax<Acc>* softmax;
  LogSum* column_sum;
  double *column_logits, *column_count;
  Acc *column_factor, *column_lse, *column_smooth;
  // ---- a stripe's partial sums, [tile][row] and [chunk][column]
  Acc *part_max, *part_sum, *part_logits, *part_count;
  Acc *column_part_max, *column_part_sum, *column_part_logits, *column_part_count;
  // ---- packed operands and tiles
  Unit *x_strips, *x_panels, *yt_panels, *y_panels;
  Acc *dx, *guide_rows;
  char* kept_data;
  Unit *packed_rows, *packed_pairs;
  // ---- of each worker
  Acc *scratch, *guide_panels, *own_buffer;
  int64_t scratch_stride;

  State(const Problem<Acc>& problem, Mode m, int w)
      : p(problem), mode(m), workers(w), c(Acc(double(problem.scale) * log2e)) {
    two = p.two_directions;
    gradients = mode != Mode::forward && (p.x_grad || p.keys.grad || p.negatives.grad ||
                                          p.own.grad || p.temperature_grad);
    cut_tiles();
    column_plane = two && thresholds() && p.keys.thresholded;
    const bool candidates_have_gradients =
        (!keys.block || p.keys.grad) && (!negatives.block || p.negatives.grad) &&
        (p.own.count == 0 || p.own.grad);
    temperature_from_x =
        gradients && p.temperature_grad && (p.x_grad || !candidates_have_gradients);
    need_x = gradients && (p.x_grad || temperature_from_x);
    depth = divide_up(p.dim, P::pack);
    dim_padded = round_up(p.dim, lanes<Acc>);
    for (const Side<Acc>* side : {&keys, &negatives}) {
      if (side->tiles == 0) continue;
      const int64_t widest = minimum<int64_t>(side->block->count, tile_columns);
      capacity = maximum(capacity, round_up(widest, lanes<Acc>));
    }
    bounded = p.normalize && is_bounded(1, 1);
    kept16 = pairs && two && bounded;
    plan_workspace();
  }

  bool thresholds() const { return p.false_negative_margin < infinity<Acc>; }
  bool any_candidate_gradient() const { return p.keys.grad || p.negatives.grad; }

  Tile<Acc> tile(int64_t index) const {
    const Side<Acc>& side = index < keys.tiles ? keys : negatives;
    const int64_t begin = (index - side.first_tile) * tile_columns;
    return {&side, index, begin, minimum(tile_columns, side.block->count - begin)};
  }
  Stripe stripe(int64_t index) const {
    const int64_t begin = index * rows;
    return {index, begin, minimum(rows, p.rows - begin), index == stripes - 1};
  }
  int64_t positive_index(int64_t row, int64_t k) const {
    return p.positive ? p.positive[row * p.positives + k] : row;
  }
  const E* x_row(int64_t i) const { return static_cast<const E*>(p.x) + i * p.x_stride; }
  const E* own_row(int64_t i, int64_t h) const {
    return static_cast<const E*>(p.own.y) + i * p.own.row_stride + h * p.own.stride;
  }
  Acc weight(int64_t i) const { return p.weight ? p.weight[i] : p.weight_all; }

  // Bytes of a kept tile row, and the tile planes of a stripe.
  int64_t planes() const { return column_plane ? 2 : 1; }
  int64_t kept_row_bytes() const { return tile_stride * (kept16 ? 2 : int64_t(sizeof(Acc))); }
  int64_t kept_plane_bytes(int64_t tile_count) const {
    return tile_count * rows * kept_row_bytes();
  }
  int64_t kept_slot_bytes() const { return kept_plane_bytes(step_tiles) * planes(); }
  bool is_kept(const Stripe& s) const { return fused || s.index >= stripes - kept_stripes; }
  // Kept stripes have a slot each; the others share the first.
  char* kept_slot(const Stripe& s) const {
    const int64_t shared = kept_stripes < stripes ? 1 : 0;
    const int64_t slot = fused || !is_kept(s) ? 0 : s.index - (stripes - kept_stripes) + shared;
    return kept_data + slot * kept_slot_bytes();
  }
  template <class Kept>
  Kept* kept_tile(const Stripe& s, int64_t local_tile, int plane) const {
    return reinterpret_cast<Kept*>(kept_slot(s) + plane * kept_plane_bytes(step_tiles) +
                                   local_tile * rows * kept_row_bytes());
  }
  Unit* yt_tile(int64_t local) const { return yt_panels + local * depth * capacity; }
  Unit* y_tile(int64_t local) const {
    return y_panels + local * divide_up(capacity, P::pack) * dim_padded;
  }
  int64_t strip_units() const { return depth * micro_rows + lanes<Unit>; }
  int64_t stripe_chunks() const { return divide_up(rows, chunk_rows); }

  // Every exponent within what a sum of `rows` or columns of them, and its reciprocal times a
  // gradient, can hold.
  bool is_bounded(double x_norm, double y_norm) const {
    double largest = double(c) * x_norm * y_norm * 1.0001 + double(bias_bound) * log2e;
    for (double n = 1; n < double(maximum(p.rows, tiles * tile_columns)); n *= 2) ++largest;
    return largest <= (sizeof(Acc) == 4 ? 90 : 900);
  }

  void layout(Cursor& cursor) {
    const int64_t n = p.rows, m = two ? p.keys.count : 0;
    const bool smoothing = p.smoothing > 0;
    x_scale = cursor.take<RowScale<Acc>>(n);
    for (Side<Acc>* side : {&keys, &negatives}) {
      const int64_t count = side->block ? side->block->count : 0;
      side->scale = cursor.take<RowScale<Acc>>(count);
      const bool wanted = gradients && count > 0 && side->block->grad;
      side->grad_sum = !wanted      ? nullptr
                       : same_type ? static_cast<Acc*>(side->block->grad)
                                   : cursor.take<Acc>(count * p.dim);
      side->dot = cursor.take<double>(wanted ? count : 0);
    }
    own_scale = cursor.take<RowScale<Acc>>(n * p.own.count);
    own_logit = cursor.take<Acc>(n * p.own.count);
    own_dot = cursor.take<double>(p.own.count ? n : 0);
    positive_logit = cursor.take<Acc>(n * p.positives);
    positive_coefficient = cursor.take<double>(n * p.positives);
    threshold = cursor.take<Acc>(n);
    row_lse = cursor.take<double>(n);
    row_dot = cursor.take<double>(n);
    softmax = cursor.take<RowSoftmax<Acc>>(n);
    column_sum = cursor.take<LogSum>(m);
    column_logits = cursor.take<double>(smoothing ? m : 0);
    column_count = cursor.take<double>(smoothing ? m : 0);
    const int64_t padded = two ? keys.tiles * tile_columns : 0;
    column_factor = cursor.take<Acc>(padded);
    column_lse = cursor.take<Acc>(padded);
    column_smooth = cursor.take<Acc>(padded);

    const int64_t partials = tiles * rows, column_partials = stripe_chunks() * padded;
    part_max = cursor.take<Acc>(bounded ? 0 : partials);
    part_sum = cursor.take<Acc>(partials);
    part_logits = cursor.take<Acc>(smoothing ? partials : 0);
    part_count = cursor.take<Acc>(smoothing ? partials : 0);
    column_part_max = cursor.take<Acc>(column_partials);
    column_part_sum = cursor.take<Acc>(column_partials);
    column_part_logits = cursor.take<Acc>(smoothing ? column_partials : 0);
    column_part_count = cursor.take<Acc>(smoothing ? column_partials : 0);

    x_strips = cursor.take<Unit>(divide_up(rows, micro_rows) * strip_units());
    const bool b_product = gradients && any_candidate_gradient();
    x_panels = cursor.take<Unit>(b_product ? divide_up(rows, P::pack) * dim_padded : 0);
    yt_panels = cursor.take<Unit>(panel_tiles * depth * capacity);
    y_panels =
        cursor.take<Unit>(need_x ? panel_tiles * divide_up(capacity, P::pack) * dim_padded : 0);
    dx = cursor.take<Acc>(need_x ? rows * dim_padded : 0);
    guide_rows = cursor.take<Acc>(p.guide_dim * round_up(rows, micro_rows) + lanes<Acc>);

    const int64_t shared = fused || kept_stripes < stripes ? 1 : 0;
    kept_data =
        cursor.take<char>(gradients ? (kept_stripes + shared) * kept_slot_bytes() : 0);
    const bool packed = pairs && gradients;
    packed_rows = cursor.take<Unit>(packed && need_x ? step_tiles * rows * packed_stride : 0);
    packed_pairs = cursor.take<Unit>(packed ? step_tiles * (rows / 2) * tile_stride : 0);

    scratch_stride = chunk_rows * tile_stride;
    scratch = cursor.take<Acc>(workers * scratch_stride * (column_plane ? 2 : 1));
    own_buffer = cursor.take<Acc>(p.own.count ? workers * dim_padded : 0);
    guide_panels = cursor.take<Acc>(p.guide_dim ? workers * p.guide_dim * tile_columns : 0);
  }

  Acc bias_bound = 0;

 private:
  // Small problems are cut finer, for every thread to have work.
  void cut_tiles() {
    const int64_t columns =
        (p.keys.scanned ? p.keys.count : 0) + (p.negatives.scanned ? p.negatives.count : 0);
    tile_columns = clamp(round_up(divide_up(columns, 4), column_step), column_step, most_columns);
    chunk_rows = clamp(round_up(divide_up(p.rows, 4), row_step), row_step, most_rows / 4);
    add_side(keys, p.keys);
    add_side(negatives, p.negatives);
  }

  void add_side(Side<Acc>& side, const Block<Acc>& block) {
    if (block.count == 0) return;
    side.block = &block;
    side.first_tile = tiles;
    if (!block.scanned) return;
    side.tiles = divide_up(block.count, tile_columns);
    tiles += side.tiles;
    Acc largest = 0;
    for (int64_t j = 0; block.bias && j < block.count; ++j) {
      if (block.bias[j] != -infinity<Acc>) largest = maximum(largest, magnitude(block.bias[j]));
    }
    if (block.group) largest += magnitude(block.group_bias);
    bias_bound = maximum(bias_bound, largest);
  }

  void plan_workspace() {
    const int64_t yt_bytes = depth * capacity * int64_t(sizeof(Unit));
    const int64_t y_bytes =
        need_x ? divide_up(capacity, P::pack) * dim_padded * int64_t(sizeof(Unit)) : 0;
    const int64_t tile_bytes = maximum<int64_t>(1, yt_bytes + y_bytes);
    panel_tiles = tiles;
    if (tiles * tile_bytes > p.workspace_bytes / 2) {
      panel_tiles = minimum(tiles, maximum<int64_t>(1, p.workspace_bytes / 8 / tile_bytes));
    }
    const int64_t left = maximum<int64_t>(0, p.workspace_bytes - panel_tiles * tile_bytes);

    // Bytes that a row of a stripe needs for all tiles, coefficients included.
    const int64_t packed_bytes = pairs ? (packed_stride + tile_stride / 2) * 4 : 0;
    const int64_t row_tile_bytes = kept_row_bytes() * planes() + packed_bytes;
    const int64_t row_bytes = maximum<int64_t>(1, tiles * row_tile_bytes);
    int64_t most = most_rows;
    if (gradients && !two && mode == Mode::both) {
      most = minimum(most, left / row_bytes / row_step * row_step);
      fused = most >= minimum(chunk_rows, p.rows);
      if (!fused) most = most_rows;
    }
    stripes = divide_up(p.rows, most);
    rows = round_up(divide_up(p.rows, stripes), row_step);
    stripes = divide_up(p.rows, rows);
    step_tiles = tiles;
    if (!gradients || fused) return;
    const int64_t fit = left / (row_tile_bytes * rows);
    if (two && mode == Mode::both && fit >= tiles) {
      const int64_t slot = tiles * rows * kept_row_bytes() * planes();
      const int64_t slots = (left - tiles * rows * packed_bytes) / slot;
      kept_stripes = slots >= stripes ? stripes : maximum<int64_t>(0, slots - 1);
    }
    if (kept_stripes == 0) step_tiles = minimum(tiles, maximum<int64_t>(1, fit));
  }
};
