"""Row-wise kernels, a few rows a program: norms, positives, own negatives, finished gradients.

A *prepared* operand is a contiguous copy in the input dtype, its width padded with zeros to whole
depth blocks, each row times an exact power of two so that its norm is in [1, 2) * 2**TARGET. So a
raw 16-bit row is rounded no further, and no similarity overflows or underflows whatever the
entries' size; the float32 inverse norm is applied to the products. A row that has no direction but
NaN is zeros with an inverse norm of NaN: it poisons what it takes part in and nothing beside it.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def power_of_two(exponent):
    """2**exponent as float32, for exponents in [-126, 127]."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent_of(x):
    """floor(log2 x) of normal positive x, within [-126, 126]; -126 for smaller ones."""
    biased = (x.to(tl.int32, bitcast=True) >> 23) & 255
    return tl.minimum(tl.maximum(biased - 127, -126), 126)


@triton.jit
def norm_and_inverse(squares):
    """The root of a sum of squares and its inverse, 0 for 0; a GPU's plain ones are off by some
    ulps, and so would be every logit of the row."""
    norm = tl.sqrt_rn(squares)
    return norm, tl.where(norm == 0, 0.0, tl.div_rn(1.0, tl.where(norm == 0, 1.0, norm)))


@triton.jit
def load_scale(scale, SCALE_IS_TENSOR: tl.constexpr):
    """1 / temperature: a number, or in memory."""
    if SCALE_IS_TENSOR:
        scale = tl.load(scale)
    return scale


@triton.jit(do_not_specialize=["rows", "width"])
def prepare(
    x,
    row_stride,
    column_stride,
    out,
    inverse,
    rescale,
    rows,
    width,
    padded,
    NORMALIZE: tl.constexpr,
    TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (rows, padded), inverse = 1 / |out row|, rescale = out / x; 0 and 0 for a zero row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = tl.arange(0, BLOCK)
    given = x + row[:, None] * row_stride + at.to(tl.int64)[None, :] * column_stride
    value = tl.load(given, mask=inside[:, None] & (at < width)[None, :], other=0.0)
    if NORMALIZE:
        value = value.to(tl.float32)
        largest = tl.max(tl.abs(value), 1)
        # Twice: squares of what has its largest entry in [1, 2) cannot overflow.
        first = power_of_two(-exponent_of(largest))
        value *= first[:, None]
        second = power_of_two(TARGET - exponent_of(tl.sqrt(tl.sum(value * value, 1))))
        value *= second[:, None]
        norm, inverse_norm = norm_and_inverse(tl.sum(value * value, 1))
        zero = (largest == 0) & (norm == 0)
        lost = (norm != norm) | (norm == float("inf"))
        factor = tl.where(zero, 0.0, first * second)
    else:
        lost = tl.sum((value != value).to(tl.int32), 1) > 0
        inverse_norm = tl.full((ROWS,), 1.0, tl.float32)
        factor = inverse_norm
    tl.store(inverse + row, tl.where(lost, float("nan"), inverse_norm), mask=inside)
    tl.store(rescale + row, tl.where(lost, float("nan"), factor), mask=inside)
    value = tl.where(lost[:, None], 0.0, value)
    target = out + row[:, None] * padded + at[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=inside[:, None] & (at < padded)[None, :])


@triton.jit(do_not_specialize=["rows", "positives"])
def positive_similarity(
    x,
    y,
    inverse_x,
    inverse_y,
    index,
    similarity,
    reference,
    best,
    limit,
    margin,
    limit_margin,
    slack_ulps,
    rows,
    positives,
    padded,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Float32 similarities of each row to its positives, and what later passes derive from them.

    similarity (N, P); reference (N,) = their mean - margin; best (N,) = the largest with a slack of
    some ulps - margin; limit (N,) = the weakest with such a slack + limit_margin, above which an
    in-batch candidate is left out.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = tl.arange(0, BLOCK)
    within = inside[:, None] & (at < padded)[None, :]
    mine = tl.load(x + row[:, None] * padded + at[None, :], mask=within, other=0.0).to(tl.float32)
    r = tl.load(inverse_x + row, mask=inside, other=0.0)
    norm = tl.sqrt(tl.sum(mine * mine, 1))
    total = tl.zeros((ROWS,), tl.float32)
    count = total
    weakest = total + float("inf")
    strongest = total - float("inf")
    for p in range(positives):
        column = row
        if index is not None:
            column = tl.load(index + row * positives + p, mask=inside, other=-1)
        given = inside & (column >= 0)
        column = tl.where(given, column, 0)
        other = tl.load(y + column[:, None] * padded + at[None, :], mask=within, other=0.0)
        other = other.to(tl.float32)
        s = tl.sum(mine * other, 1) * r * tl.load(inverse_y + column)
        tl.store(similarity + row * positives + p, s, mask=inside)
        total += tl.where(given, s, 0.0)
        count += tl.where(given, 1.0, 0.0)
        slack = slack_ulps * 1.1920928955078125e-07
        if not NORMALIZE:
            slack = slack * norm * tl.sqrt(tl.sum(other * other, 1))
        weakest = tl.where(given, tl.minimum(weakest, s + slack), weakest)
        strongest = tl.where(given, tl.maximum(strongest, s + slack), strongest)
    mean = tl.where(count > 0, total / tl.maximum(count, 1.0) - margin, 0.0)
    tl.store(reference + row, mean, mask=inside)
    if best is not None:
        tl.store(best + row, strongest - margin, mask=inside)
    if limit is not None:
        tl.store(limit + row, weakest + limit_margin, mask=inside)


@triton.jit
def unit_row(x, inside, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr):
    """A raw row as float32 of norm 1, and the inverse norm as two factors (one could overflow)."""
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    first = 1.0
    second = 1.0
    if NORMALIZE:
        largest = tl.max(tl.abs(value), 0)
        first = tl.where(largest == 0, 0.0, power_of_two(-exponent_of(largest)))
        value *= first
        _, second = norm_and_inverse(tl.sum(value * value, 0))
        value *= second
    return value, first, second


@triton.jit(do_not_specialize=["own_strides_h", "first_row", "rows", "count"])
def own_logits(
    x,
    inverse_x,
    own,
    own_strides_n,
    own_strides_h,
    own_strides_d,
    bias,
    scale,
    reference,
    best,
    state_parts,
    first_row,
    rows,
    count,
    width,
    padded,
    SCALE_IS_TENSOR: tl.constexpr,
    NORMALIZE: tl.constexpr,
    LEVER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums over each row's own negatives.

    state_parts (6 or, for a summary, 9, rows) is what `statistics` writes for a tile.
    """
    local = tl.program_id(0).to(tl.int64)
    row = first_row + local
    at = tl.arange(0, BLOCK)
    mine = tl.load(x + row * padded + at, mask=at < padded, other=0.0).to(tl.float32)
    mine *= tl.load(inverse_x + row)
    scale = load_scale(scale, SCALE_IS_TENSOR)
    total = tl.zeros((), tl.float32)
    top = total - float("inf")
    kept = total
    logits = total
    lever = total
    level = total
    above = total
    turn = total
    hardest = top
    ref = tl.load(reference + row)
    if best is not None:
        most = tl.load(best + row) * scale
    for h in range(count):
        given = own + row * own_strides_n + h * own_strides_h.to(tl.int64)
        given += at.to(tl.int64) * own_strides_d
        other, _, _ = unit_row(given, at < width, BLOCK, NORMALIZE)
        s = tl.sum(mine * other, 0)
        logit = s * scale
        if bias is not None:
            logit += tl.load(bias + row * count + h)
        keep = logit != -float("inf")
        higher = tl.where(keep, tl.maximum(top, tl.ceil(logit * LOG2E)), top)
        less = tl.where(top == -float("inf"), 0.0, tl.exp2(top - higher))
        e = tl.where(keep, tl.exp2(logit * LOG2E - higher), 0.0)
        total = total * less + e
        lever = lever * less + e * (s - ref)
        level += tl.where(keep, s - ref, 0.0)
        if best is not None:
            above += tl.where(logit > most, 1.0, 0.0)
            hardest = tl.maximum(hardest, logit * LOG2E)
            turn = turn * less + tl.where(keep, e * ((logit - ref * scale) * LOG2E), 0.0)
        top = higher
        kept += tl.where(keep, 1.0, 0.0)
        logits += tl.where(keep, logit, 0.0)
    tl.store(state_parts + local, total)
    tl.store(state_parts + rows + local, top)
    tl.store(state_parts + 2 * rows + local, kept)
    tl.store(state_parts + 3 * rows + local, logits)
    if LEVER:
        tl.store(state_parts + 4 * rows + local, lever)
        tl.store(state_parts + 5 * rows + local, level)
    if best is not None:
        tl.store(state_parts + 6 * rows + local, above)
        tl.store(state_parts + 7 * rows + local, hardest)
        tl.store(state_parts + 8 * rows + local, turn)


@triton.jit(do_not_specialize=["own_strides_h", "first_row", "count"])
def own_gradient(
    x,
    inverse_x,
    own,
    own_strides_n,
    own_strides_h,
    own_strides_d,
    bias,
    scale,
    offset,
    amount,
    even,
    x_grad,
    own_grad,
    first_row,
    count,
    width,
    padded,
    SCALE_IS_TENSOR: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What own negatives add to some rows' gradient (rows, width), and their own (N, H, width),
    finished."""
    local = tl.program_id(0).to(tl.int64)
    row = first_row + local
    at = tl.arange(0, BLOCK)
    inside = at < width
    mine = tl.load(x + row * padded + at, mask=at < padded, other=0.0).to(tl.float32)
    mine *= tl.load(inverse_x + row)
    scale = load_scale(scale, SCALE_IS_TENSOR)
    m = tl.load(offset + row)
    a = tl.load(amount + row)
    total = mine * 0.0
    for h in range(count):
        at_h = at.to(tl.int64) * own_strides_d + row * own_strides_n
        at_h += h * own_strides_h.to(tl.int64)
        other, first, second = unit_row(own + at_h, inside, BLOCK, NORMALIZE)
        s = tl.sum(mine * other, 0)
        logit = s * scale
        if bias is not None:
            logit += tl.load(bias + row * count + h)
        part = tl.exp2(logit * LOG2E - m) * a
        if even is not None:
            part -= tl.load(even + row)
        part = tl.where(logit == -float("inf"), 0.0, part)
        total += part * other
        if own_grad is not None:
            back = mine
            if NORMALIZE:
                back = back - s * other
            back = back * (part * scale) * first * second
            back = tl.where(second == 0, 0.0, back)
            target = own_grad + (row * count + h) * width + at
            tl.store(target, back.to(own_grad.dtype.element_ty), mask=inside)
    if x_grad is not None:
        tl.store(x_grad + local * width + at, total, mask=inside)


@triton.jit(do_not_specialize=["first_row", "rows"])
def weighted_rows(
    x,
    out,
    inverse,
    amount,
    scaling,
    padded,
    first_row,
    rows,
    SCALING_IS_TENSOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of x times inverse * amount * scaling, rounded once: the right factor of the keys'
    product."""
    local = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = local < rows
    row = first_row + local
    at = tl.arange(0, BLOCK)
    within = inside[:, None] & (at < padded)[None, :]
    factor = tl.load(inverse + row, mask=inside, other=0.0)
    factor *= tl.load(amount + row, mask=inside, other=0.0)
    if SCALING_IS_TENSOR:
        scaling = tl.load(scaling)
    factor *= scaling
    value = tl.load(x + row[:, None] * padded + at[None, :], mask=within, other=0.0)
    value = value.to(tl.float32) * factor[:, None]
    target = out + local[:, None] * padded + at[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["first_row", "rows", "width", "positives"])
def finish(
    product,
    product_stride,
    amount,
    undo,
    x,
    inverse,
    rescale,
    y,
    inverse_y,
    partners,
    starts,
    coefficients,
    positives,
    partner_rows,
    extra,
    scale,
    out,
    first_row,
    rows,
    width,
    padded,
    SCALE_IS_TENSOR: tl.constexpr,
    NORMALIZE: tl.constexpr,
    UNDO_IS_TENSOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the library product of some rows to their gradient.

    The product times its factor (`undo` times `amount` of the row, or over its inverse norm where
    the coefficients carried it), plus the positives' share in float32, plus `extra`; then
    tangential to the row, over its norm, rounded once.

    Positives: partners (with starts: entries starts[row] to starts[row + 1]; else `positives`
    entries a row, -1 pads) index y and, at the same place or through `partner_rows`, coefficients.
    Without partners a row's partner is the row of y with its own number, for rows < positives.
    """
    local = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_inside = local < rows
    row = first_row + local
    at = tl.arange(0, BLOCK)
    inside = row_inside[:, None] & (at < width)[None, :]
    r = tl.load(inverse + row, mask=row_inside, other=0.0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    if product is not None:
        if UNDO_IS_TENSOR:
            undo = tl.load(undo)
        if amount is not None:
            factor = undo * tl.load(amount + row, mask=row_inside, other=0.0)
        else:
            factor = tl.where(r == 0, 0.0, undo / tl.where(r == 0, 1.0, r))
        given = product + local[:, None] * product_stride + at[None, :]
        total = tl.load(given, mask=inside, other=0.0) * factor[:, None]
    if coefficients is not None:
        if partners is None:
            paired = row_inside & (row < positives)
            c = tl.load(coefficients + row, mask=paired, other=0.0)
            c *= tl.load(inverse_y + row, mask=paired, other=0.0)
            given = y + row[:, None] * padded + at[None, :]
            other = tl.load(given, mask=inside & paired[:, None], other=0.0)
            total += c[:, None] * other.to(tl.float32)
        else:
            if starts is not None:
                begin = tl.load(starts + row, mask=row_inside, other=0)
                end = tl.load(starts + row + 1, mask=row_inside, other=0)
            else:
                begin = row * positives
                end = begin + positives
            for step in range(tl.max(end - begin, 0)):
                p = begin + step
                here = row_inside & (p < end)
                column = tl.load(partners + p, mask=here, other=-1)
                here = here & (column >= 0)
                at_coefficient = p
                if partner_rows is not None:
                    at_coefficient = tl.load(partner_rows + p, mask=here, other=0)
                c = tl.load(coefficients + at_coefficient, mask=here, other=0.0)
                c *= tl.load(inverse_y + column, mask=here, other=0.0)
                at_row = y + column[:, None] * padded + at[None, :]
                row_of_y = tl.load(at_row, mask=inside & here[:, None], other=0.0)
                total += c[:, None] * row_of_y.to(tl.float32)
    if extra is not None:
        total += tl.load(extra + local[:, None] * width + at[None, :], mask=inside, other=0.0)
    total *= load_scale(scale, SCALE_IS_TENSOR)
    if NORMALIZE:
        p = tl.load(rescale + row, mask=row_inside, other=0.0)
        unit = tl.load(x + row[:, None] * padded + at[None, :], mask=inside, other=0.0)
        unit = unit.to(tl.float32) * r[:, None]
        total -= tl.sum(total * unit, 1)[:, None] * unit
        total = tl.where((p == 0)[:, None], 0.0, total * r[:, None] * p[:, None])
    target = out + local[:, None] * width + at[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)
