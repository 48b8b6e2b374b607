"""A rank's part of the loss: its own rows, as one-direction problems.

``query``, own negatives and thresholds belong to rows and stay with them; ``key``, ``negatives``
and what is said of them belong to candidates, which every rank's rows have to see. How they come
there is the strategy's affair.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..engine.problem import Operands, SimilarityProblem, reversed_problem
from ..engine.reference import mean_over_positives
from ..engine.similarity import positive_index
from .collectives import Spread


class Layout(NamedTuple):
    """How the candidates of a one-direction problem are spread over the ranks."""

    keys: Spread
    negatives: Spread


class Strategy(Protocol):
    def __call__(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        layout: Layout,
        weight: Tensor | None,
        backend: str | None,
        summary: Tensor | None = None,
    ) -> Tensor:
        """Losses (n,) of this rank's rows among all ranks' candidates, or their weighted sum.

        ``operands`` are this rank's, and so are the key numbers in ``positives``; ``weight`` and
        ``summary`` as in :func:`..engine.softmax_ce.softmax_ce`.
        """


def rank_loss(
    strategy: Strategy,
    problem: SimilarityProblem,
    operands: Operands,
    queries: Spread,
    layout: Layout,
    weight: Tensor | None,
    backend: str | None,
    summary: Tensor | None,
) -> Tensor:
    """Losses (n,) of this rank's queries, the mean of both directions if symmetric; or their
    weighted sum."""
    one_way = problem._replace(symmetric=False)
    if not problem.symmetric:
        return strategy(one_way, operands, layout, weight, backend, summary)
    pairs, turned = _turned(problem, operands, layout.keys)
    back = Layout(queries, layout.negatives)
    if weight is None:
        there = strategy(one_way, operands, layout, None, backend, summary)
        again = strategy(pairs, turned, back, None, backend)
        return (there + mean_over_positives(again, operands)) / 2
    given = positive_index(operands) >= 0
    pair_weight = (weight / 2 / given.sum(1)).unsqueeze(1) * given
    there = strategy(one_way, operands, layout, weight / 2, backend, summary)
    return there + strategy(pairs, turned, back, pair_weight.reshape(-1), backend)


def _turned(
    problem: SimilarityProblem, operands: Operands, keys: Spread
) -> tuple[SimilarityProblem, Operands]:
    """This rank's positive keys as rows, its queries as candidates; their first ids are key
    numbers, a rank's own, which become those of all ranks."""
    pairs, turned = reversed_problem(problem, operands)
    assert turned.query_ids is not None
    assert turned.key_ids is not None
    width = positive_index(operands).shape[1]
    return pairs, turned._replace(
        query_ids=_numbered(turned.query_ids, width, keys.first),
        key_ids=_numbered(turned.key_ids, width, keys.first),
    )


def _numbered(ids: Tensor, width: int, first: int) -> Tensor:
    numbers = ids[:width]
    return torch.cat([torch.where(numbers < 0, numbers, numbers + first), ids[width:]])
