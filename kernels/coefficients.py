"""The gradient by logit of one tile, recomputed and written in the inputs' dtype.

Z_ij = 2**(l_ij - m_i) a_i [+ 2**(l_ij - n_j) b_j], times both inverse norms: so one buffer serves
dX = Z Y and dY = Z^T X on the prepared rows, with one rounding and no scaled copies of the rows.
"""

import triton
import triton.language as tl

from .logits import tile_logits
from .rows import load_scale
from .statistics import RUN_TIME
from .tile import is_bounded, place, store_tile


@triton.jit(do_not_specialize=RUN_TIME)
def coefficients(
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
    row_offset,
    row_amount,
    row_even,
    column_offset,
    column_amount,
    column_even,
    factor,
    z,
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
    z_stride,
    DIAGONAL: tl.constexpr,
    TRIANGLE: tl.constexpr,
    HAS_GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    SCALE_IS_TENSOR: tl.constexpr,
    FACTOR_IS_TENSOR: tl.constexpr,
    BOUNDED: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    PRECISION: tl.constexpr,
    GUIDE_PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """z (rows, z_stride) for rows [row_begin, row_end) x columns [column_begin, column_end).

    BOUNDED: all offsets are the same, one exponential serves both directions. `factor` scales z.
    TRIANGLE: one set against itself; z is 0 on the diagonal and below.
    """
    scale = load_scale(scale, SCALE_IS_TENSOR)
    if CHECK:  # noqa: SIM102 - a constant: without it nothing is loaded or compared
        if is_bounded(scale, log2_count, RANGE) != BOUNDED:
            return
    width = column_end - column_begin
    tile_m, tile_n = place(row_end - row_begin, width, BLOCK_M, BLOCK_N, GROUP)
    row = row_begin + tile_m * BLOCK_M
    column = column_begin + tile_n * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < row_end
    column_inside = columns < column_end
    _, rx, ry, logit, column_logit = tile_logits(
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
        0.0,
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
        False,
        column_amount is not None,
        PRECISION,
        GUIDE_PRECISION,
        BULK,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )

    m = tl.load(row_offset + rows, mask=row_inside, other=0.0)
    a = tl.load(row_amount + rows, mask=row_inside, other=0.0)
    both: tl.constexpr = column_amount is not None
    # Where both directions keep the same pairs and share their offset, they share the exponential.
    merged: tl.constexpr = both and BOUNDED and limit is None and row_even is None
    if both:
        n = tl.load(column_offset + columns, mask=column_inside, other=0.0)
        b = tl.load(column_amount + columns, mask=column_inside, other=0.0)
    if FACTOR_IS_TENSOR:
        factor = tl.load(factor)
    scaled_rx = rx * factor
    e = tl.exp2(logit - m[:, None])
    if merged:
        part = e * ((a * scaled_rx)[:, None] * ry[None, :] + scaled_rx[:, None] * (b * ry)[None, :])
    else:
        part = e * a[:, None]
        if row_even is not None:
            even = tl.load(row_even + rows, mask=row_inside, other=0.0)
            part -= tl.where(logit != -float("inf"), even[:, None], 0.0)
        if both:
            back = tl.exp2(column_logit - n[None, :]) * b[None, :]
            if column_even is not None:
                even = tl.load(column_even + columns, mask=column_inside, other=0.0)
                back -= tl.where(column_logit != -float("inf"), even[None, :], 0.0)
    if not merged:
        if both:
            part += back
        part = part * scaled_rx[:, None] * ry[None, :]
    height = row_end - row_begin
    top = row - row_begin
    left = column - column_begin
    store_tile(z, part, top, left, height, width, z_stride, BLOCK_M, BLOCK_N, BULK)
