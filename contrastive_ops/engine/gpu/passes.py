"""The passes over all pairs: statistics, and the gradient by logit, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import coefficients as coefficients_kernel
from ...kernels import combine, config, rows
from ...kernels import kept as kept_kernel
from ...kernels import statistics as statistics_kernel
from . import prepared
from .prepared import NORM_TARGET, Block, Job, cdiv, interpreted, power_of_two

STATE_KINDS = 5
"""float64, O(N) numbers each; see `kernels.combine.close`."""
PARTS_SHARE = 8
"""Where exponentials are kept, partial sums get one part in this many of the workspace."""
ENTRIES = 128
RESCALED_ROWS = 16
CLOSING_WARPS = 2


@dataclass(frozen=True)
class Settled:
    """What each row (and column) contributes to coefficients; see `kernels.combine.settle`."""

    losses: Tensor
    weighted: Tensor | None = None
    row: tuple[Tensor, Tensor, Tensor | None] | None = None  # offset, amount, even
    column: tuple[Tensor, Tensor, Tensor | None] | None = None
    positive_grad: Tensor | None = None  # (N, P)
    slope: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """Exponentials of some rows, and what they are relative to."""

    begin: int
    end: int
    left: int  # the first column
    values: Tensor  # (end - begin, columns from left on, padded)


def variants(job: Job, block: Block, *, levered: bool) -> list[tuple[bool, bool, config.Tile]]:
    """(bounded, check, tile) of the launches that together serve whatever the temperature is.

    Where only the device knows the temperature both variants are launched and one returns at once.
    """
    bounded = job.bounded
    choices = [True, False] if bounded is None else [bounded]
    return [(b, bounded is None, _tile(job, block, b, levered)) for b in choices]


def _tile(job: Job, block: Block, bounded: bool, levered: bool) -> config.Tile:
    return tile_of(job, block, _role(job, block, bounded, levered))


def tile_of(job: Job, block: Block, plain: str) -> config.Tile:
    """The tile of an epilogue that plays this role where nothing screens pairs."""
    data = job.query.data
    return config.tile_for(
        prepared.architecture(data.device),
        _screened(job, block) or plain,
        data.element_size(),
        job.problem.precision,
        interpreted(),
    )


def _role(job: Job, block: Block, bounded: bool, levered: bool) -> str:
    if levered:
        return "levered" if bounded else "screened"
    return "plain" if bounded else "maxima"


def _screened(job: Job, block: Block) -> str | None:
    limited = block.in_batch and job.limit is not None
    if block.guide is not None:
        return "guided"
    summarized, smoothing = job.summary is not None, job.problem.label_smoothing > 0
    if job.levered and limited + smoothing + summarized > 1:
        return "crowded"
    if job.one_set and summarized:
        return "crowded"
    if job.levered and summarized:
        return "surveyed"
    # Positives by index alone leave room enough, unless a lever wants it.
    by_pair = block.ids is not None or (block.in_batch and job.index is not None and job.levered)
    by_value = smoothing or limited or summarized
    return "screened" if by_pair or by_value else None


def carried(job: Job) -> int:
    """log2 of the norms that coefficients carry the inverse of."""
    return 2 * NORM_TARGET.get(job.query.data.dtype, 0) if job.problem.normalize else 0


def statistics(job: Job, kept: list[Kept] | None = None) -> tuple[Tensor, Tensor | None]:
    """States (STATE_KINDS, N) of the rows, and (STATE_KINDS, M) of the columns if two-way.

    Fills `kept`, whose stripes are the first rows of the in-batch block, and the summary.
    """
    n, m = job.query.count, job.key.count
    row_state = empty_state(job, n)
    column_state = empty_state(job, m) if job.two_way else None
    started = job.one_set
    if started:
        clear(job, row_state)
    for block in job.blocks:
        both = job.one_set or (job.two_way and block.in_batch)
        columns = (row_state if job.one_set else column_state) if both else None
        done = 0
        for part in (kept or []) if block.in_batch else []:
            measure(job, block, part.begin, part.end, row_state, columns, add=started, kept=part)
            done = part.end
        for begin, end in stripes(job, block, columns is not None, done, bool(kept)):
            measure(job, block, begin, end, row_state, columns, add=started)
        started = True
    if job.operands.own_negatives is not None:
        measure_own(job, row_state, add=started)
        started = True
    if not started:
        clear(job, row_state)
    finish_summary(job, row_state)
    return row_state, column_state


def clear(job: Job, row_state: Tensor) -> None:
    """Nothing counted yet."""
    row_state[0].fill_(-math.inf)
    row_state[1:].zero_()
    if job.summary is not None:
        job.summary.zero_()
        job.summary[1].fill_(-math.inf)


def finish_summary(job: Job, row_state: Tensor) -> None:
    """From what `kernels.combine.close` left in the summary to what it is (see `engine.summary`);
    O(N)."""
    if job.summary is None:
        return
    scale = job.scale.double() if isinstance(job.scale, Tensor) else job.scale
    logit = (job.similarity.double() - job.problem.margin) * scale
    if job.index is None:
        given = torch.ones_like(logit, dtype=torch.bool)
    else:
        given = job.index >= 0
    negatives = row_state[0]
    mean = job.reference.double() * scale + job.summary[5] * math.log(2)
    positives = logit.masked_fill(~given, -math.inf).logsumexp(1)
    lse = torch.logaddexp(positives, negatives)
    share = torch.where(given, (logit - lse[:, None]).exp() * (lse[:, None] - logit), 0.0).sum(1)
    rest = torch.where(negatives > -math.inf, (negatives - lse).exp() * (lse - mean), 0.0)
    job.summary[2:4] = row_state[1:3]
    job.summary[4] = torch.where(given, logit, 0.0).sum(1) / given.sum(1)
    job.summary[5] = share + rest


def empty_state(job: Job, count: int) -> Tensor:
    return torch.empty((STATE_KINDS, count), dtype=torch.float64, device=job.query.data.device)


def stripes(
    job: Job, block: Block, columns: bool, done: int, keeps: bool
) -> Iterator[tuple[int, int]]:
    """Rows from `done` on, as many at a time as have their partials in the workspace."""
    tiles = [tile for *_, tile in variants(job, block, levered=job.levered)]
    side = max(max(tile.block_m, tile.block_n) for tile in tiles)
    m = block.rows.count
    width = min(tile.block_n for tile in tiles)
    height = min(tile.block_m for tile in tiles)
    a_row = 4 * _planes(job) * (cdiv(m, width) + (m / height) * columns)
    room = job.problem.workspace_bytes / (PARTS_SHARE if keeps else 1)
    step = max(side, int(room / a_row) // side * side)
    n = job.query.count
    for begin in range(done, n, step):
        yield begin, min(begin + step, n)


def _planes(job: Job) -> int:
    if job.summary is not None:
        return 9
    return 6 if job.levered else 4 if job.problem.label_smoothing > 0 else 2


def measure(
    job: Job,
    block: Block,
    begin: int,
    end: int,
    row_state: Tensor,
    column_state: Tensor | None,
    *,
    add: bool,
    kept: Kept | None = None,
    kept_factor: float = 1.0,
) -> tuple[Tensor | None, int]:
    """Statistics of some rows against a block; with ``kept`` the exponentials themselves, too.

    Returns the maxima that those are relative to (tiles, rows), where there are any, and the width
    of their tiles.
    """
    smoothing = job.problem.label_smoothing > 0
    left = begin if job.one_set else 0
    count, m = end - begin, block.rows.count - left
    tops, width = None, 0
    for bounded, check, tile in variants(job, block, levered=job.levered):
        tiles_m, tiles_n = cdiv(count, tile.block_m), cdiv(m, tile.block_n)
        parts = _parts(job, tiles_n, count)
        column_parts = None if column_state is None else _parts(job, tiles_m, m)
        arguments = tile_arguments(job, block, tile)
        programs = _above(tiles_m, tiles_n, tile) if job.one_set else tiles_m * tiles_n
        statistics_kernel.statistics[(programs,)](
            **arguments,
            reference=job.reference,
            best=job.best,
            row_parts=parts,
            column_parts=column_parts,
            kept=target(None if kept is None else kept.values, arguments, tile),
            kept_factor=kept_factor,
            offset=float(job.offset),
            row_begin=begin,
            row_end=end,
            column_begin=left,
            column_end=left + m,
            kept_stride=0 if kept is None else kept.values.stride(0),
            BOUNDED=bounded,
            CHECK=check,
            SMOOTHING=smoothing,
            LEVER=job.levered,
        )
        shared: dict[str, Any] = {
            "offset": float(job.offset),
            "STATIC": bounded,
            "SMOOTHING": smoothing,
            "LEVER": job.levered,
            "CHECK": check,
            "RANGE": job.range,
            "log2_count": job.log2_count,
            **job.scaling,
            "BLOCK": ENTRIES,
            "num_warps": CLOSING_WARPS,
        }
        combine.close[(cdiv(count, ENTRIES),)](
            parts, row_state, job.summary, tiles=tiles_n, begin=begin, count=count,
            whole=row_state.shape[1], RUNNING=add, **shared,
        )  # fmt: skip
        if column_state is not None:
            combine.close[(cdiv(m, ENTRIES),)](
                column_parts, column_state, job.summary if job.one_set else None, tiles=tiles_m,
                begin=left, count=m, whole=column_state.shape[1],
                RUNNING=begin > 0 or job.one_set, **shared,
            )  # fmt: skip
        if not bounded:
            tops, width = parts[1], tile.block_n
    return tops, width


def _parts(job: Job, tiles: int, count: int) -> Tensor:
    """Of one set against itself, tiles below the diagonal leave theirs as they are here."""
    device = job.query.data.device
    shape = _planes(job), tiles, count
    if not job.one_set:
        return torch.empty(shape, dtype=torch.float32, device=device)
    parts = torch.zeros(shape, dtype=torch.float32, device=device)
    parts[1].fill_(-math.inf)
    parts[7:8].fill_(-math.inf)
    return parts


def _above(tiles_m: int, tiles_n: int, tile: config.Tile) -> int:
    """Programs of `kernels.tile.place_above`."""
    step = tile.group * tile.block_m // tile.block_n
    bands = range(cdiv(tiles_m, tile.group))
    return sum(
        min(tile.group, tiles_m - tile.group * band) * (tiles_n - step * band) for band in bands
    )


def measure_own(
    job: Job, row_state: Tensor, *, add: bool, begin: int = 0, end: int | None = None
) -> None:
    """Statistics of some rows' own negatives."""
    own = job.operands.own_negatives
    assert own is not None
    n, h, width = own.shape
    count = (n if end is None else end) - begin
    parts = torch.empty((max(6, _planes(job)), count), dtype=torch.float32, device=own.device)
    block = power_of_two(job.query.padded)
    rows.own_logits[(count,)](
        job.query.data,
        job.query.inverse,
        own,
        *own.stride(),
        _own_bias(job),
        reference=job.reference,
        best=job.best,
        state_parts=parts,
        first_row=begin,
        rows=count,
        count=h,
        width=width,
        padded=job.query.padded,
        NORMALIZE=job.problem.normalize,
        LEVER=job.levered,
        BLOCK=block,
        num_warps=max(8, prepared.row_warps(block)),
        **job.scaling,
    )
    combine.close[(cdiv(count, ENTRIES),)](
        parts, row_state, job.summary, offset=0.0, tiles=1, begin=begin, count=count, whole=n,
        STATIC=False, SMOOTHING=job.problem.label_smoothing > 0, LEVER=job.levered, RUNNING=add,
        CHECK=False, RANGE=job.range, log2_count=0.0, **job.scaling, BLOCK=ENTRIES,
        num_warps=CLOSING_WARPS,
    )  # fmt: skip


def _own_bias(job: Job) -> Tensor | None:
    bias = job.operands.own_bias
    return None if bias is None else bias.contiguous()


def settle(
    job: Job,
    row_state: Tensor,
    column_state: Tensor | None,
    weight: Tensor | float | None,
    *,
    gradients: bool,
    begin: int = 0,
    end: int | None = None,
    into: Settled | None = None,
) -> Settled:
    """Losses of rows [begin, end), and with ``gradients`` what they need; into given memory."""
    n, m = job.query.count, job.key.count
    if isinstance(weight, Tensor):
        weight = weight.contiguous()
    done = into or unsettled(job, weight is not None, gradients)
    end = n if end is None else end
    # Else coefficients are relative to each row's own offset, which is as good one way.
    static = job.two_way or job.one_set or job.keeps
    check = static and job.bounded is None
    static = static and job.bounded is not False
    last = max(end, m) if job.two_way and gradients else end
    row, column = done.row or (None,) * 3, done.column or (None,) * 3
    combine.settle[(cdiv(last - begin, ENTRIES),)](
        row_state,
        column_state,
        job.similarity,
        job.reference,
        job.index,
        1.0 if weight is None else weight,
        job.scale,
        done.losses,
        done.weighted,
        *row,
        *column,
        done.positive_grad,
        done.slope,
        job.problem.margin,
        job.problem.label_smoothing,
        0.5 if job.two_way else 1.0,
        float(job.offset),
        job.log2_count,
        begin,
        last,
        n,
        m,
        job.positives,
        SCALE_IS_TENSOR=isinstance(job.scale, Tensor),
        WEIGHT_IS_TENSOR=isinstance(weight, Tensor),
        SMOOTHING=job.problem.label_smoothing > 0,
        LEVER=job.levered,
        STATIC=static,
        CHECK=check,
        RANGE=job.range,
        BLOCK=ENTRIES,
    )
    return done


def unsettled(job: Job, weighted: bool, gradients: bool) -> Settled:
    n, m = job.query.count, job.key.count
    losses = job.reference.new_empty(n)
    done = Settled(losses, losses.new_empty(n, dtype=torch.float64) if weighted else None)
    if not gradients:
        return done

    def side(count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        even = losses.new_empty(count) if job.problem.label_smoothing else None
        return losses.new_empty(count), losses.new_empty(count), even

    return replace(
        done,
        row=side(n),
        column=side(m) if job.two_way else None,
        positive_grad=torch.empty_like(job.similarity),
        slope=losses.new_empty(n, dtype=torch.float64),
    )


def write_coefficients(
    job: Job,
    block: Block,
    settled: Settled,
    row_range: tuple[int, int],
    column_range: tuple[int, int],
    z: Tensor,
    factor: Tensor | float,
    *,
    only_unbounded: bool = False,
) -> None:
    """Fills z. ``only_unbounded``: where the device says so, else `rescale` has filled it."""
    assert settled.row is not None
    column = column_side(job, block, settled)
    height, width = row_range[1] - row_range[0], column_range[1] - column_range[0]
    # One way, the offset is the row's, known before: never two exponentials, never a maximum.
    runs = variants(job, block, levered=False)
    if column[0] is None:
        runs = [(True, False, _tile(job, block, True, False))]
    for bounded, check, tile in runs:
        if only_unbounded and bounded:
            continue
        grid = (cdiv(height, tile.block_m) * cdiv(width, tile.block_n),)
        arguments = tile_arguments(job, block, tile)
        coefficients_kernel.coefficients[grid](
            **arguments,
            row_offset=settled.row[0],
            row_amount=settled.row[1],
            row_even=settled.row[2],
            column_offset=column[0],
            column_amount=column[1],
            column_even=column[2],
            factor=factor,
            z=target(z, arguments, tile),
            row_begin=row_range[0],
            row_end=row_range[1],
            column_begin=column_range[0],
            column_end=column_range[1],
            z_stride=z.stride(0),
            FACTOR_IS_TENSOR=isinstance(factor, Tensor),
            BOUNDED=bounded,
            CHECK=check,
        )


def column_side(
    job: Job, block: Block, settled: Settled
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Offsets, amounts and smoothing of a block's columns, where they are anchors, too."""
    side = settled.row if job.one_set else settled.column if block.in_batch else None
    return (None, None, None) if side is None else side


def rescale(
    job: Job,
    block: Block,
    settled: Settled,
    kept: Kept,
    tops: Tensor | None,
    tile_width: int,
    factor: float = 1.0,
) -> None:
    """Turns kept exponentials into what the products take; see `kernels.kept.rescale`."""
    assert settled.row is not None
    column = column_side(job, block, settled)
    both = column[0] is not None
    even = settled.row[2]
    rows_here, columns = kept.end - kept.begin, block.rows.count - kept.left
    for bounded in [True, False] if job.bounded is None else [job.bounded]:
        if (both and not bounded) or (not both and bounded and even is None):
            continue
        width = min(128, 128 if bounded else tile_width)
        grid = (cdiv(rows_here, RESCALED_ROWS) * cdiv(columns, width),)
        kept_kernel.rescale[grid](
            kept.values,
            kept.values.stride(0),
            None if bounded else tops,
            job.query.inverse,
            block.rows.inverse,
            job.scale,
            settled.row[0],
            settled.row[1],
            even,
            column[1],
            column[2],
            factor,
            job.log2_count,
            kept.begin,
            kept.left,
            rows_here,
            columns,
            SCALE_IS_TENSOR=isinstance(job.scale, Tensor),
            TWO_WAY=both,
            BOUNDED=bounded,
            CHECK=job.bounded is None,
            RANGE=job.range,
            TILE_N=max(tile_width, width),
            BLOCK_M=RESCALED_ROWS,
            BLOCK_N=width,
        )


def tile_arguments(job: Job, block: Block, tile: config.Tile) -> dict[str, Any]:
    """What `statistics` and `coefficients` have in common."""
    problem, operands = job.problem, job.operands
    x, y = job.query.data, block.rows.data
    guided = job.guide is not None and block.guide is not None
    ids = operands.query_ids if block.ids is not None else None
    bulk = tile.bulk or (interpreted() and BULK_IN_THE_INTERPRETER)
    single = x.dtype == torch.float32
    return {
        "x": descriptor(x, tile.block_m, tile.block_k) if bulk else x,
        "y": descriptor(y, tile.block_n, tile.block_k) if bulk else y,
        "inverse_x": job.query.inverse,
        "inverse_y": block.rows.inverse,
        **job.scaling,
        "index": job.index if block.in_batch else None,
        "row_ids": None if ids is None else ids.contiguous(),
        "column_ids": block.ids,
        "guide_x": job.guide if guided else None,
        "guide_y": block.guide if guided else None,
        "guide_threshold": operands.guide_threshold if guided else None,
        "bias": block.bias,
        "limit": job.limit if block.in_batch else None,
        "log2_count": job.log2_count,
        "group_log_weight": problem.group_log_weight,
        "row_count": job.query.count,
        "column_count": block.rows.count,
        "positives": job.positives,
        "ids": 0 if ids is None else ids.shape[0],
        "group": max(problem.group, 1),
        "depth": job.query.padded,
        "guide_depth": job.guide.shape[1] if guided and job.guide is not None else 0,
        "DIAGONAL": block.in_batch and job.index is None and job.positives > 0,
        "TRIANGLE": job.one_set,
        "HAS_GROUP": not block.in_batch and problem.group_log_weight != 0,
        "UNIT": problem.normalize,
        "RANGE": job.range,
        "PRECISION": _precision(problem.precision if single else "ieee", x.device),
        "GUIDE_PRECISION": _precision(problem.precision if single else "tf32x3", x.device),
        "BULK": bulk,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP": tile.group,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision(name: str, device: torch.device) -> str:
    if interpreted():
        return "interpreted"
    # AMD's matrix cores multiply float32 as it is, faster than three products of its parts.
    amd = prepared.architecture(device).name.startswith("gfx")
    return "ieee" if name == "tf32x3" and amd else name


BULK_IN_THE_INTERPRETER = False
"""Tests set it to run the kernels' loads through tensor descriptors."""


def target(z: Tensor | None, arguments: dict[str, Any], tile: config.Tile) -> Any:
    """Where tiles are stored: as a descriptor for bulk stores."""
    if z is None or not arguments["BULK"]:
        return z
    return descriptor(z, tile.block_m, tile.block_n)


def descriptor(x: Tensor, height: int, depth: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, [height, depth])
