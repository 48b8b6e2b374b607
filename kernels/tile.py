"""The logits of one tile: its product, and which of its pairs count.

No run-time branch around a whole tile: what it saves in masks the compiler pays back in registers.
"""

import triton
import triton.language as tl


@triton.jit
def place(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile: GROUP tiles down before one across, so that neighbours share L2."""
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    band = GROUP * tiles_n
    first = program // band * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = program % band
    return first + within % height, within // height


@triton.jit
def load_rows(
    x, first, end, k, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, BULK: tl.constexpr
):
    """(ROWS, DEPTH) of x from row `first`; what is past the end holds anything."""
    if BULK:
        tile = x.load([first, k])
    else:
        # Clamped, not masked: a masked copy to shared memory is a slower one.
        rows = tl.minimum(first + tl.arange(0, ROWS), end - 1).to(tl.int64)
        tile = tl.load(x + rows[:, None] * stride + (k + tl.arange(0, DEPTH))[None, :])
    return tile


@triton.jit
def store_tile(
    target,
    value,
    row,
    column,
    height,
    width,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BULK: tl.constexpr,
):
    """A tile into a buffer of height x width, clipped; a bulk store needs no masks or pointers."""
    if BULK:
        target.store([row, column], value.to(target.dtype))
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        at = target + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        inside = (rows < height)[:, None] & (columns < width)[None, :]
        tl.store(at, value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def product(
    x,
    y,
    row,
    column,
    row_end,
    column_end,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """x rows times y rows, in float32; depth is a multiple of BLOCK_K and both row strides."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, depth, BLOCK_K):
        a = load_rows(x, row, row_end, k, depth, BLOCK_M, BLOCK_K, BULK)
        b = load_rows(y, column, column_end, k, depth, BLOCK_N, BLOCK_K, BULK)
        if PRECISION == "interpreted":  # the interpreter multiplies the bits of bfloat16
            total = tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), total)
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def screened(
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
    DIAGONAL: tl.constexpr,
):
    """The logits with -inf at positives and where ids are equal.

    One condition after another: together they would be one more tile of registers.
    """
    if DIAGONAL:
        logit = tl.where(rows[:, None] == columns[None, :], -float("inf"), logit)
    row_inside = rows < row_end
    if index is not None:
        for p in range(positives):
            at = index + rows.to(tl.int64) * positives + p
            mine = tl.load(at, mask=row_inside, other=-1)
            logit = tl.where(mine[:, None] == columns[None, :], -float("inf"), logit)
    if row_ids is not None:
        for kind in range(ids):
            mine = tl.load(row_ids + kind * row_count + rows, mask=row_inside, other=0)
            at = column_ids + kind * column_count + columns
            theirs = tl.load(at, mask=columns < column_end, other=0)
            logit = tl.where(mine[:, None] == theirs[None, :], -float("inf"), logit)
    return logit


@triton.jit
def above_guide(
    guide_x,
    guide_y,
    threshold,
    rows,
    row,
    column,
    row_end,
    column_end,
    guide_depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pairs whose guide cosine is above the row's threshold."""
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
        PRECISION,
        False,
    )
    bound = tl.load(threshold + rows, mask=rows < row_end, other=0.0)
    return cosine > bound[:, None]


@triton.jit
def is_bounded(scale, log2_count, RANGE: tl.constexpr):
    """Whether cosines / temperature fit one static offset, sums over 2**log2_count included."""
    return 2.0 * 1.4426950408889634 * scale + log2_count <= RANGE
