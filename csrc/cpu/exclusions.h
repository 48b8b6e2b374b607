// What a strip of similarities goes through before its exponentials, option by option: each a pass
// over rows in the first-level cache, run only where the problem asks for it.
#pragma once

// Rows [row, row + rows) of the problem against one tile; `s` is rows x tile_stride, and `columns`
// of it are read, a whole number of vectors.
template <class S>
struct Strip {
  const S& st;
  const Stripe& stripe;
  const Tile<typename S::Acc>& tile;
  int64_t row, rows, columns;
  typename S::Acc* s;
};

// Similarities `from` to logits in units of log 2, without biases.
template <class S>
void scale_strip(const Strip<S>& strip, const typename S::Acc* from,
                 const typename S::Acc* column_post) {
  using Acc = typename S::Acc;
  with_columns(strip.columns, [&](auto columns) {
    for (int64_t r = 0; r < strip.rows; ++r) {
      Acc* s = strip.s + r * tile_stride;
      const Acc factor = strip.st.c * strip.st.x_scale[strip.row + r].post;
      for (int64_t j = 0; j < columns; j += lanes<Acc>) {
        store(s + j, load(from + r * tile_stride + j) * factor * load(column_post + j));
      }
    }
  });
}

template <class S>
void exclude_above(const Strip<S>& strip, const typename S::Acc* row_threshold,
                   const typename S::Acc* column_threshold) {
  using Acc = typename S::Acc;
  const Vec<Acc> excluded = splat(-infinity<Acc>);
  for (int64_t r = 0; r < strip.rows; ++r) {
    Acc* s = strip.s + r * tile_stride;
    const Vec<Acc> row = splat(row_threshold ? row_threshold[strip.row + r] : Acc(0));
    for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) {
      const Vec<Acc> t = load(s + j);
      store(s + j, t > (row_threshold ? row : load(column_threshold + j)) ? excluded : t);
    }
  }
}

// Which columns of the tile are a row's own group: [begin, end), or nothing.
template <class S>
void group_of_row(const S& st, const Tile<typename S::Acc>& tile, int64_t row, int64_t* begin,
                  int64_t* end) {
  const int64_t group = tile.side->block->group, first = row * group - tile.begin;
  *begin = maximum<int64_t>(0, first);
  *end = minimum(tile.count, first + group);
}

// The tile's biases; -inf for the padding of a tile that is not full.
template <class S>
void add_biases(const Strip<S>& strip, const typename S::Acc* bias) {
  using Acc = typename S::Acc;
  for (int64_t r = 0; r < strip.rows; ++r) {
    Acc* s = strip.s + r * tile_stride;
    for (int64_t j = 0; j < strip.columns; j += lanes<Acc>) {
      store(s + j, load(s + j) + load(bias + j));
    }
  }
}

template <class S>
void add_group_bias(const Strip<S>& strip) {
  using Acc = typename S::Acc;
  const Block<Acc>& block = *strip.tile.side->block;
  const Acc bias = Acc(double(block.group_bias) * log2e);
  for (int64_t r = 0; r < strip.rows; ++r) {
    int64_t begin, end;
    group_of_row(strip.st, strip.tile, strip.row + r, &begin, &end);
    for (int64_t j = begin; j < end; ++j) strip.s[r * tile_stride + j] += bias;
  }
}

template <class S>
void exclude_ids(const Strip<S>& strip) {
  using Acc = typename S::Acc;
  const Block<Acc>& block = *strip.tile.side->block;
  for (int64_t pair = 0; pair < strip.st.p.id_pairs; ++pair) {
    const int64_t* ids = block.ids + pair * block.count + strip.tile.begin;
    for (int64_t r = 0; r < strip.rows; ++r) {
      const int64_t id = strip.st.p.row_ids[pair * strip.st.p.rows + strip.row + r];
      int64_t hits = 0;  // most rows of most tiles have none
      for (int64_t j = 0; j < strip.tile.count; ++j) hits |= ids[j] == id;
      if (!hits) continue;
      Acc* s = strip.s + r * tile_stride;
      for (int64_t j = 0; j < strip.tile.count; ++j) s[j] = ids[j] == id ? -infinity<Acc> : s[j];
    }
  }
}

// Guide similarities by a product of their own, in the accumulator's type.
template <class S>
void exclude_by_guide(const Strip<S>& strip, const typename S::Acc* guide_panels) {
  using Acc = typename S::Acc;
  const auto& p = strip.st.p;
  const Acc* rows = strip.st.guide_rows + (strip.row - strip.stripe.begin) * p.guide_dim;
  Acc similarity[micro_rows * micro_columns<Acc>];
  for (int64_t j = 0; j < strip.tile.count; j += micro_columns<Acc>) {
    const int64_t count = minimum<int64_t>(micro_columns<Acc>, strip.tile.count - j);
    const Acc* panel = guide_panels + j * p.guide_dim;
    multiply_panel<Plain<Acc>, 1, micro_rows>(rows, strip.rows, panel, p.guide_dim, similarity,
                                              micro_columns<Acc>, count, false, panel);
    for (int64_t r = 0; r < strip.rows; ++r) {
      Acc* s = strip.s + r * tile_stride + j;
      const Acc* g = similarity + r * micro_columns<Acc>;
      const Acc threshold = Acc(p.guide_threshold[strip.row + r]);
      for (int64_t i = 0; i < count; ++i) s[i] = g[i] > threshold ? -infinity<Acc> : s[i];
    }
  }
}

// Positives are summed apart from the rest.
template <class S>
void exclude_positives(const Strip<S>& strip) {
  using Acc = typename S::Acc;
  const S& st = strip.st;
  const uint64_t count = uint64_t(strip.tile.count);
  for (int64_t r = 0; r < strip.rows; ++r) {
    for (int64_t k = 0; k < st.p.positives; ++k) {
      const int64_t j = st.positive_index(strip.row + r, k) - strip.tile.begin;
      if (uint64_t(j) < count) strip.s[r * tile_stride + j] = -infinity<Acc>;
    }
  }
}

// One set: a row is no candidate of its own.
template <class S>
void exclude_self(const Strip<S>& strip) {
  using Acc = typename S::Acc;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t j = strip.row + r - strip.tile.begin;
    if (uint64_t(j) < uint64_t(strip.tile.count)) strip.s[r * tile_stride + j] = -infinity<Acc>;
  }
}

// ---- what a task prepares once for its tile

template <class S>
struct TileTerms {
  using Acc = typename S::Acc;
  Acc post[most_columns], bias[most_columns], threshold[most_columns];
  bool plain;     // similarities times one factor are the logits
  bool biased;    // or not a full tile
  bool thresholded;
};

template <class S>
void tile_terms(const S& st, const Tile<typename S::Acc>& tile, TileTerms<S>& terms) {
  using Acc = typename S::Acc;
  const Block<Acc>& block = *tile.side->block;
  const bool full = tile.count % lanes<Acc> == 0;
  terms.biased = block.bias || !full;
  terms.thresholded = st.thresholds() && block.thresholded;
  terms.plain = !S::pairs && !st.is_level && !terms.biased && !terms.thresholded && !block.ids && !block.guide &&
                block.group == 0;
  if (terms.plain) return;
  const int64_t columns = round_up(tile.count, lanes<Acc>);
  for (int64_t j = 0; j < columns; ++j) {
    const bool inside = j < tile.count;
    const int64_t column = tile.begin + j;
    terms.post[j] = inside ? tile.side->scale[column].post : Acc(1);
    terms.bias[j] = !inside      ? -infinity<Acc>
                    : block.bias ? Acc(double(block.bias[column]) * log2e)
                                 : Acc(0);
    terms.threshold[j] =
        st.column_plane && column < st.p.rows ? st.threshold[column] : infinity<Acc>;
  }
}

template <class S>
void pack_guide_tile(const S& st, const Tile<typename S::Acc>& tile, typename S::Acc* out) {
  using Acc = typename S::Acc;
  const float* guide = tile.side->block->guide + tile.begin * st.p.guide_dim;
  const int64_t dim = st.p.guide_dim;
  for (int64_t j = 0; j < tile.count; j += micro_columns<Acc>) {
    const int64_t count = minimum<int64_t>(micro_columns<Acc>, tile.count - j);
    const int64_t width = panel_width<Acc>(count);
    for (int64_t k = 0; k < dim; ++k) {
      for (int64_t i = 0; i < width; ++i) {
        out[j * dim + k * width + i] = i < count ? Acc(guide[(j + i) * dim + k]) : Acc(0);
      }
    }
  }
}
