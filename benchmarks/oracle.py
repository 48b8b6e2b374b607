"""The exact loss and its gradients in float64, by their formulas, for the error column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

_ROWS = 1024


@dataclass(frozen=True)
class Answer:
    """A loss with its gradients; the gradients are None without a backward."""

    loss: float
    query_grad: Tensor | None = None
    key_grad: Tensor | None = None
    temperature_grad: float | None = None


def solve(case: Case, query: Tensor, key: Tensor) -> Answer:
    """Loss and gradients in float64 of the values that `query` and `key`, (N, D), really hold.

    Works on blocks of rows: O(N) memory besides the gradients.
    """
    raw_query, raw_key = query.detach().double(), key.detach().double()
    if case.normalize:
        query_norm = raw_query.norm(dim=1, keepdim=True)
        key_norm = raw_key.norm(dim=1, keepdim=True)
        unit_query, unit_key = raw_query / query_norm, raw_key / key_norm
    else:
        unit_query, unit_key = raw_query, raw_key

    blocks = [slice(start, min(start + _ROWS, case.n)) for start in range(0, case.n, _ROWS)]
    row_lse = torch.empty(case.n, dtype=torch.float64)
    column_lse = torch.full((case.n,), -torch.inf, dtype=torch.float64)
    for rows in blocks:
        logits = unit_query[rows] @ unit_key.T / case.temperature
        row_lse[rows] = logits.logsumexp(dim=1)
        if case.symmetric:
            column_lse = torch.logaddexp(column_lse, logits.logsumexp(dim=0))
    positive = (unit_query * unit_key).sum(dim=1) / case.temperature
    if case.symmetric:
        loss = ((row_lse + column_lse) / 2 - positive).mean().item()
    else:
        loss = (row_lse - positive).mean().item()
    if not case.backward:
        return Answer(loss)

    query_grad, key_grad = torch.zeros_like(unit_query), torch.zeros_like(unit_key)
    temperature_grad = 0.0
    for rows in blocks:
        logits = unit_query[rows] @ unit_key.T / case.temperature
        weight = torch.exp(logits - row_lse[rows, None])
        if case.symmetric:
            weight = (weight + torch.exp(logits - column_lse)) / 2
        weight.diagonal(offset=rows.start).sub_(1.0)
        weight /= case.n
        temperature_grad -= (weight * logits).sum().item() / case.temperature
        query_grad[rows] = weight @ unit_key / case.temperature
        key_grad += weight.T @ unit_query[rows] / case.temperature
    if case.normalize:
        along_query = (query_grad * unit_query).sum(dim=1, keepdim=True)
        along_key = (key_grad * unit_key).sum(dim=1, keepdim=True)
        query_grad = (query_grad - along_query * unit_query) / query_norm
        key_grad = (key_grad - along_key * unit_key) / key_norm
    return Answer(loss, query_grad, key_grad, temperature_grad)


def relative_errors(case: Case, answer: Answer, exact: Answer) -> dict[str, float]:
    """Error of the loss, and of the gradients: norm of g - exact over norm of exact, worse side."""
    errors = {"loss": abs(answer.loss - exact.loss) / max(abs(exact.loss), 1e-300)}
    if case.backward:
        sides = ((answer.query_grad, exact.query_grad), (answer.key_grad, exact.key_grad))
        errors["gradient"] = max(
            ((mine.double() - truth).norm() / truth.norm()).item()
            for mine, truth in sides
            if mine is not None and truth is not None
        )
        if case.learnable_temperature:
            mine, truth = answer.temperature_grad, exact.temperature_grad
            assert mine is not None
            assert truth is not None
            errors["temperature gradient"] = abs(mine - truth) / max(abs(truth), 1e-300)
    return errors
