"""The `triton` backend: Triton tiles for the logits, library products for the gradients.

One direction costs 3G: exponentials are kept, in the inputs' dtype, for as many rows as the
workspace holds, and rescaled once their sums are closed. Two directions cost 4G, less 1G for the
rows whose exponentials can be kept until the columns' sums are closed, too; one set against itself
half of both: only pairs above the diagonal are computed. What was not kept is recomputed as
coefficients, chunk by chunk, each chunk followed by its two products. Sums over pairs (`pairwise`)
need one pass and two products. Nothing here reads a value back from the device, so that all of
it can be captured in a CUDA graph; sums run in a fixed order.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from ..problem import (
    Gradients,
    Operands,
    SimilarityProblem,
    Wanted,
    Weight,
    two_directions_fused,
)
from . import gradients, pairwise, passes
from .prepared import prepare

# float64 never comes here: `backends.choose` hands it to `torch`.
TAKES_HALF = True


def serves(problem: SimilarityProblem, operands: Operands) -> bool:
    if problem.prefixes:
        return False
    if problem.tile_map:
        return not (problem.one_set or problem.symmetric or problem.label_smoothing) and (
            operands.own_negatives is None
        )
    return not problem.symmetric or two_directions_fused(problem, operands)


def forward(
    problem: SimilarityProblem, operands: Operands, summary: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) losses and the statistics (see `passes.STATE_KINDS`) of rows and columns."""
    with torch.no_grad(), _on(operands):
        job = prepare(problem, operands, summary)
        if problem.tile_map:
            none = torch.empty(0, dtype=torch.float64, device=operands.query.device)
            return pairwise.losses(job), none, none.clone()
        row_state, column_state = passes.statistics(job)
        losses = passes.settle(job, row_state, column_state, None, gradients=False).losses
        if column_state is None:
            column_state = row_state.new_empty((passes.STATE_KINDS, 0))
        return losses, row_state, column_state


def stats_shapes(
    problem: SimilarityProblem, operands: Operands
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if problem.tile_map:
        return (0,), (0,)
    columns = operands.key.shape[0] if problem.symmetric else 0
    return (passes.STATE_KINDS, operands.query.shape[0]), (passes.STATE_KINDS, columns)


def backward(
    problem: SimilarityProblem,
    operands: Operands,
    row_stats: Tensor,
    column_stats: Tensor,
    weight: Weight,
    wanted: Wanted,
) -> Gradients:
    with torch.no_grad(), _on(operands):
        job = prepare(problem, operands)
        if problem.tile_map:
            return pairwise.total(job, weight, wanted, False)[1]
        column_state = column_stats if problem.symmetric else None
        _, grads = gradients.from_statistics(job, row_stats, column_state, weight, wanted)
        return grads


def total(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight,
    wanted: Wanted,
    summary: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """sum_i weight_i L_i and its gradients."""
    with torch.no_grad(), _on(operands):
        job = prepare(problem, operands, summary)
        wide = operands.query.dtype == torch.float16
        if problem.tile_map:
            if any(wanted):
                return pairwise.total(job, weight, wanted, wide)
            return (pairwise.losses(job) * weight).sum(), Gradients()
        if not any(wanted):
            settled = passes.settle(job, *passes.statistics(job), weight, gradients=False)
            weighted, grads = settled.weighted, Gradients()
        elif job.two_way or job.one_set or _is_coarse(operands, problem):
            kept: list[passes.Kept] = []
            if job.two_way or job.one_set:
                job, kept = gradients.keeping(job)
            states = passes.statistics(job, kept)
            job = replace(job, summary=None)  # filled: the second pass has its own tiles
            weighted, grads = gradients.from_statistics(
                job, *states, weight, wanted, wide=wide, kept=kept
            )
        else:
            weighted, grads = gradients.one_way(job, weight, wanted)
        assert weighted is not None
        return weighted.sum().to(torch.float32), grads


def _is_coarse(operands: Operands, problem: SimilarityProblem) -> bool:
    """Whether exponentials kept in the rows' dtype, and rows scaled in it, lose more than dense
    does: bfloat16 rows of any length. Their coefficients are computed again (4G), rounded once."""
    return operands.query.dtype == torch.bfloat16 and not problem.normalize


def _on(operands: Operands) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    if operands.query.is_cuda:
        return torch.cuda.device(operands.query.device)
    return contextlib.nullcontext()
