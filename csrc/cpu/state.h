// The memory of one call.
#pragma once

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

template <class E, class P>
struct State : Plan<E, P> {
  using Base = Plan<E, P>;
  using typename Base::Acc;
  using typename Base::Unit;
  using Base::p;

  // ---- O(N + M) numbers
  RowScale<Acc>*x_scale, *own_scale;
  Acc *positive_logit, *threshold, *rank_limit, *own_logit;
  double *positive_coefficient, *row_lse, *row_dot, *own_dot;
  RowSoftmax<Acc>* softmax;
  LogSum* column_sum;
  double *column_logits, *column_count;
  Acc *column_factor, *column_lse, *column_smooth;
  // ---- prefixes: the state of each, which shares packed operands and tiles with the whole
  State* level = nullptr;
  double level_weight = 1;
  bool is_level = false, *level_served;
  Acc* column_post;  // [tile][column]
  Piece* pieces;
  int64_t piece_count = 0;
  // ---- a stripe's partial sums, [tile][row] and [chunk][column]
  Acc *part_max, *part_sum, *part_logits, *part_count;
  Acc *column_part_max, *column_part_sum, *column_part_logits, *column_part_count;
  // ---- null unless a summary is wanted
  PartSummary<Acc>* part_summary = nullptr;
  LaneSummary<Acc>* column_part_summary = nullptr;  // one set: [chunk][vector of columns]
  Summary* column_summary = nullptr;
  // ---- packed operands, tiles, sums
  bool* strips_packed;  // by which worker, where each packs for itself
  Unit *x_strips, *x_panels, *yt_panels, *y_panels;
  Acc *guide_rows, *work_tiles, *dx;
  void* kept_tiles;
  // ---- of each worker
  Acc *scratch, *guide_panels, *own_buffer;

  using Base::Base;

  const E* x_row(int64_t i) const { return static_cast<const E*>(p.x) + i * p.x_stride; }
  const E* own_row(int64_t i, int64_t h) const {
    return static_cast<const E*>(p.own.y) + i * p.own.row_stride + h * p.own.stride;
  }
  static const E* candidate_row(const Side<Acc>& side, int64_t j) {
    return static_cast<const E*>(side.block->y) + j * side.block->stride;
  }
  Acc weight(int64_t i) const {
    return (p.weight ? p.weight[i] : p.weight_all) * Acc(level_weight);
  }
  int64_t positive_index(int64_t row, int64_t k) const {
    return p.positive ? p.positive[row * p.positives + k] : row;
  }

  // Runs independent tasks f(task, worker); `nanoseconds` is about what they take together on one
  // core, which decides whether other threads are worth waking.
  template <class F>
  void tasks(int64_t count, double nanoseconds, F&& f) const {
    parallel_for(count, nanoseconds < 8000 ? 1 : this->workers, f);
  }

  Unit* yt_tile(int64_t local) const { return yt_panels + local * this->yt_size(); }
  Unit* y_tile(int64_t local) const { return y_panels + local * this->y_size(); }
  int64_t scratch_size() const { return this->chunk_rows * tile_stride; }

  // What the scan wrote of a tile: in a slot of its own if its stripe is kept, else in the work
  // tiles that stripes take turns in.
  template <class Kept>
  Kept* scanned_tile(const Stripe& s, int64_t local, int plane) const {
    if (!this->is_kept(s)) return reinterpret_cast<Kept*>(work_tile(local, plane));
    const int64_t before = this->kept_before(s.index) * this->planes();
    return static_cast<Kept*>(kept_tiles) +
           (before + plane * this->tiles_of(s) + local) * this->tile_size();
  }
  // Where the tile's coefficients go: over the numbers they come from, unless those are shorter.
  Acc* coefficient_tile(const Stripe& s, int64_t local) const {
    return this->kept16 ? work_tile(local, 0) : scanned_tile<Acc>(s, local, 0);
  }
  Acc* work_tile(int64_t local, int plane) const {
    return work_tiles + (plane * this->step_tiles + local) * this->tile_size();
  }

  void layout(Cursor& cursor) {
    const bool gradients = this->gradients, smoothing = p.smoothing > 0;
    const int64_t n = p.rows;
    const int64_t padded = this->two ? this->keys.tiles * this->tile_columns : 0;
    x_scale = cursor.take<RowScale<Acc>>(n);
    for (Side<Acc>* side : {&this->keys, &this->negatives}) {
      if (!side->block) continue;
      const int64_t count = side->block->count;
      side->scale = cursor.take<RowScale<Acc>>(count);
      if (gradients && p.one_set) {
        side->grad_sum = std::is_same_v<E, Acc> && p.x_grad ? static_cast<Acc*>(p.x_grad)
                                                           : cursor.take<Acc>(count * p.dim);
        continue;
      }
      if (!gradients || !side->block->grad) continue;
      side->grad_sum = std::is_same_v<E, Acc> ? static_cast<Acc*>(side->block->grad)
                                              : cursor.take<Acc>(count * p.dim);
      side->dot = cursor.take<double>(count);
    }
    own_scale = cursor.take<RowScale<Acc>>(n * p.own.count);
    own_logit = cursor.take<Acc>(n * p.own.count);
    own_dot = cursor.take<double>(p.own.count ? n : 0);
    positive_logit = cursor.take<Acc>(n * p.positives);
    positive_coefficient = cursor.take<double>(n * p.positives);
    threshold = cursor.take<Acc>(n);
    rank_limit = cursor.take<Acc>(p.summary ? maximum(n, padded) : 0);
    row_lse = cursor.take<double>(n);
    row_dot = cursor.take<double>(n);
    softmax = cursor.take<RowSoftmax<Acc>>(n);
    layout_columns(cursor);

    const int64_t partials = this->tiles * this->rows;
    const int64_t column_partials = this->stripe_chunks() * padded;
    part_max = cursor.take<Acc>(this->bounded && !p.pairwise ? 0 : partials);
    part_sum = cursor.take<Acc>(partials);
    part_logits = cursor.take<Acc>(smoothing ? partials : 0);
    part_count = cursor.take<Acc>(smoothing ? partials : 0);
    if (p.summary) part_summary = cursor.take<PartSummary<Acc>>(partials);
    if (p.summary && p.one_set) {
      column_part_summary = cursor.take<LaneSummary<Acc>>(column_partials / lanes<Acc>);
      column_summary = cursor.take<Summary>(n);
    }
    layout_pieces(cursor);
    const int64_t row_units = divide_up(this->rows, P::pack);
    strips_packed = cursor.take<bool>(this->packers());
    x_strips = cursor.take<Unit>(this->packers() * this->strips_size());
    x_panels = cursor.take<Unit>(this->need_candidates() ? row_units * this->panel_columns : 0);
    yt_panels = cursor.take<Unit>((this->apart ? this->packers() : this->panel_tiles) * this->yt_size());
    y_panels = cursor.take<Unit>(this->need_x ? this->panel_tiles * this->y_size() : 0);
    guide_rows = cursor.take<Acc>(p.guide_dim * round_up(this->rows, micro_rows));
    const bool work = gradients && (this->kept16 || this->kept_stripes < this->stripes);
    const int64_t tile_numbers = this->tile_size() * this->planes();
    work_tiles = cursor.take<Acc>(work ? this->step_tiles * tile_numbers : 0);
    kept_tiles = cursor.take<char>(this->kept_before(this->stripes) * tile_numbers *
                                   this->kept_bytes());
    dx = cursor.take<Acc>(this->need_x ? this->rows * this->dim_padded : 0);

    const int64_t workers = this->workers;
    const int64_t scratches = this->column_plane || p.prefix_count ? 2 : 1;
    scratch = cursor.take<Acc>(workers * scratch_size() * scratches);
    guide_panels = cursor.take<Acc>(workers * p.guide_dim * this->tile_columns);
    own_buffer = cursor.take<Acc>(p.own.count ? workers * this->dim_padded : 0);
    layout_levels(cursor);
  }

 private:
  // What columns have of their own where they have losses: statistics, and a stripe's part of them.
  void layout_columns(Cursor& cursor) {
    const int64_t m = this->two ? p.keys.count : 0;
    const int64_t padded = this->two ? this->keys.tiles * this->tile_columns : 0;
    const int64_t partials = this->stripe_chunks() * padded;
    const bool smoothing = p.smoothing > 0;
    column_sum = cursor.take<LogSum>(m);
    column_logits = cursor.take<double>(smoothing ? m : 0);
    column_count = cursor.take<double>(smoothing ? m : 0);
    column_factor = cursor.take<Acc>(padded);
    column_lse = cursor.take<Acc>(padded);
    column_smooth = cursor.take<Acc>(padded);
    column_part_max = cursor.take<Acc>(this->bounded && p.prefix_count == 0 ? 0 : partials);
    column_part_sum = cursor.take<Acc>(partials);
    column_part_logits = cursor.take<Acc>(smoothing ? partials : 0);
    column_part_count = cursor.take<Acc>(smoothing ? partials : 0);
  }

  static void skip_levels(Stats& stats, int64_t levels, int64_t count) {
    const int64_t skip = levels * (stats.count ? 3 : 1) * count;
    for (double** numbers : {&stats.lse, &stats.sum, &stats.count}) {
      if (*numbers) *numbers += skip;
    }
  }

  void layout_pieces(Cursor& cursor) {
    constexpr int64_t width = micro_columns<Acc>;
    pieces = cursor.take<Piece>(divide_up(p.dim, width) + p.prefix_count);
    if (!cursor.is_real()) return;
    int64_t level = 0, offset = 0;
    for (int64_t begin = 0; begin < p.dim;) {
      const int64_t panel = begin / width * width;
      while (level < p.prefix_count && p.prefixes[level] <= begin) ++level;
      int64_t end = minimum(panel + width, p.dim);
      if (p.prefix_count) end = minimum(end, p.prefixes[level]);
      pieces[piece_count++] = {panel, begin, end, level, offset};
      offset += panel_width<Acc>(p.dim - panel);
      begin = end;
    }
  }

  // What a prefix has of its own: scales, positives, statistics, and sums of P s.
  void layout_levels(Cursor& cursor) {
    level = cursor.take<State>(p.prefix_count);
    const int64_t counted = p.rows + p.keys.count + p.negatives.count;
    level_served = cursor.take<bool>(p.prefix_count ? counted : 0);
    const int64_t n = p.rows, partials = this->tiles * this->rows;
    for (int64_t l = 0; l < p.prefix_count; ++l) {
      State part(*this);
      part.is_level = true;
      if (p.prefix_weight) {
        part.level_weight = p.prefix_weight[l];
      } else if (p.weight) {
        part.p.weight += l * n;
      }
      part.p.dim = p.prefixes[l];
      part.x_scale = cursor.take<RowScale<Acc>>(n);
      for (Side<Acc>* side : {&part.keys, &part.negatives}) {
        if (!side->block) continue;
        side->scale = cursor.take<RowScale<Acc>>(side->block->count);
        side->dot = cursor.take<double>(side->block->count);
      }
      part.column_post = cursor.take<Acc>(this->tiles * this->tile_columns);
      part.own_scale = cursor.take<RowScale<Acc>>(n * p.own.count);
      part.own_logit = cursor.take<Acc>(n * p.own.count);
      part.positive_logit = cursor.take<Acc>(n * p.positives);
      part.positive_coefficient = cursor.take<double>(n * p.positives);
      part.threshold = cursor.take<Acc>(n);
      part.row_lse = cursor.take<double>(n);
      part.row_dot = cursor.take<double>(n);
      part.softmax = cursor.take<RowSoftmax<Acc>>(n);
      if (l + 1 < p.prefix_count) {  // a summary is of the whole rows
        part.p.summary = nullptr;
        part.part_summary = nullptr;
        part.column_part_summary = nullptr;
      }
      part.part_max = cursor.take<Acc>(partials);
      part.part_sum = cursor.take<Acc>(partials);
      part.part_logits = cursor.take<Acc>(p.smoothing > 0 ? partials : 0);
      part.part_count = cursor.take<Acc>(p.smoothing > 0 ? partials : 0);
      part.p.loss = p.prefix_weight ? cursor.take<Acc>(n) : p.loss + l * n;
      if (p.column_loss) part.p.column_loss = cursor.take<Acc>(n);
      part.layout_columns(cursor);
      skip_levels(part.p.row, l, n);
      skip_levels(part.p.column, l, p.keys.count);
      if (level) new (&level[l]) State(part);
    }
  }
};
