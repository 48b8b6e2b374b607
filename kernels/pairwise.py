"""Losses that are a sum over pairs: nothing is normalised, so one pass gives loss and coefficients.

softplus(l) and its derivative, of every pair that is no positive, for one tile.
"""

import triton
import triton.language as tl

from .logits import tile_logits
from .rows import LOG2E, load_scale
from .statistics import RUN_TIME
from .tile import place, store_tile

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(bits):
    """log(1 + 2**bits) and its derivative by the natural logit; both to their own digits."""
    u = tl.exp2(-tl.abs(bits))
    q = 1.0 / ((1.0 + u) * (2.0 + u))
    # log(1 + u) = 2 atanh(t), t = u / (2 + u) <= 1/3: a logarithm would lose what is small.
    t = u * (1.0 + u) * q
    s = t * t
    series = 1.0 / 15.0
    series = series * s + 1.0 / 13.0
    series = series * s + 1.0 / 11.0
    series = series * s + 1.0 / 9.0
    series = series * s + 1.0 / 7.0
    series = series * s + 1.0 / 5.0
    series = series * s + 1.0 / 3.0
    value = 2.0 * t + 2.0 * t * s * series
    above = bits > 0.0
    value += tl.where(above, bits * LN2, 0.0)
    return value, (2.0 + u) * q * tl.where(above, 1.0, u)


@triton.jit(do_not_specialize=RUN_TIME)
def pairwise(
    x,
    y,
    inverse_x,
    inverse_y,
    scale,
    shift,
    index,
    row_ids,
    column_ids,
    guide_x,
    guide_y,
    guide_threshold,
    bias,
    limit,
    weight,
    factor,
    parts,
    z,
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
    SHIFT_IS_TENSOR: tl.constexpr,
    WEIGHT_IS_TENSOR: tl.constexpr,
    FACTOR_IS_TENSOR: tl.constexpr,
    PRECISION: tl.constexpr,
    GUIDE_PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """parts (3, tiles across, rows): sums of softplus(l), of its derivative, and of that times the
    similarity. z (rows, z_stride), where there is one: the derivative times the row's weight,
    `factor` and both inverse norms. l = similarity * scale + log-weights + shift.
    """
    scale = load_scale(scale, SCALE_IS_TENSOR)
    shift = load_scale(shift, SHIFT_IS_TENSOR)
    width = column_end - column_begin
    height = row_end - row_begin
    tile_m, tile_n = place(height, width, BLOCK_M, BLOCK_N, GROUP)
    row = row_begin + tile_m * BLOCK_M
    column = column_begin + tile_n * BLOCK_N
    total, rx, ry, logit, _ = tile_logits(
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
        -shift * LOG2E,
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
        False,
        PRECISION,
        GUIDE_PRECISION,
        BULK,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < row_end
    plane = tl.cdiv(width, BLOCK_N).to(tl.int64) * height
    at = parts + tile_n.to(tl.int64) * height + (rows - row_begin)
    value, slope = softplus(logit)
    tl.store(at, tl.sum(value, 1), mask=row_inside)
    tl.store(at + plane, tl.sum(slope, 1), mask=row_inside)
    lever = slope * (total * rx[:, None] * ry[None, :])
    if not UNIT:  # infinite at an edge, where it is loaded twice
        lever = tl.where((columns < column_end)[None, :], lever, 0.0)
    tl.store(at + 2 * plane, tl.sum(lever, 1), mask=row_inside)
    if z is not None:
        w = rx
        if WEIGHT_IS_TENSOR:
            w *= tl.load(weight + rows, mask=row_inside, other=0.0)
        else:
            w *= weight
        if FACTOR_IS_TENSOR:
            factor = tl.load(factor)
        part = slope * (w * factor)[:, None] * ry[None, :]
        top = row - row_begin
        left = column - column_begin
        store_tile(z, part, top, left, height, width, z_stride, BLOCK_M, BLOCK_N, BULK)
