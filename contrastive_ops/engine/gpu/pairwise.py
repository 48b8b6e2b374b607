"""Losses that are a sum over pairs, and their gradients, at 3G: one pass and two products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import pairwise as pairwise_kernel
from ..problem import Gradients, Wanted, Weight, bias_of
from . import passes
from .gradients import Chunks, Outputs, scaling_of
from .prepared import Block, Job, cdiv


def losses(job: Job) -> Tensor:
    """(N,) losses."""
    sums = _empty_sums(job)
    for block in job.blocks:
        for begin, end in passes.stripes(job, block, False, 0, False):
            sums[:, begin:end] += _pass(job, block, (begin, end), (0, block.rows.count), None)
    value, _, _ = _positives(job)
    return (sums[0] + value.sum(1)).to(torch.float32)


def total(job: Job, weight: Weight, wanted: Wanted, wide: bool) -> tuple[Tensor, Gradients]:
    """sum_i weight_i L_i and its gradients."""
    if isinstance(weight, Tensor):
        weight = weight.to(torch.float32).contiguous()
    factor, undo = scaling_of(job, weight, passes.carried(job))
    value, slope, given = _positives(job)
    each = weight.unsqueeze(1).double() if isinstance(weight, Tensor) else weight
    slope = torch.where(given, slope * each, 0.0)
    positive_grad = slope.to(torch.float32).contiguous()
    settled = passes.Settled(job.reference, positive_grad=positive_grad)
    out = Outputs(job, settled, wanted, wide)
    sums = _empty_sums(job)
    chunks = Chunks(job)
    for rows_here in chunks.rows():
        product = out.query_rows(*rows_here)
        fresh = True
        for block, columns, z in chunks.of(rows_here):
            sums[:, slice(*rows_here)] += _pass(job, block, rows_here, columns, z, weight, factor)
            out.take(block, z, rows_here, columns, product, fresh)
            fresh = False
        out.finish_query(None if fresh else product, rows_here, None, None, undo)
    out.finish_candidates(undo)
    grads = out.gradients()
    rows_weight = weight.double() if isinstance(weight, Tensor) else weight
    loss = ((sums[0] + value.sum(1)) * rows_weight).sum()
    operands = job.operands
    if wanted[4] and operands.temperature is not None:
        similarity = job.similarity.double() - job.problem.margin
        by_scale = (sums[2] * rows_weight).sum() + torch.where(given, slope * similarity, 0.0).sum()
        grads = grads._replace(
            temperature=(-by_scale * job.scale**2).to(operands.temperature.dtype)
        )
    if wanted[5] and operands.bias is not None:
        by_shift = (sums[1] * rows_weight).sum() + slope.sum()
        grads = grads._replace(bias=by_shift.to(operands.bias.dtype))
    return loss.to(torch.float32), grads


def _positives(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """(N, P) float64: softplus(-l) of the positives, its derivative by l, and which are there."""
    shift = bias_of(job.problem, job.operands)
    logit = (job.similarity.double() - job.problem.margin) * job.scale + shift
    if job.index is not None:
        given = job.index >= 0
    else:
        given = torch.full_like(logit, job.positives > 0, dtype=torch.bool)
    value = torch.where(given, F.softplus(-logit), 0.0)
    return value, torch.where(given, -torch.sigmoid(-logit), 0.0), given


def _empty_sums(job: Job) -> Tensor:
    shape = 3, job.query.count
    return torch.zeros(shape, dtype=torch.float64, device=job.query.data.device)


def _pass(
    job: Job,
    block: Block,
    rows_here: tuple[int, int],
    columns: tuple[int, int],
    z: Tensor | None,
    weight: Weight = 1.0,
    factor: Tensor | float = 1.0,
) -> Tensor:
    """(3, rows) sums, and z."""
    tile = passes.tile_of(job, block, "screened")
    height, width = rows_here[1] - rows_here[0], columns[1] - columns[0]
    tiles_m, tiles_n = cdiv(height, tile.block_m), cdiv(width, tile.block_n)
    parts = torch.empty((3, tiles_n, height), dtype=torch.float32, device=job.query.data.device)
    arguments = passes.tile_arguments(job, block, tile)
    for name in ("log2_count", "RANGE"):
        del arguments[name]
    shift = bias_of(job.problem, job.operands)
    pairwise_kernel.pairwise[(tiles_m * tiles_n,)](
        **arguments,
        shift=shift,
        SHIFT_IS_TENSOR=isinstance(shift, Tensor),
        weight=weight,
        WEIGHT_IS_TENSOR=isinstance(weight, Tensor),
        factor=factor,
        FACTOR_IS_TENSOR=isinstance(factor, Tensor),
        parts=parts,
        z=passes.target(z, arguments, tile),
        row_begin=rows_here[0],
        row_end=rows_here[1],
        column_begin=columns[0],
        column_end=columns[1],
        z_stride=0 if z is None else z.stride(0),
    )
    return parts.sum(1, dtype=torch.float64)
