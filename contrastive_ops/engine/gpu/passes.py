"""The passes over all pairs: statistics, and the gradient by logit, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from ...kernels import coefficients as coefficients_kernel
from ...kernels import combine, config, rows
from ...kernels import statistics as statistics_kernel
from . import prepared
from .prepared import Block, Job, interpreted

STATE_KINDS = 3
"""log-sum-exp, logits kept, their sum: float64, O(N) numbers each."""
ENTRIES = 128
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


def variants(
    job: Job, block: Block, *, levered: bool, one_offset: bool = False
) -> list[tuple[bool, bool, config.Tile]]:
    """(bounded, check, tile) of the launches that together serve whatever the temperature is.

    Where only the device knows the temperature both variants are launched and one returns at once;
    small problems take the one that always works. ``one_offset``: the bounded one serves anyway.
    """
    bounded = True if one_offset else job.may_be_bounded(block)
    if bounded is None and job.query.count * block.rows.count <= 1 << 20:
        bounded = False
    choices = [True, False] if bounded is None else [bounded]
    return [(b, bounded is None, _tile(job, block, b, levered)) for b in choices]


def _tile(job: Job, block: Block, bounded: bool, levered: bool) -> config.Tile:
    data = job.query.data
    return config.tile_for(
        prepared.architecture(data.device),
        _role(job, block, bounded, levered),
        data.element_size(),
        job.problem.precision,
        interpreted(),
    )


def _role(job: Job, block: Block, bounded: bool, levered: bool) -> str:
    if block.guide is not None:
        return "guided"
    by_pair = block.ids is not None or (block.in_batch and job.index is not None)
    by_value = job.problem.label_smoothing > 0 or (block.in_batch and job.limit is not None)
    if by_pair or by_value or (levered and not bounded):
        return "screened"
    if levered:
        return "levered"
    return "plain" if bounded else "maxima"


def statistics(job: Job) -> tuple[Tensor, Tensor | None]:
    """States (STATE_KINDS, N) of the rows, and (STATE_KINDS, M) of the columns if two-way."""
    n, m = job.query.count, job.key.count
    row_state = empty_state(job, n)
    column_state = empty_state(job, m) if job.two_way else None
    started = False
    for block in job.blocks:
        columns = column_state if block.in_batch else None
        for begin, end in _stripes(job, block, columns is not None):
            measure(job, block, begin, end, row_state, columns, add=started)
        started = True
    if job.operands.own_negatives is not None:
        measure_own(job, row_state, add=started)
        started = True
    if not started:
        row_state[0].fill_(-math.inf)
        row_state[1:].zero_()
    return row_state, column_state


def empty_state(job: Job, count: int) -> Tensor:
    return torch.empty((STATE_KINDS, count), dtype=torch.float64, device=job.query.data.device)


def _stripes(job: Job, block: Block, columns: bool) -> Iterator[tuple[int, int]]:
    """Rows at a time, so that the partials fit the workspace."""
    tiles = [tile for *_, tile in variants(job, block, levered=False)]
    side = max(tile.block_m for tile in tiles)
    m = block.rows.count
    width = min(tile.block_n for tile in tiles)
    a_row = 16 * (triton.cdiv(m, width) + (m / min(tile.block_m for tile in tiles)) * columns)
    step = max(side, int(job.problem.workspace_bytes / a_row) // side * side)
    n = job.query.count
    for begin in range(0, n, step):
        yield begin, min(begin + step, n)


def measure(
    job: Job,
    block: Block,
    begin: int,
    end: int,
    row_state: Tensor,
    column_state: Tensor | None,
    *,
    add: bool,
    kept: Tensor | None = None,
) -> None:
    """Statistics of some rows against a block; with ``kept`` the exponentials themselves, too."""
    smoothing = job.problem.label_smoothing > 0
    planes = 4 if smoothing else 2
    count, m = end - begin, block.rows.count
    runs = variants(job, block, levered=False, one_offset=kept is not None)
    for bounded, check, tile in runs:
        tiles_m, tiles_n = triton.cdiv(count, tile.block_m), triton.cdiv(m, tile.block_n)
        parts = torch.empty((planes, tiles_n, count), dtype=torch.float32, device=row_state.device)
        column_parts = None
        if column_state is not None:
            column_parts = parts.new_empty((planes, tiles_m, m))
        arguments = _tile_arguments(job, block, tile)
        statistics_kernel.statistics[(tiles_m * tiles_n,)](
            **arguments,
            row_parts=parts,
            column_parts=column_parts,
            kept=_target(kept, arguments, tile),
            offset=float(job.offset),
            row_begin=begin,
            row_end=end,
            column_end=m,
            kept_stride=0 if kept is None else kept.stride(0),
            BOUNDED=bounded,
            CHECK=check,
            SMOOTHING=smoothing,
        )
        shared: dict[str, Any] = {
            "offset": float(job.offset),
            "STATIC": bounded,
            "SMOOTHING": smoothing,
            "CHECK": check,
            "RANGE": config.RANGE,
            "log2_count": job.log2_count,
            **job.scaling,
            "BLOCK": ENTRIES,
            "num_warps": CLOSING_WARPS,
        }
        combine.close[(triton.cdiv(count, ENTRIES),)](
            parts, row_state, tiles=tiles_n, begin=begin, count=count, whole=row_state.shape[1],
            RUNNING=add, **shared,
        )  # fmt: skip
        if column_parts is not None:
            combine.close[(triton.cdiv(m, ENTRIES),)](
                column_parts, column_state, tiles=tiles_m, begin=0, count=m, whole=m,
                RUNNING=begin > 0, **shared,
            )  # fmt: skip


def measure_own(
    job: Job, row_state: Tensor, *, add: bool, begin: int = 0, end: int | None = None
) -> None:
    """Statistics of some rows' own negatives."""
    own = job.operands.own_negatives
    assert own is not None
    n, h, width = own.shape
    count = (n if end is None else end) - begin
    parts = torch.empty((4, count), dtype=torch.float32, device=own.device)
    rows.own_logits[(count,)](
        job.query.data,
        job.query.inverse,
        own,
        *own.stride(),
        _own_bias(job),
        state_parts=parts,
        first_row=begin,
        rows=count,
        count=h,
        width=width,
        padded=job.query.padded,
        NORMALIZE=job.problem.normalize,
        BLOCK=triton.next_power_of_2(job.query.padded),
        num_warps=8,
        **job.scaling,
    )
    combine.close[(triton.cdiv(count, ENTRIES),)](
        parts, row_state, offset=0.0, tiles=1, begin=begin, count=count, whole=n, STATIC=False,
        SMOOTHING=job.problem.label_smoothing > 0, RUNNING=add,
        CHECK=False, RANGE=config.RANGE, log2_count=0.0, **job.scaling, BLOCK=ENTRIES,
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
    static: bool = False,
) -> Settled:
    """Losses of rows [begin, end), and with ``gradients`` what those need; ``into`` reuses memory.

    ``static``: all offsets are the static one, as kept exponentials have it.
    """
    n, m = job.query.count, job.key.count
    if isinstance(weight, Tensor):
        weight = weight.contiguous()
    done = into or unsettled(job, weight is not None, gradients)
    end = n if end is None else end
    check = False
    if not static and job.two_way:
        bounded = job.may_be_bounded(job.blocks[0])
        static, check = bounded is not False, bounded is None
    last = max(end, m) if job.two_way and gradients else end
    row, column = done.row or (None,) * 3, done.column or (None,) * 3
    combine.settle[(triton.cdiv(last - begin, ENTRIES),)](
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
        STATIC=static,
        CHECK=check,
        RANGE=config.RANGE,
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
    slope: bool,
) -> Tensor | None:
    """Fills z; returns the tiles' parts of the gradient by 1 / temperature if asked for."""
    assert settled.row is not None
    both = job.two_way and block.in_batch
    column = settled.column if both and settled.column is not None else (None,) * 3
    height, width = row_range[1] - row_range[0], column_range[1] - column_range[0]
    # One way, the offset is the row's, known before: never two exponentials, never a maximum.
    runs = variants(job, block, levered=slope, one_offset=not both)
    parts = None
    if slope:
        most = triton.cdiv(width, min(tile.block_n for *_, tile in runs))
        parts = torch.zeros((most, height), dtype=torch.float32, device=z.device)
    for bounded, check, tile in runs:
        grid = (triton.cdiv(height, tile.block_m) * triton.cdiv(width, tile.block_n),)
        arguments = _tile_arguments(job, block, tile)
        coefficients_kernel.coefficients[grid](
            **arguments,
            reference=job.reference,
            row_offset=settled.row[0],
            row_amount=settled.row[1],
            row_even=settled.row[2],
            column_offset=column[0],
            column_amount=column[1],
            column_even=column[2],
            factor=factor,
            z=_target(z, arguments, tile),
            slope=parts,
            row_begin=row_range[0],
            row_end=row_range[1],
            column_begin=column_range[0],
            column_end=column_range[1],
            z_stride=z.stride(0),
            FACTOR_IS_TENSOR=isinstance(factor, Tensor),
            BOUNDED=bounded,
            CHECK=check,
        )
    return parts


def _tile_arguments(job: Job, block: Block, tile: config.Tile) -> dict[str, Any]:
    """What `statistics` and `coefficients` have in common."""
    problem, operands = job.problem, job.operands
    x, y = job.query.data, block.rows.data
    guided = job.guide is not None and block.guide is not None
    ids = operands.query_ids if block.ids is not None else None
    bulk = tile.bulk or (interpreted() and BULK_IN_THE_INTERPRETER)
    single = x.dtype == torch.float32
    return {
        "x": _descriptor(x, tile.block_m, tile.block_k) if bulk else x,
        "y": _descriptor(y, tile.block_n, tile.block_k) if bulk else y,
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
        "HAS_GROUP": not block.in_batch and problem.group_log_weight != 0,
        "RANGE": config.RANGE,
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


def _target(z: Tensor | None, arguments: dict[str, Any], tile: config.Tile) -> Any:
    """Where tiles are stored: as a descriptor for bulk stores."""
    if z is None or not arguments["BULK"]:
        return z
    return _descriptor(z, tile.block_m, tile.block_n)


def _descriptor(x: Tensor, height: int, depth: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, [height, depth])
