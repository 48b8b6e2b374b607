"""One partition over both directions and both sides' own similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem
from ..engine.reductions import row_lses, score_sum
from .arguments import Number, Reduction, describe, pairs, reduced, row_ids
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes

Direction = Literal["query_to_key", "query_to_query", "key_to_query", "key_to_key"]
DIRECTIONS: tuple[Direction, ...] = (
    "query_to_key",
    "query_to_query",
    "key_to_query",
    "key_to_key",
)


def joint_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: Number | Tensor = 0.01,
    directions: Sequence[Direction] = DIRECTIONS,
    pair_counts: Literal[1, 2] = 2,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""GTE's improved contrastive loss: row, column and both self blocks in one denominator.

    .. math:: Z_i = \sum_j e^{s(q_i,k_j)/T} + \sum_{j \ne i} e^{s(q_i,q_j)/T}
                    + \sum_j e^{s(q_j,k_i)/T} + \sum_{j \ne i} e^{s(k_j,k_i)/T}

    and :math:`L_i = \log Z_i - s(q_i, k_i)/T`. Two row reductions over 2 N candidates each; no
    logits are held.

    Args:
        query, key: (N, D); key i is the positive of query i.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        directions: which of the four sums there are; ``"query_to_key"`` always is.
        pair_counts: how often s(q_i, k_i) is in Z_i where both sums over pairs are: twice as the
            formula is written, or once. (Which of the two the authors ran is not public.)
        matryoshka_dims, matryoshka_weights, normalize, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: unknown directions, or as in :func:`info_nce`.

    Source: Li et al. 2023, "Towards General Text Embeddings with Multi-stage Contrastive Learning"
    (arXiv 2308.03281).
    """
    query, key = pairs(query=query, key=key)
    for direction in directions:
        check.choice("directions", direction, DIRECTIONS)
    if "query_to_key" not in directions:
        raise ValueError(f"directions: got {tuple(directions)!r}, expected 'query_to_key' in them")
    if pair_counts not in (1, 2):
        raise ValueError(f"pair_counts: got {pair_counts!r}, expected 1 or 2")
    ids = row_ids(query.shape[0], query)

    sums = []
    for anchor, other, across, within in (
        (query, key, "query_to_key", "query_to_query"),
        (key, query, "key_to_query", "key_to_key"),
    ):
        blocks = [b for b, name in ((other, across), (anchor, within)) if name in directions]
        if not blocks:
            continue
        problem, operands = describe(
            anchor,
            torch.cat(blocks),
            temperature=temperature,
            normalize=normalize,
            ids=ids,
            key_ids=ids.repeat(len(blocks)),
            workspace_bytes=workspace_bytes,
        )
        problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
        sums.append(row_lses(problem, operands, backend))
    negatives = sums[0] if len(sums) == 1 else _logaddexp(*sums)
    twice = "key_to_query" in directions and pair_counts == 2

    def losses(p: SimilarityProblem, o: Operands, negatives: Tensor) -> Tensor:
        pair = score_sum(p, o)
        own = torch.full_like(pair, 2.0 if twice else 1.0).log()
        return _logaddexp(negatives - pair, own)

    operands = operands._replace(query=query, key=key)
    return reduced(weighted_sum(problem, operands, losses, negatives), reduction)


def _logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """Where both are -inf its gradient is 0, not NaN."""
    nothing = (x == -torch.inf) & (y == -torch.inf)
    sums = torch.logaddexp(x.masked_fill(nothing, 0.0), y)
    return sums.masked_fill(nothing, -torch.inf)
