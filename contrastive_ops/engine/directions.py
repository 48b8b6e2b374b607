"""A backend's kernels for any problem: both directions in one pass, or as two problems.

Where no kernel serves both directions at once, the direction key -> query is a one-direction
problem of its own (6G instead of 4G), whose anchors are gathered from the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .problem import (
    Gradients,
    Operands,
    SimilarityProblem,
    Wanted,
    Weight,
    reversed_problem,
    two_directions_fused,
)
from .reference import mean_over_positives
from .similarity import positive_index


class Kernels:
    """One backend's ``forward``, ``backward`` and ``total`` (see :class:`.backends.Backend`).

    A ``summary`` is filled by each of the first and the last, from the direction query -> key.
    """

    def __init__(self, name: str, summary: Tensor | None = None) -> None:
        self.backend = backends.module(name)
        self.takes_half = self.backend.TAKES_HALF
        self.asked = {} if summary is None else {"summary": summary}

    def forward(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self._splits(problem, operands):
            return self.backend.forward(problem, operands, **self.asked)
        losses = self.backend.forward(_one_way(problem), operands, **self.asked)[0]
        pairs = self.backend.forward(*reversed_problem(problem, operands))[0]
        mean = (losses + mean_over_positives(pairs, operands)) / 2
        none = torch.empty(0, dtype=torch.float64, device=mean.device)
        return mean, none.clone(), none

    def stats_shapes(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the statistics that :meth:`forward` returns."""
        if self._splits(problem, operands):
            return (0,), (0,)
        return self.backend.stats_shapes(problem, operands)

    def backward(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        row_stats: Tensor,
        column_stats: Tensor,
        weight: Weight,
        wanted: Wanted,
    ) -> Gradients:
        if self._splits(problem, operands):
            return self.total(problem, operands, weight, wanted)[1]
        return self.backend.backward(problem, operands, row_stats, column_stats, weight, wanted)

    def total(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]:
        if not self._splits(problem, operands):
            return self.backend.total(problem, operands, weight, wanted, **self.asked)
        one_way = _one_way(problem)
        loss, first = self.backend.total(one_way, operands, weight / 2, wanted, **self.asked)
        given = positive_index(operands) >= 0
        share = (weight / 2) / given.sum(1).to(loss.dtype)
        pair_weight = (share.unsqueeze(1) * given).reshape(-1)
        turned_wanted = (wanted[1], wanted[0], False, False, wanted[4])
        turned_problem, turned = reversed_problem(problem, operands)
        turned_loss, second = self.backend.total(turned_problem, turned, pair_weight, turned_wanted)
        return loss + turned_loss, _merged(first, second, operands)

    def _splits(self, problem: SimilarityProblem, operands: Operands) -> bool:
        if not problem.symmetric:
            return False
        return not (self.backend.FUSES_TWO_DIRECTIONS and two_directions_fused(problem, operands))


def _one_way(problem: SimilarityProblem) -> SimilarityProblem:
    return problem._replace(symmetric=False)


def _merged(first: Gradients, second: Gradients, operands: Operands) -> Gradients:
    """The sum of both directions' gradients; the second's sit on gathered keys."""
    query, key, temperature = first.query, first.key, first.temperature
    if query is not None and second.key is not None:
        query = query + second.key
    if key is not None and second.query is not None:
        # Many pairs may share a key: sum their gradients wide, round once.
        index = positive_index(operands).clamp(min=0).reshape(-1)
        parts = second.query.to(operands.accumulation_dtype)
        key = key.to(parts.dtype).index_put((index,), parts, accumulate=True).to(key.dtype)
    if temperature is not None and second.temperature is not None:
        temperature = temperature + second.temperature
    return Gradients(query, key, first.negatives, first.own_negatives, temperature)
