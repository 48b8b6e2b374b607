"""From exponentials that a pass kept to what the gradients' products take, in place.

`statistics` keeps 2**(logit - offset) / |y_j| before the sums are known, and -1 for what is left
out where label smoothing has to know.
"""

import triton
import triton.language as tl

from .rows import load_scale
from .tile import is_bounded


@triton.jit(
    do_not_specialize=["row_begin", "column_begin", "rows", "columns"],
    do_not_specialize_on_alignment=["tops"],
)
def rescale(
    kept,
    stride,
    tops,
    inverse_x,
    inverse_y,
    scale,
    row_offset,
    row_amount,
    row_even,
    column_amount,
    column_even,
    kept_factor,
    log2_count,
    row_begin,
    column_begin,
    rows,
    columns,
    SCALE_IS_TENSOR: tl.constexpr,
    TWO_WAY: tl.constexpr,
    BOUNDED: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    TILE_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """kept (rows, stride), of rows from row_begin and columns from column_begin on.

    One way: 2**(logit - row_offset) [- even / amount] over |y_j|; what its product lacks is the
    row's amount. tops (tiles, rows): the offsets that each row had in tiles of TILE_N columns;
    BOUNDED: all were the static one. TWO_WAY (bounded): the coefficients themselves, as
    `coefficients` writes them.
    """
    if CHECK:  # noqa: SIM102 - a constant: without it nothing is loaded or compared
        if is_bounded(load_scale(scale, SCALE_IS_TENSOR), log2_count, RANGE) != BOUNDED:
            return
    # One grid axis: the others end at 65,535, and either side can have more tiles.
    across = tl.cdiv(columns, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // across, tl.program_id(0) % across
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside = row < rows
    column_inside = column < columns
    inside = row_inside[:, None] & column_inside[None, :]
    at = kept + row.to(tl.int64)[:, None] * stride + column[None, :]
    given = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    value = given
    a = tl.load(row_amount + row_begin + row, mask=row_inside, other=0.0)
    if TWO_WAY:
        b = tl.load(column_amount + column_begin + column, mask=column_inside, other=0.0)
        rx = tl.load(inverse_x + row_begin + row, mask=row_inside, other=0.0)
        value *= (a * rx)[:, None] + rx[:, None] * b[None, :]
    elif not BOUNDED:
        tile = tile_n * BLOCK_N // TILE_N
        top = tl.load(tops + tile.to(tl.int64) * rows + row, mask=row_inside, other=0.0)
        m = tl.load(row_offset + row_begin + row, mask=row_inside, other=0.0)
        value *= tl.exp2(tl.where(top == -float("inf"), 0.0, top - m))[:, None]
    if row_even is not None:
        ry = tl.load(inverse_y + column_begin + column, mask=column_inside, other=0.0)
        even = tl.load(row_even + row_begin + row, mask=row_inside, other=0.0)
        if TWO_WAY:
            back = tl.load(column_even + column_begin + column, mask=column_inside, other=0.0)
            even *= rx
            less = even[:, None] * ry[None, :] + rx[:, None] * (back * ry)[None, :]
        else:
            even = tl.where(a == 0, 0.0, even / tl.where(a == 0, 1.0, a))
            less = even[:, None] * (ry * kept_factor)[None, :]
        value = tl.where(given < 0, 0.0, value - less)
    tl.store(at, value.to(kept.dtype.element_ty), mask=inside)
