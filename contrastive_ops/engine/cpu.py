"""The `cpu` backend: one call into the C++ kernel (``csrc/cpu``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import extension
from .problem import NOTHING, Gradients, Operands, SimilarityProblem, Wanted, two_directions_fused

TAKES_HALF = False
_FORWARD, _BACKWARD, _BOTH, _LOSS = range(4)
_READ = SimilarityProblem._fields.index("precision")
"""The kernel has the fields before this one; its products are float32 or exact."""


def serves(problem: SimilarityProblem, operands: Operands) -> bool:
    if problem.one_set or problem.prefixes or problem.tile_map:
        return False
    return not problem.symmetric or two_directions_fused(problem, operands)


def forward(problem: SimilarityProblem, operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) losses and the log-sum-exps of rows and columns."""
    losses, row, column, *_ = _run(_FORWARD, problem, operands, 1.0)
    return losses, row, column


def stats_shapes(
    problem: SimilarityProblem, operands: Operands
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Log-sum-exp; with smoothing also the kept logits' sum and count."""
    kinds = 3 if problem.label_smoothing else 1
    columns = operands.key.shape[0] if problem.symmetric else 0
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
    problem: SimilarityProblem, operands: Operands, weight: Tensor | float, wanted: Wanted
) -> tuple[Tensor, Gradients]:
    """sum_i weight_i L_i and its gradients."""
    mode = _BOTH if any(wanted) else _LOSS
    out = _run(mode, problem, operands, weight, wanted)
    return out[3], Gradients(*out[4:])


def _run(
    mode: int,
    problem: SimilarityProblem,
    operands: Operands,
    weight: Tensor | float,
    wanted: Wanted = NOTHING,
    row_stats: Tensor | None = None,
    column_stats: Tensor | None = None,
) -> Any:
    kernel, reason = extension.load()
    if kernel is None:
        raise ValueError(f"backend 'cpu' cannot be used here: {reason}")
    tensor_weight = weight if isinstance(weight, Tensor) else None
    return kernel.softmax_ce(
        mode,
        *operands[:5],
        *operands[6:],
        *problem[:11],
        tensor_weight,
        1.0 if tensor_weight is not None else weight,
        wanted[:5],
        row_stats,
        column_stats,
    )
