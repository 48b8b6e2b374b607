// How one call is cut into tiles, stripes and chunks, and what of it stays in the workspace.
//
// Columns (the candidates of the scanned blocks, keys first) are cut into tiles that never straddle
// blocks, rows into stripes. How they are cut depends on the problem and the instruction set alone,
// never on the number of threads: so every sum has one order, and the same inputs give the same
// bits on any machine load.
#pragma once

constexpr int64_t most_columns = 96;  // of a tile; a multiple of every micro-kernel's sides
constexpr int64_t tile_stride = 112;  // between rows of a tile: an odd number of cache lines
constexpr int64_t most_rows = 384;    // of a stripe
constexpr int64_t most_prefix_rows = 192;  // as much as stays in cache of several planes
constexpr int64_t row_step = 12;      // a multiple of every micro-kernel's rows
constexpr int64_t column_step = 32;   // a multiple of every micro-kernel's columns
constexpr int64_t apart_bytes = 400 << 10;  // of packed queries: half of a second-level cache
constexpr int64_t direct_rows = 16;

// Calls f(columns), with a constant for a full tile: unrolled, a loop over a row has no end to be
// guessed wrong, and the next row's begins while this one's sums are still under way.
template <class F>
inline void with_columns(int64_t columns, F&& f) {
  if (columns == most_columns) return f(std::integral_constant<int64_t, most_columns>{});
  f(columns);
}

template <class Acc>
struct RowScale;

template <class Acc>
struct Side {
  const Block<Acc>* block = nullptr;  // null: absent
  int64_t first_tile = 0, tiles = 0;  // none: only looked up as positives
  RowScale<Acc>* scale = nullptr;     // (count)
  Acc* grad_sum = nullptr;            // (count, dim): the output itself where its type is Acc
  double* dot = nullptr;              // (count): <unit row, its gradient>, for the temperature
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
struct Plan {
  using Elem = E;
  using Policy = P;
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  static constexpr bool pairs = P::pack == 2;

  Problem<Acc> p;
  const Mode mode;
  const int workers;
  const Acc c;  // logits in units of log 2 are c * similarity (+ bias)

  const bool two, gradients;  // two: columns have statistics of their own
  bool column_plane = false;  // the column direction has exclusions of its own
  bool need_x = false;        // the gradient of x, for itself or for the temperature's
  bool temperature_from_x = false;
  bool bounded = false;  // 2^t of every logit t is an ordinary number: no maxima needed
  bool fused = false;    // one direction: a stripe's gradient while it is in cache
  bool kept16 = false;   // tiles kept between the sweeps are bfloat16
  bool direct = false;   // the scan reads the inputs where they lie
  bool apart = false;    // or every worker packs for itself what it scans

  Side<Acc> keys, negatives;
  int64_t tile_columns = 0, tiles = 0;
  int64_t capacity = 0;              // columns that packed panels of a tile have room for
  int64_t rows = 0, stripes = 0;     // rows of a stripe
  int64_t chunk_rows = 0;            // of one scan task
  int64_t depth = 0;                 // units of dim
  int64_t dim_padded = 0;
  int64_t panel_tiles = 0;   // whose packed panels are at hand at once
  int64_t step_tiles = 0;    // whose coefficients are at hand at once
  int64_t panel_columns = 0; // of the packed panels that gradients multiply: see Piece
  int64_t kept_stripes = 0;  // two directions: the last ones keep their tiles between the sweeps

  Plan(const Problem<Acc>& problem, Mode m, int w)
      : p(problem),
        mode(m),
        workers(w),
        c(Acc(double(problem.scale) * log2e)),
        two(problem.two_directions || problem.one_set),
        gradients(m != Mode::forward &&
                  (problem.x_grad || problem.keys.grad || problem.negatives.grad ||
                   problem.own.grad || problem.temperature_grad || problem.bias_grad)) {
    cut_tiles();
    column_plane = two && thresholds() && p.keys.thresholded;
    // The temperature's gradient is a by-product of a complete side's; x where none is complete.
    const bool complete = (!keys.block || p.keys.grad) &&
                          (!negatives.block || p.negatives.grad) &&
                          (p.own.count == 0 || p.own.grad);
    temperature_from_x = gradients && p.temperature_grad && (p.x_grad || !complete);
    // With prefixes it is one of the rows' sums, and those come with the products.
    need_x = gradients && (p.x_grad || temperature_from_x || (p.prefix_count && p.temperature_grad));
    bounded = p.pairwise || (p.normalize && is_bounded(1, 1));
    kept16 = pairs && two && bounded && mode == Mode::both && p.prefix_count == 0;
    share_workspace();
    if (p.prefix_count) return;
    direct = !pairs && p.guide_dim == 0 && p.rows <= direct_rows;
    // In a small problem, writing panels that another core has just read costs more than packing
    // twice.
    const int64_t strip_bytes = p.rows * depth * int64_t(sizeof(Unit));
    apart = !gradients && !direct && stripes == 1 && p.guide_dim == 0 && strip_bytes <= apart_bytes;
  }

  bool thresholds() const { return p.false_negative_margin < infinity<Acc>; }
  bool need_candidates() const {
    return gradients && (p.keys.grad || p.negatives.grad || p.one_set);
  }

  Tile<Acc> tile(int64_t index) const {
    const Side<Acc>& side = index < keys.tiles ? keys : negatives;
    const int64_t begin = (index - side.first_tile) * tile_columns;
    return {&side, index, begin, minimum(tile_columns, side.block->count - begin)};
  }
  Stripe stripe(int64_t index) const {
    const int64_t begin = index * rows;
    return {index, begin, minimum(rows, p.rows - begin), index == stripes - 1};
  }
  // The matrix of one set is symmetric: a stripe begins with the tile that holds its own rows, and
  // what lies below the diagonal in it is left out, block by block.
  int64_t first_tile(const Stripe& s) const { return p.one_set ? s.begin / tile_columns : 0; }
  int64_t tiles_of(const Stripe& s) const { return tiles - first_tile(s); }
  bool is_below(const Stripe& s, int64_t t, int64_t chunk) const {
    return p.one_set && t < first_tile(s) + chunk;
  }
  // How many rows of the stripe meet a tile: all, or those down to the diagonal, with its block or
  // without.
  int64_t rows_of(const Stripe& s, const Tile<Acc>& tile, bool diagonal) const {
    if (!p.one_set) return s.rows;
    return minimum(s.rows, tile.begin - s.begin + (diagonal ? tile_columns : 0));
  }
  int64_t stripe_chunks() const { return divide_up(rows, chunk_rows); }
  // Whether the tiles of a stripe stay between the two sweeps.
  bool is_kept(const Stripe& s) const { return s.index >= stripes - kept_stripes; }

  // Tiles of the kept stripes before this one.
  int64_t kept_before(int64_t index) const {
    const int64_t first = stripes - kept_stripes, step = p.one_set ? rows / tile_columns : 0;
    return (index - first) * tiles - step * (index * (index - 1) - first * (first - 1)) / 2;
  }

  int64_t planes() const { return column_plane ? 2 : maximum<int64_t>(1, p.prefix_count); }
  int64_t tile_size() const { return rows * tile_stride; }
  int64_t kept_bytes() const { return kept16 ? 2 : int64_t(sizeof(Acc)); }
  int64_t yt_size() const { return depth * capacity; }
  int64_t y_size() const { return divide_up(capacity, P::pack) * panel_columns; }
  // A vector of slack lets packing store whole vectors.
  int64_t strip_size() const { return depth * micro_rows + lanes<Unit>; }
  int64_t packers() const { return apart ? minimum<int64_t>(workers, tiles) : 1; }
  int64_t strips_size() const { return divide_up(rows, micro_rows) * strip_size(); }

  // Every exponent within what a sum of `rows` or columns of them, and its reciprocal times a
  // gradient, can hold.
  bool is_bounded(double x_norm, double y_norm) const {
    double largest = double(c) * x_norm * y_norm * 1.0001 + double(bias_bound_) * log2e;
    for (double n = 1; n < double(maximum(p.rows, tiles * tile_columns)); n *= 2) ++largest;
    return largest <= (sizeof(Acc) == 4 ? 90 : 900);
  }

 private:
  Acc bias_bound_ = 0;

  // Small problems are cut finer, for every thread to have work.
  void cut_tiles() {
    const int64_t columns =
        (p.keys.scanned ? p.keys.count : 0) + (p.negatives.scanned ? p.negatives.count : 0);
    tile_columns = clamp(round_up(divide_up(columns, 4), column_step), column_step, most_columns);
    chunk_rows = clamp(round_up(divide_up(p.rows, 4), row_step), row_step, most_rows / 4);
    // One set: the blocks on the diagonal are as wide as high.
    if (p.one_set) tile_columns = chunk_rows = most_columns;
    depth = divide_up(p.dim, P::pack);
    dim_padded = round_up(p.dim, lanes<Acc>);
    panel_columns = dim_padded;
    for (int64_t l = 0; l < p.prefix_count; ++l) {
      if (p.prefixes[l] % micro_columns<Acc> > 0) panel_columns += micro_columns<Acc>;
    }
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
    capacity = maximum(capacity, round_up(minimum(block.count, tile_columns), lanes<Acc>));
    Acc largest = 0;
    for (int64_t j = 0; block.bias && j < block.count; ++j) {
      if (block.bias[j] != -infinity<Acc>) largest = maximum(largest, magnitude(block.bias[j]));
    }
    if (block.group) largest += magnitude(block.group_bias);
    bias_bound_ = maximum(bias_bound_, largest);
  }

  void share_workspace() {
    // Packed candidates: all of them if they take less than half, else a few tiles at a time.
    const int64_t panel_bytes = (yt_size() + (need_x ? y_size() : 0)) * int64_t(sizeof(Unit));
    panel_tiles = tiles;
    if (tiles * panel_bytes > p.workspace_bytes / 2) {
      panel_tiles = clamp<int64_t>(p.workspace_bytes / 8 / panel_bytes, 1, tiles);
    }
    const int64_t left = maximum<int64_t>(0, p.workspace_bytes - panel_tiles * panel_bytes);

    // The tiles of a stripe: narrow stripes are slow, so a stripe that cannot be wide enough is
    // done in steps of fewer tiles, at the price of scanning twice.
    const int64_t tile_row_bytes = tile_stride * planes() * int64_t(sizeof(Acc));
    const int64_t row_bytes = maximum<int64_t>(1, tiles * tile_row_bytes);
    int64_t most = p.prefix_count ? most_prefix_rows : most_rows;
    if (gradients && !two && mode == Mode::both) {
      const int64_t fit = left / row_bytes / row_step * row_step;
      fused = fit >= minimum(chunk_rows, p.rows);
      if (fused) most = minimum(most, fit);
    }
    const int64_t step = p.one_set ? chunk_rows : row_step;
    rows = round_up(divide_up(p.rows, divide_up(p.rows, most)), step);
    stripes = divide_up(p.rows, rows);
    step_tiles = tiles;
    if (!gradients || fused) return;

    const int64_t stripe_bytes = rows * row_bytes;
    if (left < stripe_bytes) {
      step_tiles = minimum(tiles, maximum<int64_t>(1, left / (rows * tile_row_bytes)));
    } else if (two && mode == Mode::both) {
      const int64_t kept_stripe_bytes = stripe_bytes / int64_t(sizeof(Acc)) * kept_bytes();
      const auto bytes = [&] { return kept_before(stripes) * (kept_stripe_bytes / tiles); };
      kept_stripes = stripes;
      if (left >= bytes() + (kept16 ? stripe_bytes : 0)) return;
      while (kept_stripes > 0 && left - stripe_bytes < bytes()) --kept_stripes;
    }
  }
};
