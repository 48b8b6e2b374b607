"""One tile: where it lies, how it is loaded and stored, its product."""

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
def place_above(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile of a square's upper triangle: bands of GROUP tiles down, each from the
    diagonal on. Programs before band b: GROUP (b T - STEP b (b - 1) / 2), T tiles across.
    """
    STEP: tl.constexpr = GROUP * BLOCK_M // BLOCK_N
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    side = (2 * tiles_n + STEP).to(tl.float32)
    root = tl.sqrt(tl.maximum(side * side - program.to(tl.float32) * (8.0 * STEP / GROUP), 0.0))
    band = tl.maximum(((side - root) / (2.0 * STEP)).to(tl.int32), 0)
    # The root is rounded: one band too far or too near at most.
    band -= (GROUP * (band * tiles_n - STEP * (band * (band - 1) // 2)) > program).to(tl.int32)
    after = band + 1
    band += (GROUP * (after * tiles_n - STEP * (after * band // 2)) <= program).to(tl.int32)
    within = program - GROUP * (band * tiles_n - STEP * (band * (band - 1) // 2))
    first = band * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + within % height, band * STEP + within // height


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
def is_bounded(scale, log2_count, RANGE: tl.constexpr):
    """Whether cosines / temperature fit one static offset, sums over 2**log2_count included."""
    return 2.0 * 1.4426950408889634 * scale + log2_count <= RANGE
