"""A group of keys for each query, against which stand the other queries' groups."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, scale_of
from ..engine.similarity import full_precision, prepared
from .arguments import Number, describe, matrices, row_ids


def against_others(
    query: Tensor,
    name: str,
    groups: Any,
    *,
    temperature: Number | Tensor,
    normalize: bool,
    workspace_bytes: int | None,
) -> tuple[SimilarityProblem, Operands]:
    """Queries (N, D) and groups (N, P, D): the candidates are the other queries' groups."""
    check.matrix(name, groups, (3,))
    n, width = groups.shape[:2]
    query, keys = matrices(query=query, **{name: groups.reshape(-1, groups.shape[2])})
    if query.shape[0] != n:
        raise ValueError(f"{name}: got {n} groups, expected {query.shape[0]} as in query")
    ids = row_ids(n, query)
    return describe(
        query,
        keys,
        temperature=temperature,
        normalize=normalize,
        ids=ids,
        key_ids=ids.repeat_interleave(width),
        workspace_bytes=workspace_bytes,
    )


def own_logits(problem: SimilarityProblem, operands: Operands) -> Tensor:
    """(N, P) logits of each query with its own group."""
    with full_precision(operands.query.device):
        query, key = (prepared(x, problem, operands.accumulation_dtype) for x in operands[:2])
        own = key.view(query.shape[0], -1, query.shape[1])
        return (query.unsqueeze(1) * own).sum(2) * scale_of(problem, operands)
