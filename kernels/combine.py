"""From partial sums to log-sum-exps, and from those to losses and what the gradients need.

All of it is O(N) in float64: no rounding of a log-sum-exp reaches a probability. Sums run over
the tiles in their order.
"""

import triton
import triton.language as tl

from .rows import load_scale
from .tile import is_bounded

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log1p(u):
    """log(1 + u) of small u >= 0, to its own digits."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def log_add(x, y):
    """log(e**x + e**y), also where one of them or both are -inf; NaN where one is.

    A GPU's maximum and minimum drop a NaN.
    """
    high = tl.where(x > y, x, y)
    low = tl.where(x > y, y, x)
    empty = high == -float("inf")
    gap = tl.where(empty, 0.0, low - tl.where(empty, 0.0, high))
    return tl.where(empty, high + low, high + log1p(tl.exp(gap)))


@triton.jit
def share_of(part, whole):
    """e**(part - whole), 0 where there is nothing."""
    return tl.where(part == -float("inf"), 0.0, tl.exp(part - whole))


@triton.jit(do_not_specialize=["tiles", "begin", "count", "whole"])
def close(
    parts,
    state,
    summary,
    scale,
    offset,
    log2_count,
    tiles,
    begin,
    count,
    whole,
    SCALE_IS_TENSOR: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    STATIC: tl.constexpr,
    SMOOTHING: tl.constexpr,
    LEVER: tl.constexpr,
    RUNNING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """state (5, whole) float64 from partials (planes, tiles, count), for entries from `begin` on:
    log-sum-exp, logits kept, their sum, the mean of similarity - reference under their softmax, its
    sum over the logits kept. summary (6, whole), where there is one: 0 the logits above the best
    positive's, 1 the largest one, 5 the mean of logit - the reference's, in bits, under their
    softmax. RUNNING adds to what is there. CHECK: see `statistics`.
    """
    if CHECK:  # noqa: SIM102 - a constant: without it nothing is loaded or compared
        if is_bounded(load_scale(scale, SCALE_IS_TENSOR), log2_count, RANGE) != STATIC:
            return
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = local < count
    stride = count.to(tl.int64)
    plane = tiles * stride
    at = parts + local
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    if STATIC:
        top = tl.zeros((BLOCK,), tl.float32) + offset
    else:
        for t in range(tiles):
            part = tl.load(at + plane + t * stride, mask=inside, other=0.0)
            top = tl.maximum(top, part)
    total = tl.zeros((BLOCK,), tl.float64)
    kept = total
    logits = total
    lever = total
    level = total
    above = total
    turn = total
    hardest = total - float("inf")
    COUNTS: tl.constexpr = SMOOTHING or summary is not None
    shift = tl.where(top == -float("inf"), 0.0, top)
    for t in range(tiles):
        here = at + t * stride
        part = tl.load(here, mask=inside, other=0.0).to(tl.float64)
        if not STATIC:
            # Whole numbers apart: an exact power of two.
            power = tl.exp2(tl.load(here + plane, mask=inside, other=0.0) - shift).to(tl.float64)
            part *= power
        total += part
        if LEVER:
            part = tl.load(here + 4 * plane, mask=inside, other=0.0).to(tl.float64)
            if not STATIC:
                part *= power
            lever += part
            if SMOOTHING:
                level += tl.load(here + 5 * plane, mask=inside, other=0.0).to(tl.float64)
        if summary is not None:
            above += tl.load(here + 6 * plane, mask=inside, other=0.0).to(tl.float64)
            most = tl.load(here + 7 * plane, mask=inside, other=0.0).to(tl.float64)
            hardest = tl.maximum(hardest, most * LN2)
            part = tl.load(here + 8 * plane, mask=inside, other=0.0).to(tl.float64)
            if not STATIC:
                part *= power
            turn += part
        if COUNTS:
            kept += tl.load(here + 2 * plane, mask=inside, other=0.0).to(tl.float64)
            logits += tl.load(here + 3 * plane, mask=inside, other=0.0).to(tl.float64)
    lse = tl.log(total) + shift.to(tl.float64) * LN2
    lever = tl.where(total == 0, 0.0, lever / tl.where(total == 0, 1.0, total))
    turn = tl.where(total == 0, 0.0, turn / tl.where(total == 0, 1.0, total))
    out = state + begin + local
    if RUNNING:
        before = tl.load(out, mask=inside, other=0.0)
        both = log_add(lse, before)
        if LEVER:
            lever *= share_of(lse, both)
            lever += share_of(before, both) * tl.load(out + 3 * whole, mask=inside, other=0.0)
        if summary is not None:
            entry = summary + begin + local
            above += tl.load(entry, mask=inside, other=0.0)
            hardest = tl.maximum(hardest, tl.load(entry + whole, mask=inside, other=0.0))
            turn *= share_of(lse, both)
            turn += share_of(before, both) * tl.load(entry + 5 * whole, mask=inside, other=0.0)
        lse = both
        if COUNTS:
            kept += tl.load(out + whole, mask=inside, other=0.0)
            logits += tl.load(out + 2 * whole, mask=inside, other=0.0)
            if LEVER and SMOOTHING:
                level += tl.load(out + 4 * whole, mask=inside, other=0.0)
    tl.store(out, lse, mask=inside)
    if LEVER:
        tl.store(out + 3 * whole, lever, mask=inside)
    if summary is not None:
        entry = summary + begin + local
        tl.store(entry, above, mask=inside)
        tl.store(entry + whole, hardest, mask=inside)
        tl.store(entry + 5 * whole, turn, mask=inside)
    if COUNTS:
        tl.store(out + whole, kept, mask=inside)
        tl.store(out + 2 * whole, logits, mask=inside)
        if LEVER and SMOOTHING:
            tl.store(out + 4 * whole, level, mask=inside)


@triton.jit
def cross_entropy(relative, positive_lse):
    """Loss and the negatives' share of all probability; both arguments relative to the mean
    positive."""
    loss = log_add(relative, positive_lse)
    return loss, share_of(relative, loss)


@triton.jit
def offset_and_amount(lse, weight, offset, static):
    """A row's offset m and amount a: its coefficients are 2**(l - m) a = weight e**(l - lse)."""
    empty = lse == -float("inf")
    base2 = tl.where(empty, 0.0, lse / LN2)
    # inf: nothing that is empty, whatever its logits, has a coefficient.
    m = tl.where(static, base2 * 0.0 + offset, tl.where(empty, float("inf"), tl.ceil(base2)))
    # Below the static range there is only a positive with a margin: 0 times this is to be 0.
    gap = tl.where(empty, 0.0, m - base2)
    gap = tl.where(gap > 126.0, 126.0, gap)  # unlike a minimum, keeps NaN
    return m, tl.where(empty, 0.0, weight * tl.exp2(gap))


@triton.jit(do_not_specialize=["begin", "end", "rows", "columns", "positives"])
def settle(
    row_state,
    column_state,
    similarity,
    reference,
    index,
    weight,
    scale,
    losses,
    weighted,
    row_offset,
    row_amount,
    row_even,
    column_offset,
    column_amount,
    column_even,
    positive_grad,
    slope,
    margin,
    smoothing,
    share,
    offset,
    log2_count,
    begin,
    end,
    rows,
    columns,
    positives,
    SCALE_IS_TENSOR: tl.constexpr,
    WEIGHT_IS_TENSOR: tl.constexpr,
    SMOOTHING: tl.constexpr,
    LEVER: tl.constexpr,
    STATIC: tl.constexpr,
    CHECK: tl.constexpr,
    RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Entries [begin, end): losses, weighted losses; offsets and amounts of rows and columns; the
    gradient by the positives' logits (N, P); what each row adds to 1 / temperature's.

    `share` of a row's weight counts for each direction. STATIC: offsets are the static one (with
    CHECK, if the scale allows it).
    """
    i = begin + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < end
    is_row = i < rows
    row_inside = inside & is_row
    single = load_scale(scale, SCALE_IS_TENSOR)
    zero = tl.zeros((BLOCK,), tl.float64)
    scale = zero + single
    static = STATIC
    if CHECK:
        static = is_bounded(single, log2_count, RANGE)
    if WEIGHT_IS_TENSOR:
        w = tl.load(weight + i, mask=row_inside, other=0.0).to(tl.float64)
    else:
        w = tl.where(is_row, zero + weight, 0.0)
    lse = tl.load(row_state + i, mask=row_inside, other=-float("inf"))
    count = zero
    mean = zero
    top = zero - float("inf")
    for p in range(positives):
        at = i.to(tl.int64) * positives + p
        given = row_inside
        if index is not None:
            given = given & (tl.load(index + at, mask=row_inside, other=-1) >= 0)
        logit = (
            tl.load(similarity + at, mask=row_inside, other=0.0).to(tl.float64) - margin
        ) * scale
        count += tl.where(given, 1.0, 0.0)
        mean += tl.where(given, logit, 0.0)
        top = tl.where(given, tl.maximum(top, logit), top)
    some = tl.maximum(count, 1.0)
    mean = mean / some
    positive_lse = zero - float("inf")
    if positives > 0:
        positive_sum = zero
        for p in range(positives):
            at = i.to(tl.int64) * positives + p
            given = row_inside
            if index is not None:
                given = given & (tl.load(index + at, mask=row_inside, other=-1) >= 0)
            logit = (
                tl.load(similarity + at, mask=row_inside, other=0.0).to(tl.float64) - margin
            ) * scale
            positive_sum += tl.where(given, tl.exp(tl.where(given, logit - top, 0.0)), 0.0)
        positive_lse = tl.where(count > 0, tl.log(positive_sum) + (top - mean), positive_lse)
    loss, negatives_share = cross_entropy(lse - mean, positive_lse)
    turn = zero
    if LEVER:
        turn = negatives_share * tl.load(row_state + 3 * rows + i, mask=row_inside, other=0.0)
        if positives == 0:
            turn = tl.load(row_state + 3 * rows + i, mask=row_inside, other=0.0)
    lse_all = loss + mean
    even = zero
    row_loss = loss
    if SMOOTHING:
        kept = count + tl.load(row_state + rows + i, mask=row_inside, other=0.0)
        logits = mean * count + tl.load(row_state + 2 * rows + i, mask=row_inside, other=0.0)
        row_loss = tl.where(
            positives > 0, loss + smoothing * (mean - logits / tl.maximum(kept, 1.0)), loss
        )
        even = tl.where(positives > 0, smoothing / tl.maximum(kept, 1.0), 0.0)
        if LEVER:
            turn -= even * tl.load(row_state + 4 * rows + i, mask=row_inside, other=0.0)
    if row_amount is not None:
        m, a = offset_and_amount(lse_all, w * share, offset, static)
        tl.store(row_offset + i, m.to(tl.float32), mask=row_inside)
        tl.store(row_amount + i, a.to(tl.float32), mask=row_inside)
        if SMOOTHING:
            tl.store(row_even + i, (even * w * share).to(tl.float32), mask=row_inside)
    column_grad = zero
    if column_state is not None:
        lse = tl.load(column_state + i, mask=row_inside, other=-float("inf"))
        back, back_share = cross_entropy(lse - mean, zero)
        lse_all = back + mean
        column_grad = -back_share
        column_loss = back
        if LEVER:
            lever = tl.load(column_state + 3 * columns + i, mask=row_inside, other=0.0)
            turn += back_share * lever
        if SMOOTHING:
            kept = 1.0 + tl.load(column_state + columns + i, mask=row_inside, other=0.0)
            logits = mean + tl.load(column_state + 2 * columns + i, mask=row_inside, other=0.0)
            column_loss += smoothing * (mean - logits / kept)
            column_grad += smoothing - smoothing / kept
            if LEVER:
                level = tl.load(column_state + 4 * columns + i, mask=row_inside, other=0.0)
                turn -= smoothing / kept * level
        if column_amount is not None:
            # A column without an anchor has the weight 0.
            lse_all = tl.where(is_row, lse_all, -float("inf"))
            m, b = offset_and_amount(lse_all, w * share, offset, static)
            tl.store(column_offset + i, m.to(tl.float32), mask=inside & (i < columns))
            tl.store(column_amount + i, b.to(tl.float32), mask=inside & (i < columns))
            if SMOOTHING:
                value = tl.where(is_row, smoothing / kept * w * share, 0.0)
                tl.store(column_even + i, value.to(tl.float32), mask=inside & (i < columns))
        row_loss = (row_loss + column_loss) * 0.5
    tl.store(losses + i, row_loss.to(tl.float32), mask=row_inside)
    if weighted is not None:
        tl.store(weighted + i, row_loss * w, mask=row_inside)
    if positive_grad is not None:
        ref = tl.load(reference + i, mask=row_inside, other=0.0).to(tl.float64)
        pull = zero
        for p in range(positives):
            at = i.to(tl.int64) * positives + p
            given = row_inside
            if index is not None:
                given = given & (tl.load(index + at, mask=row_inside, other=-1) >= 0)
            s = tl.load(similarity + at, mask=row_inside, other=0.0).to(tl.float64) - margin
            likely = tl.exp(tl.where(given, s * scale - mean - positive_lse, 0.0))
            # softmax - target without its cancellation: the negatives' share apart.
            grad = (likely - 1.0 / some) - likely * negatives_share
            if SMOOTHING:
                grad += smoothing / some - even
            grad = tl.where(given, (grad + column_grad) * w * share, 0.0)
            tl.store(positive_grad + at, grad.to(tl.float32), mask=row_inside)
            pull += tl.where(given, grad * (s - ref), 0.0)
        if LEVER:
            tl.store(slope + i, pull + turn * w * share, mask=row_inside)
