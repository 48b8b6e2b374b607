"""Partial sums of exponentials for rows and columns, in one pass over the tiles.

Planes of the partials, each (tiles, rows) or (tiles, columns), float32:
0 sum of 2**(logit - offset), 1 the offset (whole numbers, so that rescaling is exact), 2 how many
logits are kept, 3 their sum.
"""

import triton
import triton.language as tl

from .rows import LOG2E, load_scale
from .tile import above_guide, is_bounded, place, product, screened, store_tile

RUN_TIME = [
    "row_begin",
    "row_end",
    "column_end",
    "row_count",
    "column_count",
    "positives",
    "ids",
    "group",
]


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
    row_parts,
    column_parts,
    kept,
    offset,
    log2_count,
    group_log_weight,
    row_begin,
    row_end,
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
    HAS_GROUP: tl.constexpr,
    SCALE_IS_TENSOR: tl.constexpr,
    BOUNDED: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    PRECISION: tl.constexpr,
    GUIDE_PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows [row_begin, row_end) against all columns; columns' partials where column_parts is.

    BOUNDED: one static offset, no maxima. CHECK: only run if the scale says that this variant is
    the one (its other one is launched beside it). `kept` (rows, kept_stride) receives
    2**(logit - offset) times the column's inverse norm.
    """
    scale = load_scale(scale, SCALE_IS_TENSOR)
    if CHECK:  # noqa: SIM102 - a constant: without it nothing is loaded or compared
        if is_bounded(scale, log2_count, RANGE) != BOUNDED:
            return
    tile_m, tile_n = place(row_end - row_begin, column_end, BLOCK_M, BLOCK_N, GROUP)
    row = row_begin + tile_m * BLOCK_M
    column = tile_n * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < row_end
    column_inside = columns < column_end
    if guide_x is not None:
        near = above_guide(
            guide_x,
            guide_y,
            guide_threshold,
            rows,
            row,
            column,
            row_end,
            column_end,
            guide_depth,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            GUIDE_PRECISION,
        )
    total = product(
        x,
        y,
        row,
        column,
        row_end,
        column_end,
        depth,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
        BULK,
    )
    rx = tl.load(inverse_x + rows, mask=row_inside, other=0.0)
    ry = tl.load(inverse_y + columns, mask=column_inside, other=0.0)
    # Edges and the static offset come with the addition that the logit ends with anyway.
    static = 0.0
    if BOUNDED:
        static = offset
    last = tl.where(column_inside, -static, -float("inf"))
    if bias is not None:
        last += LOG2E * tl.load(bias + columns, mask=column_inside, other=0.0)
    logit = total * (rx * (scale * LOG2E))[:, None] * ry[None, :] + last[None, :]
    if column_parts is not None:
        logit += tl.where(row_inside, 0.0, -float("inf"))[:, None]
    if HAS_GROUP:
        mine = (columns // group)[None, :] == rows[:, None]
        logit = tl.where(mine, logit + group_log_weight * LOG2E, logit)
    logit = screened(
        logit,
        rows,
        columns,
        row_end,
        column_end,
        index,
        positives,
        row_ids,
        column_ids,
        ids,
        row_count,
        column_count,
        DIAGONAL,
    )
    if guide_x is not None:
        logit = tl.where(near, -float("inf"), logit)
    column_logit = logit
    if limit is not None:
        similarity = total * rx[:, None] * ry[None, :]
        row_limit = tl.load(limit + rows, mask=row_inside, other=0.0)
        logit = tl.where(similarity > row_limit[:, None], -float("inf"), logit)
        if column_parts is not None:
            column_limit = tl.load(limit + columns, mask=columns < row_count, other=float("inf"))
            beyond = similarity > column_limit[None, :]
            column_logit = tl.where(beyond, -float("inf"), column_logit)

    local_count = row_end - row_begin
    plane = tl.cdiv(column_end, BLOCK_N).to(tl.int64) * local_count
    row_at = row_parts + tile_n.to(tl.int64) * local_count + (rows - row_begin)
    if BOUNDED:
        e = tl.exp2(logit)
        tl.store(row_at, tl.sum(e, 1), mask=row_inside)
    else:
        top = tl.ceil(tl.max(logit, 1))
        shift = tl.where(top == -float("inf"), 0.0, top)
        e = tl.exp2(logit - shift[:, None])
        tl.store(row_at, tl.sum(e, 1), mask=row_inside)
        tl.store(row_at + plane, top, mask=row_inside)
    if SMOOTHING:
        keep = logit != -float("inf")
        kept_count = tl.sum(keep.to(tl.float32), 1)
        tl.store(row_at + 2 * plane, kept_count, mask=row_inside)
        natural = (tl.sum(tl.where(keep, logit, 0.0), 1) + kept_count * static) * (1.0 / LOG2E)
        tl.store(row_at + 3 * plane, natural, mask=row_inside)
    if kept is not None:
        value = e * ry[None, :]
        top = row - row_begin
        store_tile(
            kept, value, top, column, local_count, column_end, kept_stride, BLOCK_M, BLOCK_N, BULK
        )
    if column_parts is not None:
        plane = tl.cdiv(local_count, BLOCK_M).to(tl.int64) * column_count
        column_at = column_parts + tile_m.to(tl.int64) * column_count + columns
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
        if SMOOTHING:
            keep = column_logit != -float("inf")
            kept_count = tl.sum(keep.to(tl.float32), 0)
            tl.store(column_at + 2 * plane, kept_count, mask=column_inside)
            natural = tl.sum(tl.where(keep, column_logit, 0.0), 0) + kept_count * static
            natural *= 1.0 / LOG2E
            tl.store(column_at + 3 * plane, natural, mask=column_inside)
