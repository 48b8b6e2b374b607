"""The logits of one tile, in bits, with -inf at every pair that does not count.

No run-time branch around a whole tile: what it saves in masks the compiler pays back in registers.
One condition after another: together they would be one more tile of registers.
"""

import triton
import triton.language as tl

from .rows import LOG2E
from .tile import product


@triton.jit
def tile_logits(
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
    DIAGONAL: tl.constexpr,
    TRIANGLE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    SHIFTED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    GUIDE_PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(product, inverse norms of rows and columns, logits as rows see them, as columns do).

    SHIFTED: `static` comes off every logit, and what is past the last column is -inf; with COLUMNS,
    what is past the last row, too. Without, those are anything. Rows that hold NaN were prepared as
    zeros with a norm of NaN, so that what is loaded twice at an edge is a number; only dot products
    (not UNIT) can be infinite there. TRIANGLE: of one set against itself, pairs above the diagonal.
    """
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < row_end
    column_inside = columns < column_end
    if guide_x is not None:
        cosine = product(
            guide_x,
            guide_y,
            row,
            column,
            row_end,
            column_end,
            guide_depth,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            GUIDE_PRECISION,
            False,
        )
        threshold = tl.load(guide_threshold + rows, mask=row_inside, other=0.0)
        near = cosine > threshold[:, None]
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
    logit = total * (rx * (scale * LOG2E))[:, None] * ry[None, :]
    if SHIFTED:
        # Edges and the offset come with the addition that the logit ends with anyway.
        last = tl.where(column_inside, -static, -float("inf"))
        if bias is not None:
            last += LOG2E * tl.load(bias + columns, mask=column_inside, other=0.0)
        logit += last[None, :]
        if COLUMNS:
            logit += tl.where(row_inside, 0.0, -float("inf"))[:, None]
        if not UNIT:
            logit = tl.where(column_inside[None, :], logit, -float("inf"))
            if COLUMNS:
                logit = tl.where(row_inside[:, None], logit, -float("inf"))
    elif bias is not None:
        logit += LOG2E * tl.load(bias + columns, mask=column_inside, other=0.0)[None, :]
    if HAS_GROUP:
        own = (columns // group)[None, :] == rows[:, None]
        logit = tl.where(own, logit + group_log_weight * LOG2E, logit)
    if DIAGONAL:
        logit = tl.where(rows[:, None] == columns[None, :], -float("inf"), logit)
    if TRIANGLE:
        logit = tl.where(rows[:, None] < columns[None, :], logit, -float("inf"))
    if index is not None:
        for p in range(positives):
            at = index + rows.to(tl.int64) * positives + p
            mine = tl.load(at, mask=row_inside, other=-1)
            logit = tl.where(mine[:, None] == columns[None, :], -float("inf"), logit)
    if row_ids is not None:
        for kind in range(ids):
            mine = tl.load(row_ids + kind * row_count + rows, mask=row_inside, other=0)
            at = column_ids + kind * column_count + columns
            theirs = tl.load(at, mask=column_inside, other=0)
            logit = tl.where(mine[:, None] == theirs[None, :], -float("inf"), logit)
    if guide_x is not None:
        logit = tl.where(near, -float("inf"), logit)
    column_logit = logit
    if limit is not None:
        similarity = total * rx[:, None] * ry[None, :]
        row_limit = tl.load(limit + rows, mask=row_inside, other=0.0)
        logit = tl.where(similarity > row_limit[:, None], -float("inf"), logit)
        if COLUMNS:
            column_limit = tl.load(limit + columns, mask=columns < row_count, other=float("inf"))
            beyond = similarity > column_limit[None, :]
            column_logit = tl.where(beyond, -float("inf"), column_logit)
    return total, rx, ry, logit, column_logit
