"""Selection: maxima of groups of candidates, values of listed groups, exact scores of listed pairs.

Scanned rows are 16-bit or float32 copies, each times a power of two; a scanned value is

    value = (x . y) * factor_x * factor_y + bias_y

in float32, where a bias of -inf marks what is no candidate. Scores are those of
`contrastive_ops.engine.scores`: float64 sums in eight lanes, in one order.
"""

import triton
import triton.language as tl

from .tile import load_rows, place, product


@triton.jit
def first_at_least(numbers, begin, end, value, steps):
    """Per row the first place in [begin, end) whose number is not below value; 2**steps > end."""
    for _ in range(steps):
        middle = (begin + end) // 2
        here = begin < end
        below = tl.load(numbers + middle, mask=here, other=0) < value
        begin = tl.where(here & below, middle + 1, begin)
        end = tl.where(here & ~below, middle, end)
    return begin


@triton.jit
def without_left_out(value, out_begin, out_index, rows, inside, column, columns, first, steps):
    """The values with -inf where a row leaves a column out; its indices begin at `first`."""
    begin = tl.load(out_begin + rows, mask=inside, other=0)
    end = tl.load(out_begin + rows + 1, mask=inside, other=0)
    at = first_at_least(out_index, begin, end, first + column, steps)
    stop = first_at_least(out_index, at, end, first + column + value.shape[1], steps)
    for e in range(tl.max(stop - at)):
        index = tl.load(out_index + at + e, mask=at + e < stop, other=-1)
        value = tl.where((index - first)[:, None] == columns[None, :], -float("inf"), value)
    return value


@triton.jit(do_not_specialize=["first", "rows", "columns", "steps"])
def group_maxima(
    x,
    y,
    factor_x,
    factor_y,
    bias,
    cap,
    out_begin,
    out_index,
    most,
    lost,
    first,
    rows,
    columns,
    groups,
    depth,
    steps,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """most (rows, groups): the largest value of every WIDTH columns, but those above the row's cap,
    which lost (rows, groups) counts."""
    tile_m, tile_n = place(rows, columns, BLOCK_M, BLOCK_N, GROUP)
    row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
    value = product(
        x, y, row, column, rows, columns, depth, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, BULK
    )
    at_row = row + tl.arange(0, BLOCK_M)
    at_column = column + tl.arange(0, BLOCK_N)
    inside = at_row < rows
    within = at_column < columns
    fx = tl.load(factor_x + at_row, mask=inside, other=0.0)
    fy = tl.load(factor_y + at_column, mask=within, other=0.0)
    last = tl.load(bias + at_column, mask=within, other=-float("inf"))
    value = value * fx[:, None] * fy[None, :] + last[None, :]
    if out_begin is not None:
        value = without_left_out(
            value, out_begin, out_index, at_row, inside, column, at_column, first, steps
        )
    PARTS: tl.constexpr = BLOCK_N // WIDTH
    at_group = tile_n * PARTS + tl.arange(0, PARTS)
    target = at_row.to(tl.int64)[:, None] * groups + at_group[None, :]
    there = inside[:, None] & (at_group < groups)[None, :]
    if cap is not None:
        limit = tl.load(cap + at_row, mask=inside, other=float("inf"))
        over = value > limit[:, None]
        count = tl.sum(tl.reshape(over.to(tl.int32), (BLOCK_M, PARTS, WIDTH)), 2)
        tl.store(lost + target, count.to(lost.dtype.element_ty), mask=there)
        value = tl.where(over, -float("inf"), value)
    best = tl.max(tl.reshape(value, (BLOCK_M, PARTS, WIDTH)), 2)
    tl.store(most + target, best, mask=there)


@triton.jit(do_not_specialize=["first", "columns", "steps"])
def group_values(
    x,
    y,
    factor_x,
    factor_y,
    bias,
    cap,
    out_begin,
    out_index,
    pair_row,
    tile_group,
    tile_begin,
    tile_end,
    values,
    lost,
    first,
    columns,
    depth,
    steps,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """values (pairs, WIDTH) of listed pairs of a row and a group, in order of groups: tile t has
    the pairs [tile_begin[t], tile_end[t]), all of group tile_group[t], read once."""
    tile = tl.program_id(0)
    column = tl.load(tile_group + tile).to(tl.int32) * WIDTH
    pair = tl.load(tile_begin + tile) + tl.arange(0, BLOCK_M)
    inside = pair < tl.load(tile_end + tile)
    at_row = tl.load(pair_row + pair, mask=inside, other=0)
    at_column = column + tl.arange(0, WIDTH)
    within = at_column < columns
    total = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for k in range(0, depth, BLOCK_K):
        a = tl.load(x + at_row[:, None] * depth + (k + tl.arange(0, BLOCK_K))[None, :])
        b = load_rows(y, column, columns, k, depth, WIDTH, BLOCK_K, False)
        if PRECISION == "interpreted":
            total = tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), total)
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    fx = tl.load(factor_x + at_row)
    fy = tl.load(factor_y + at_column, mask=within, other=0.0)
    last = tl.load(bias + at_column, mask=within, other=-float("inf"))
    value = total * fx[:, None] * fy[None, :] + last[None, :]
    if out_begin is not None:
        value = without_left_out(
            value, out_begin, out_index, at_row, inside, column, at_column, first, steps
        )
    if cap is not None:
        limit = tl.load(cap + at_row)
        over = value > limit[:, None]
        tl.store(lost + pair, tl.sum(over.to(tl.int32), 1), mask=inside)
        value = tl.where(over, -float("inf"), value)
    target = pair.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(values + target, value, mask=inside[:, None])


@triton.jit
def halves(lanes, ROWS: tl.constexpr, HALF: tl.constexpr):
    """(ROWS, 2 HALF) -> (ROWS, HALF): lane i plus lane i + HALF."""
    left, right = tl.split(tl.permute(tl.reshape(lanes, (ROWS, 2, HALF)), (0, 2, 1)))
    return left + right


@triton.jit
def sum_of_lanes(lanes, ROWS: tl.constexpr):
    """(ROWS, 8) -> (ROWS,), in the order that defines a score."""
    four = halves(lanes, ROWS, 4)
    two = halves(four, ROWS, 2)
    return tl.reshape(halves(two, ROWS, 1), (ROWS,))


@triton.jit
def unit_lanes(x, factor, k, width, inside):
    """Eight entries of some rows as the score reads them: times the factor, rounded, in float64."""
    lane = k + tl.arange(0, 8)
    value = tl.load(x + lane[None, :], mask=inside[:, None] & (lane < width)[None, :], other=0.0)
    return (value.to(tl.float64) * factor[:, None]).to(tl.float32).to(tl.float64)


@triton.jit(do_not_specialize=["rows", "width"])
def squared_norms(x, stride, out, rows, width, ROWS: tl.constexpr):
    """out (rows,) float64: the sum that a row's norm is the root of."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    one = tl.full((ROWS,), 1.0, tl.float64)
    total = tl.zeros((ROWS, 8), tl.float64)
    for k in range(0, width, 8):
        value = unit_lanes(x + (row * stride)[:, None], one, k, width, inside)
        total += value * value
    tl.store(out + row, sum_of_lanes(total, ROWS), mask=inside)


@triton.jit(do_not_specialize=["rows", "width"])
def scanned_rows(
    x,
    stride,
    unit,
    shift,
    factor,
    out,
    residual,
    rows,
    width,
    padded,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (rows, padded): x * shift, rounded. residual: the squared norm of what
    factor * out is away from the row that scores are of, which is x * unit."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = tl.arange(0, BLOCK)
    given = x + row[:, None] * stride + at[None, :]
    value = tl.load(given, mask=inside[:, None] & (at < width)[None, :], other=0.0).to(tl.float64)
    by = tl.load(shift + row, mask=inside, other=0.0)
    scanned = (value * by[:, None]).to(tl.float32).to(out.dtype.element_ty)
    scanned = tl.where((by == 0)[:, None], tl.zeros_like(scanned), scanned)
    target = out + row[:, None] * padded + at[None, :]
    tl.store(target, scanned, mask=inside[:, None] & (at < padded)[None, :])
    exact = (value * tl.load(unit + row, mask=inside, other=0.0)[:, None]).to(tl.float32)
    f = tl.load(factor + row, mask=inside, other=0.0).to(tl.float64)
    left = exact.to(tl.float64) - scanned.to(tl.float32).to(tl.float64) * f[:, None]
    tl.store(residual + row, tl.sum(left * left, 1), mask=inside)


@triton.jit(do_not_specialize=["pairs", "width"])
def pair_scores(
    x,
    x_stride,
    x_factor,
    y,
    y_stride,
    y_factor,
    row,
    column,
    score,
    pairs,
    width,
    L2: tl.constexpr,
    ROWS: tl.constexpr,
):
    """score (pairs,) of row[p] and column[p]; no multiply-add may be fused with L2."""
    pair = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = pair < pairs
    i = tl.load(row + pair, mask=inside, other=0)
    j = tl.load(column + pair, mask=inside, other=0)
    fx = tl.load(x_factor + i)
    fy = tl.load(y_factor + j)
    total = tl.zeros((ROWS, 8), tl.float64)
    for k in range(0, width, 8):
        a = unit_lanes(x + (i * x_stride)[:, None], fx, k, width, inside)
        b = unit_lanes(y + (j * y_stride)[:, None], fy, k, width, inside)
        if L2:
            away = a - b
            total += away * away
        else:
            total += a * b
    found = sum_of_lanes(total, ROWS)
    if L2:
        found = -found
    tl.store(score + pair, found.to(tl.float32), mask=inside)
