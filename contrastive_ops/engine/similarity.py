"""Row-wise pieces that the plain-PyTorch backends share: unit rows, thresholds, positives."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .problem import SLACK_ULPS, Operands, SimilarityProblem


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` divided by their L2 norm; an exact zero row stays zero, with gradient zero.

    Rows are first divided by their largest entry, so that squares neither overflow nor underflow.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    is_zero = largest == 0
    scaled = x / torch.where(is_zero, torch.ones_like(largest), largest)
    squares = scaled.square().sum(-1, keepdim=True)
    unit = scaled / torch.where(is_zero, torch.ones_like(squares), squares).sqrt()
    return torch.where(is_zero, torch.zeros_like(unit), unit)


def prepared(x: Tensor, problem: SimilarityProblem, dtype: torch.dtype) -> Tensor:
    """The rows whose dot products are the similarities."""
    x = x.to(dtype)
    return unit_rows(x) if problem.normalize else x


def positive_index(operands: Operands) -> Tensor:
    """(N, P) indices into ``key``, -1 pads."""
    if operands.positives is not None:
        return operands.positives
    return torch.arange(operands.query.shape[0], device=operands.query.device).unsqueeze(1)


def at_index(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """(N, P) similarities of each prepared query to the prepared keys at its (N, P) indices."""
    columns = [(query * key[column.clamp(min=0)]).sum(1) for column in index.unbind(1)]
    return torch.stack(columns, 1) if columns else query.new_empty(index.shape)


def threshold_slack(problem: SimilarityProblem, query: Tensor, key: Tensor) -> Tensor | float:
    """How far above its threshold a similarity still counts as equal; per row of ``query``.

    ``query`` and ``key`` are matching prepared rows (key: the positives'), shapes (..., D).
    """
    eps = SLACK_ULPS * torch.finfo(query.dtype).eps
    if problem.normalize:
        return eps
    return eps * torch.linalg.vector_norm(query, dim=-1) * torch.linalg.vector_norm(key, dim=-1)


def any_equal(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """(rows, columns) bool: whether any of the R ids agree. Shapes (R, rows), (R, columns)."""
    return (row_ids.unsqueeze(2) == column_ids.unsqueeze(1)).any(0)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Keeps an ambient autocast from lowering matrix products of float32 logits."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
