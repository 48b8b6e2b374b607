"""The `cpu` backend: one call into the C++ kernel (``csrc/cpu``)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import extension
from .problem import (
    NOTHING,
    Gradients,
    NotServedError,
    Operands,
    SimilarityProblem,
    Wanted,
    two_directions_fused,
)

TAKES_HALF = False
_FORWARD, _BACKWARD, _BOTH, _LOSS = range(4)
_MOST_PREFIXES = 128
_READ = SimilarityProblem._fields.index("precision")
"""The kernel has the fields before this one; its products are float32 or exact."""


def serves(problem: SimilarityProblem, operands: Operands) -> bool:
    if problem.prefixes and not _in_one_pass(problem):
        return False
    if problem.one_set:
        return not (problem.tile_map or problem.symmetric)
    if problem.tile_map:
        plain = not (problem.symmetric or problem.label_smoothing)
        return plain and operands.own_negatives is None
    return not problem.symmetric or two_directions_fused(problem, operands)


def _in_one_pass(problem: SimilarityProblem) -> bool:
    """Whether prefixes take one pass over the rows. Where columns have losses, too, they cannot
    leave out other candidates than rows do, nor stay apart."""
    columns = problem.symmetric or problem.one_set
    return (
        1 < len(problem.prefixes) <= _MOST_PREFIXES
        and not problem.tile_map
        and not (columns and problem.false_negative_margin < math.inf)
        and not (problem.symmetric and not problem.prefix_weights)
    )


def forward(
    problem: SimilarityProblem, operands: Operands, summary: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) losses and the log-sum-exps of rows and columns."""
    losses, row, column, *_ = _run(_FORWARD, problem, operands, 1.0, summary=summary)
    return losses, row, column


def stats_shapes(
    problem: SimilarityProblem, operands: Operands
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Log-sum-exp, with smoothing also the kept logits' sum and count; or the sums of softplus
    and sigmoid."""
    kinds = 3 if problem.label_smoothing else 2 if problem.tile_map else 1
    columns = operands.key.shape[0] if problem.symmetric else 0
    kinds *= max(1, len(problem.prefixes))
    return (kinds, operands.query.shape[0]), (kinds, columns)


def backward(
    problem: SimilarityProblem,
    operands: Operands,
    row_stats: Tensor,
    column_stats: Tensor,
    weight: Tensor | float,
    wanted: Wanted,
) -> Gradients:
    out = _run(_BACKWARD, problem, operands, weight, wanted, row_stats, column_stats)
    return Gradients(*out[4:])


def total(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Tensor | float,
    wanted: Wanted,
    summary: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """sum_i weight_i L_i and its gradients."""
    mode = _BOTH if any(wanted) else _LOSS
    out = _run(mode, problem, operands, weight, wanted, summary=summary)
    return out[3], Gradients(*out[4:])


def _run(
    mode: int,
    problem: SimilarityProblem,
    operands: Operands,
    weight: Tensor | float,
    wanted: Wanted = NOTHING,
    row_stats: Tensor | None = None,
    column_stats: Tensor | None = None,
    summary: Tensor | None = None,
) -> Any:
    kernel, reason = extension.load()
    if kernel is None:
        raise ValueError(f"backend 'cpu' cannot be used here: {reason}")
    columns = None
    if operands.query.dtype == torch.bfloat16 and any(dim % 2 for dim in problem.prefixes[:-1]):
        problem, operands, columns = _of_even_prefixes(problem, operands)
    tensor_weight = weight if isinstance(weight, Tensor) else None
    out = kernel.softmax_ce(
        mode,
        *operands,
        *problem[:_READ],
        tensor_weight,
        1.0 if tensor_weight is not None else weight,
        wanted,
        row_stats,
        column_stats,
        summary,
    )
    if problem.prefixes and all(x is None for x in out):
        raise NotServedError
    if columns is not None:
        out[4:8] = [None if grad is None else grad.index_select(-1, columns) for grad in out[4:8]]
    return out


def _of_even_prefixes(
    problem: SimilarityProblem, operands: Operands
) -> tuple[SimilarityProblem, Operands, Tensor]:
    """The kernel multiplies bfloat16 in pairs: a zero after each prefix that ends within one.

    And where each column has gone.
    """
    place: list[int] = []
    dims: list[int] = []
    for begin, end in pairwise((0, *problem.prefixes)):
        width = dims[-1] if dims else 0
        place += range(width, width + end - begin)
        dims.append(width + (end - begin + 1) // 2 * 2)
    columns = torch.tensor(place)
    rows = [
        None if x is None else x.new_zeros(*x.shape[:-1], dims[-1]).index_copy_(-1, columns, x)
        for x in operands[:4]
    ]
    return problem._replace(prefixes=tuple(dims)), Operands(*rows, *operands[4:]), columns  # type: ignore[arg-type, call-arg]
