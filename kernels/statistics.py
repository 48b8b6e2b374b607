"""Partial sums of exponentials for rows and columns, in one pass over the tiles.

Planes of the partials, each (tiles, rows) or (tiles, columns), float32:
0 sum of 2**(logit - offset), 1 the offset (whole numbers, so that rescaling is exact), 2 how many
logits are kept, 3 their sum, 4 sum of 2**(logit - offset) * (similarity - reference), 5 sum of
similarity - reference of the logits kept. For a summary: 6 how many logits are above the best
positive's, 7 the largest logit in bits, 8 sum of 2**(logit - offset) * (logit - the reference's),
in bits.
"""

import triton
import triton.language as tl

from .logits import tile_logits
from .rows import LOG2E, load_scale
from .tile import is_bounded, place, place_above, store_tile

RUN_TIME = [
    "row_begin",
    "row_end",
    "column_begin",
    "column_end",
    "row_count",
    "column_count",
    "positives",
    "ids",
    "group",
]


@triton.jit
def survey(at, plane, inside, logit, e, best, reference, bits, static, AXIS: tl.constexpr):
    """Planes 6 to 8 of a tile's rows (AXIS 1) or columns (0), whose best positives' and reference
    similarities are given; `bits` times a similarity is its logit."""
    above = logit > tl.expand_dims(best * bits - static, AXIS)
    tl.store(at + 6 * plane, tl.sum(above.to(tl.float32), AXIS), mask=inside)
    tl.store(at + 7 * plane, tl.max(logit, AXIS) + static, mask=inside)
    beyond = logit - tl.expand_dims(reference * bits - static, AXIS)
    turn = tl.where(logit == -float("inf"), 0.0, e * beyond)
    tl.store(at + 8 * plane, tl.sum(turn, AXIS), mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def statistics(
    x,
    y,
    inverse_x,
    inverse_y,
    scale,
    index,
    row_ids,
    column_ids,
    guide_x,
    guide_y,
    guide_threshold,
    bias,
    limit,
    reference,
    best,
    row_parts,
    column_parts,
    kept,
    kept_factor,
    offset,
    log2_count,
    group_log_weight,
    row_begin,
    row_end,
    column_begin,
    column_end,
    row_count,
    column_count,
    positives,
    ids,
    group,
    depth,
    guide_depth,
    kept_stride,
    DIAGONAL: tl.constexpr,
    TRIANGLE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    SCALE_IS_TENSOR: tl.constexpr,
    BOUNDED: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    LEVER: tl.constexpr,
    PRECISION: tl.constexpr,
    GUIDE_PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows [row_begin, row_end) against columns [column_begin, column_end); the columns' partials,
    too, where column_parts is.

    BOUNDED: one static offset, no maxima. CHECK: only run if the scale says that this variant is
    the one (its other one is launched beside it). `kept` (rows, kept_stride) receives
    2**(logit - offset) times the column's inverse norm and kept_factor; with SMOOTHING, -1 for what
    is left out. LEVER: planes 4 and 5. `best`: planes 2, 3 and 6 to 8, too. TRIANGLE: one set,
    pairs above the diagonal.
    """
    scale = load_scale(scale, SCALE_IS_TENSOR)
    if CHECK:  # noqa: SIM102 - a constant: without it nothing is loaded or compared
        if is_bounded(scale, log2_count, RANGE) != BOUNDED:
            return
    width = column_end - column_begin
    if TRIANGLE:
        tile_m, tile_n = place_above(row_end - row_begin, width, BLOCK_M, BLOCK_N, GROUP)
    else:
        tile_m, tile_n = place(row_end - row_begin, width, BLOCK_M, BLOCK_N, GROUP)
    row = row_begin + tile_m * BLOCK_M
    column = column_begin + tile_n * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < row_end
    column_inside = columns < column_end
    static = 0.0
    if BOUNDED:
        static = offset
    total, rx, ry, logit, column_logit = tile_logits(
        x,
        y,
        inverse_x,
        inverse_y,
        scale,
        index,
        row_ids,
        column_ids,
        guide_x,
        guide_y,
        guide_threshold,
        bias,
        limit,
        group_log_weight,
        static,
        row,
        column,
        row_end,
        column_end,
        row_count,
        column_count,
        positives,
        ids,
        group,
        depth,
        guide_depth,
        DIAGONAL,
        TRIANGLE,
        HAS_GROUP,
        UNIT,
        True,
        column_parts is not None,
        PRECISION,
        GUIDE_PRECISION,
        BULK,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )

    local_count = row_end - row_begin
    plane = tl.cdiv(width, BLOCK_N).to(tl.int64) * local_count
    row_at = row_parts + tile_n.to(tl.int64) * local_count + (rows - row_begin)
    if LEVER:
        similarity = total * rx[:, None] * ry[None, :]
        if not UNIT:  # infinite at an edge, where it is loaded twice
            inside = row_inside[:, None] & column_inside[None, :]
            similarity = tl.where(inside, similarity, 0.0)
    if BOUNDED:
        e = tl.exp2(logit)
        tl.store(row_at, tl.sum(e, 1), mask=row_inside)
    else:
        top = tl.ceil(tl.max(logit, 1))
        shift = tl.where(top == -float("inf"), 0.0, top)
        e = tl.exp2(logit - shift[:, None])
        tl.store(row_at, tl.sum(e, 1), mask=row_inside)
        tl.store(row_at + plane, top, mask=row_inside)
    if LEVER:
        ref = tl.load(reference + rows, mask=row_inside, other=0.0)
        lever = tl.sum(e * (similarity - ref[:, None]), 1)
        tl.store(row_at + 4 * plane, lever, mask=row_inside)
    if SMOOTHING or best is not None:
        keep = logit != -float("inf")
        kept_count = tl.sum(keep.to(tl.float32), 1)
        tl.store(row_at + 2 * plane, kept_count, mask=row_inside)
        natural = (tl.sum(tl.where(keep, logit, 0.0), 1) + kept_count * static) * (1.0 / LOG2E)
        tl.store(row_at + 3 * plane, natural, mask=row_inside)
        if LEVER and SMOOTHING:
            level = tl.sum(tl.where(keep, similarity - ref[:, None], 0.0), 1)
            tl.store(row_at + 5 * plane, level, mask=row_inside)
    if best is not None:
        ref = tl.load(reference + rows, mask=row_inside, other=0.0)
        most = tl.load(best + rows, mask=row_inside, other=0.0)
        survey(row_at, plane, row_inside, logit, e, most, ref, scale * LOG2E, static, 1)
    if kept is not None:
        value = e * (ry * kept_factor)[None, :]
        if SMOOTHING:
            value = tl.where(logit == -float("inf"), -1.0, value)
        top = row - row_begin
        left = column - column_begin
        store_tile(kept, value, top, left, local_count, width, kept_stride, BLOCK_M, BLOCK_N, BULK)
    if column_parts is not None:
        plane = tl.cdiv(local_count, BLOCK_M).to(tl.int64) * width
        column_at = column_parts + tile_m.to(tl.int64) * width + (columns - column_begin)
        if BOUNDED:
            if limit is not None:
                e = tl.exp2(column_logit)
            tl.store(column_at, tl.sum(e, 0), mask=column_inside)
        else:
            top = tl.ceil(tl.max(column_logit, 0))
            shift = tl.where(top == -float("inf"), 0.0, top)
            e = tl.exp2(column_logit - shift[None, :])
            tl.store(column_at, tl.sum(e, 0), mask=column_inside)
            tl.store(column_at + plane, top, mask=column_inside)
        if LEVER:
            ref = tl.load(reference + columns, mask=columns < row_count, other=0.0)
            lever = tl.sum(e * (similarity - ref[None, :]), 0)
            tl.store(column_at + 4 * plane, lever, mask=column_inside)
        if SMOOTHING or (TRIANGLE and best is not None):
            keep = column_logit != -float("inf")
            kept_count = tl.sum(keep.to(tl.float32), 0)
            tl.store(column_at + 2 * plane, kept_count, mask=column_inside)
            natural = tl.sum(tl.where(keep, column_logit, 0.0), 0) + kept_count * static
            natural *= 1.0 / LOG2E
            tl.store(column_at + 3 * plane, natural, mask=column_inside)
            if LEVER and SMOOTHING:
                level = tl.sum(tl.where(keep, similarity - ref[None, :], 0.0), 0)
                tl.store(column_at + 5 * plane, level, mask=column_inside)
        if TRIANGLE and best is not None:
            ref = tl.load(reference + columns, mask=column_inside, other=0.0)
            most = tl.load(best + columns, mask=column_inside, other=0.0)
            bits = scale * LOG2E
            survey(column_at, plane, column_inside, column_logit, e, most, ref, bits, static, 0)
