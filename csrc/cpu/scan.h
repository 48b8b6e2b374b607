// The scan: similarities of a chunk of rows with one tile of candidates, strip by strip while a
// strip is in the first-level cache, and their statistics.
#pragma once

// Longest run of units that one pass of the micro-kernel sums; deeper products are accumulated in
// the worker's scratch so that a tile's packed panels stay in the second-level cache.
constexpr int64_t scan_depth = 1024;

// `from` has the similarities; it is strip.s unless they are needed again.
template <class S, class Kept>
void scan_strip(const Strip<S>& strip, const typename S::Acc* from, typename S::Acc* column_s, const TileTerms<S>& terms,
                const typename S::Acc* guide_panels, int64_t chunk, bool first, Kept* kept,
                Kept* column_kept) {
  using Acc = typename S::Acc;
  const S& st = strip.st;
  const Tile<Acc>& tile = strip.tile;
  const Block<Acc>& block = *tile.side->block;
  Acc factor = st.c;
  const bool own_columns = st.column_plane && tile.side == &st.keys;
  const bool by_columns = st.two && tile.side == &st.keys;

  const auto leave_out = [&](Acc* s, bool of_columns) {
    const Strip<S> view{st, strip.stripe, tile, strip.row, strip.rows, strip.columns, s};
    if (!terms.plain) {
      if (terms.thresholded) {
        exclude_above(view, of_columns ? nullptr : st.threshold,
                      of_columns ? terms.threshold : nullptr);
      }
      if (terms.biased) add_biases(view, terms.bias);
      if (block.group > 0) add_group_bias(view);
      if (block.ids) exclude_ids(view);
      if (block.guide) exclude_by_guide(view, guide_panels);
    }
    if (tile.side == &st.keys) exclude_positives(view);
    if (st.p.one_set) exclude_self(view);
  };
  if (!terms.plain) {
    scale_strip(strip, from, terms.post);
    factor = 1;
  }
  if (own_columns) {
    __builtin_memcpy(column_s, strip.s, size_t(strip.rows * tile_stride) * sizeof(Acc));
    leave_out(column_s, true);
  }
  leave_out(strip.s, false);
  if (st.part_summary) {
    summarise_strip(strip, own_columns ? column_s : strip.s, factor, chunk, first);
  }

  if (st.p.pairwise) {
    const int64_t at = tile.index * st.rows + (strip.row - strip.stripe.begin);
    const Acc offset = Acc(double(st.p.bias) * log2e);
    return with_columns(strip.columns, [&](auto columns) {
      pairwise_statistics(strip.s, factor, offset, strip.rows, columns, st.part_sum + at,
                          st.part_max + at, kept);
    });
  }

  const int64_t at_row = tile.index * st.rows + (strip.row - strip.stripe.begin);
  const int64_t at_column = chunk * st.keys.tiles * st.tile_columns + tile.begin;
  if (st.p.smoothing > 0) {
    Acc* column_sum = by_columns ? st.column_part_logits + at_column : nullptr;
    Acc* column_count = by_columns ? st.column_part_count + at_column : nullptr;
    logit_sums(strip.s, factor, strip.rows, strip.columns, st.part_logits + at_row,
               st.part_count + at_row, own_columns ? nullptr : column_sum, column_count, first);
    if (own_columns) {
      logit_sums<Acc>(column_s, factor, strip.rows, strip.columns, nullptr, nullptr, column_sum,
                      column_count, first);
    }
  }
  const StripResults<Acc, Kept> out{st.bounded ? nullptr : st.part_max + at_row,
                                    st.part_sum + at_row,
                                    by_columns ? st.column_part_max + at_column : nullptr,
                                    by_columns ? st.column_part_sum + at_column : nullptr,
                                    first,
                                    kept,
                                    column_kept};
  with_columns(strip.columns, [&](auto columns) {
    if constexpr (std::is_same_v<Kept, Acc>) {
      if (st.is_level && st.bounded) {
        return by_columns ? bounded_logits<true>(strip.s, strip.rows, columns, out)
                          : bounded_logits<false>(strip.s, strip.rows, columns, out);
      }
    }
    const auto run = [&](auto planes) {
      if (st.bounded) {
        bounded_statistics<planes>(strip.s, column_s, factor, strip.rows, columns, out);
      } else {
        maximum_statistics<planes>(strip.s, column_s, factor, strip.rows, columns, out);
      }
    };
    if (own_columns) return run(std::integral_constant<int, 2>{});
    if (by_columns) return run(std::integral_constant<int, 1>{});
    run(std::integral_constant<int, 0>{});
  });
}

// One task. `strips` are the stripe's packed rows, `yt` the tile's packed panels; `kept` and
// `column_kept` the tile's first rows in the stripe's kept tiles, or null.
template <class S, class Kept>
void scan_chunk(const S& st, const Stripe& stripe, int64_t tile_index, int64_t chunk,
                const typename S::Unit* strips, const typename S::Unit* yt, Kept* kept,
                Kept* column_kept, int worker) {
  using Acc = typename S::Acc;
  using P = typename S::Policy;
  const Tile<Acc> tile = st.tile(tile_index);
  const int64_t begin = chunk * st.chunk_rows;
  const int64_t end = minimum(begin + st.chunk_rows, stripe.rows);
  const int64_t columns = round_up(tile.count, lanes<Acc>);
  Acc* scratch = st.scratch + worker * st.scratch_size() * st.planes();
  Acc* column_s = scratch + st.scratch_size();
  TileTerms<S> terms;
  tile_terms(st, tile, terms);
  Acc* guide_panels = nullptr;
  if (tile.side->block->guide) {
    guide_panels = st.guide_panels + worker * st.p.guide_dim * st.tile_columns;
    pack_guide_tile(st, tile, guide_panels);
  }
  const auto multiply = [&](int64_t row, int64_t rows, int64_t k, Acc* s) {
    const int64_t depth = minimum(scan_depth, st.depth - k);
    const typename S::Unit* x =
        strips + row / micro_rows * st.strip_size() + k * micro_rows;
    for (int64_t j = 0; j < tile.count; j += micro_columns<Acc>) {
      const int64_t width = panel_width<Acc>(tile.count - j);
      const typename S::Unit* panel = yt + j * st.depth + k * width;
      multiply_panel<P, 1, micro_rows>(x, rows, panel, depth, s + j, tile_stride, width, k > 0,
                                       panel + st.depth * width);
    }
  };
  const bool deep = st.depth > scan_depth && !st.direct;
  if (deep) {
    for (int64_t k = 0; k < st.depth; k += scan_depth) {
      for (int64_t row = begin; row < end; row += micro_rows) {
        multiply(row, minimum<int64_t>(micro_rows, end - row), k,
                 scratch + (row - begin) * tile_stride);
      }
    }
  }
  for (int64_t row = begin; row < end; row += micro_rows) {
    const int64_t rows = minimum<int64_t>(micro_rows, end - row);
    Acc* s = deep ? scratch + (row - begin) * tile_stride : scratch;
    if constexpr (!S::pairs) {
      if (st.direct) multiply_in_place(st, tile, stripe.begin + row, rows, s);
    }
    if (!deep && !st.direct) multiply(row, rows, 0, s);
    const Strip<S> strip{st, stripe, tile, stripe.begin + row, rows, columns, s};
    scan_strip<S, Kept>(strip, s, column_s, terms, guide_panels, chunk, row == begin,
                        kept ? kept + row * tile_stride : nullptr,
                        column_kept ? column_kept + row * tile_stride : nullptr);
  }
}

// The same for prefixes: the sum over k halts at each, and the strip goes through its statistics.
// `kept(l)` is the tile's first row in the plane of prefix l, or null.
template <class S, class Kept>
void scan_prefixes(const S& st, const Stripe& stripe, int64_t tile_index, int64_t chunk,
                   const typename S::Unit* strips, const typename S::Unit* yt, Kept&& kept,
                   int worker) {
  using Acc = typename S::Acc;
  using P = typename S::Policy;
  const int64_t begin = chunk * st.chunk_rows;
  const int64_t end = minimum(begin + st.chunk_rows, stripe.rows);
  const Tile<Acc> tile = st.tile(tile_index);
  const int64_t columns = round_up(tile.count, lanes<Acc>);
  Acc* sums = st.scratch + worker * 2 * st.scratch_size();
  Acc* s = sums + st.scratch_size();
  Acc* guide_panels = nullptr;
  if (tile.side->block->guide) {
    guide_panels = st.guide_panels + worker * st.p.guide_dim * st.tile_columns;
    pack_guide_tile(st, tile, guide_panels);
  }
  for (int64_t l = 0, k = 0; l < st.p.prefix_count; ++l) {
    const S& level = st.level[l];
    const Tile<Acc> level_tile = level.tile(tile_index);
    TileTerms<S> terms;
    tile_terms(level, level_tile, terms);
    Acc* plane = kept(l);
    const int64_t k_end = divide_up(level.p.dim, P::pack);
    for (int64_t row = begin; row < end; row += micro_rows) {
      const int64_t rows = minimum<int64_t>(micro_rows, end - row);
      const auto* x = strips + row / micro_rows * st.strip_size() + k * micro_rows;
      Acc* sum = sums + (row - begin) * tile_stride;
      for (int64_t j = 0; j < tile.count; j += micro_columns<Acc>) {
        const int64_t width = panel_width<Acc>(tile.count - j);
        const auto* panel = yt + j * st.depth + k * width;
        multiply_panel<P, 1, micro_rows>(x, rows, panel, k_end - k, sum + j, tile_stride, width,
                                         k > 0, panel + st.depth * width);
      }
      const Strip<S> strip{level, stripe, level_tile, stripe.begin + row, rows, columns, s};
      Acc* rows_kept = plane ? plane + row * tile_stride : nullptr;
      scan_strip<S, Acc>(strip, sum, s, terms, guide_panels, chunk, row == begin, rows_kept,
                         rows_kept);
    }
    k = k_end;
  }
}
