"""A backend's kernels for any problem: as it stands where they serve it, else in parts.

Where no kernel serves both directions at once, the direction key -> query is a one-direction
problem of its own (6G instead of 4G), whose anchors are gathered from the keys. One set against
itself becomes two equal sets (3G instead of 2G); prefixes go one after another, unless there is a
kernel for them once the rest is split. What then is left unserved goes to the `torch` backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import backends, chunked
from .problem import (
    Gradients,
    NotServedError,
    Operands,
    SimilarityProblem,
    Wanted,
    Weight,
    each_prefix,
    of_prefixes,
    reversed_problem,
    two_sets,
)
from .reference import mean_over_positives
from .similarity import positive_index

Found = TypeVar("Found")


class Kernels:
    """One backend's ``forward``, ``backward`` and ``total`` (see :class:`.backends.Backend`).

    A ``summary`` (see `.summary`) is filled by the first scan: that of queries and keys, whole.
    """

    def __init__(self, name: str, summary: Tensor | None = None) -> None:
        self.backend = backends.module(name)
        self.takes_half = self.backend.TAKES_HALF
        self.summary = summary

    def _scan(self, run: Callable[..., Found], *problem: Any) -> Found:
        if self.summary is None:
            return run(*problem)
        found = run(*problem, summary=self.summary)
        self.summary = None
        return found

    def forward(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) losses, and statistics; those of a problem in parts are not read again."""
        if self.backend.serves(problem, operands):
            with contextlib.suppress(NotServedError):
                return self._scan(self.backend.forward, problem, operands)
        row, column = self.stats_shapes(problem, operands)
        none = torch.empty(row, dtype=torch.float64, device=operands.query.device)
        return self._losses(problem, operands), none, none.new_empty(column)

    def stats_shapes(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the statistics that :meth:`forward` returns."""
        if self.backend.serves(problem, operands):
            return self.backend.stats_shapes(problem, operands)
        return (0,), (0,)

    def backward(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        row_stats: Tensor,
        column_stats: Tensor,
        weight: Weight,
        wanted: Wanted,
    ) -> Gradients:
        if self.backend.serves(problem, operands):
            with contextlib.suppress(NotServedError):
                return self.backend.backward(
                    problem, operands, row_stats, column_stats, weight, wanted
                )
        return self.total(problem, operands, weight, wanted)[1]

    def total(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]:
        if self.backend.serves(problem, operands):
            with contextlib.suppress(NotServedError):
                return self._scan(self.backend.total, problem, operands, weight, wanted)
            return self._total_of_prefixes(problem, operands, weight, wanted)
        if self._by_prefix(problem, operands):
            return self._total_of_prefixes(problem, operands, weight, wanted)
        if problem.symmetric:
            return self._total_of_directions(problem, operands, weight, wanted)
        if problem.one_set:
            both = (wanted[0], wanted[0], *wanted[2:])
            loss, found = self.total(*two_sets(problem, operands), weight, both)
            return loss, found._replace(query=_sum(found.query, found.key), key=None)
        return self._scan(chunked.total, problem, operands, weight, wanted)

    def _losses(self, problem: SimilarityProblem, operands: Operands) -> Tensor:
        if self.backend.serves(problem, operands):
            with contextlib.suppress(NotServedError):
                return self._scan(self.backend.forward, problem, operands)[0]
            return self._losses_of_prefixes(problem, operands)
        if self._by_prefix(problem, operands):
            return self._losses_of_prefixes(problem, operands)
        if problem.symmetric:
            losses = self._losses(problem._replace(symmetric=False), operands)
            pairs = self._losses(*reversed_problem(problem, operands))
            return (losses + mean_over_positives(pairs, operands)) / 2
        if problem.one_set:
            return self._losses(*two_sets(problem, operands))
        return self._scan(chunked.forward, problem, operands)[0]

    def _losses_of_prefixes(self, problem: SimilarityProblem, operands: Operands) -> Tensor:
        parts = [w * self._losses(p, o) for _, w, p, o in each_prefix(problem, operands)]
        return of_prefixes(problem, parts)

    def _by_prefix(self, problem: SimilarityProblem, operands: Operands) -> bool:
        if not problem.prefixes:
            return False
        if problem.one_set:
            problem, operands = two_sets(problem, operands)
        return not self.backend.serves(problem._replace(symmetric=False), operands)

    def _total_of_prefixes(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]:
        dtype = operands.accumulation_dtype
        loss = torch.zeros((), dtype=dtype, device=operands.query.device)
        sums = [
            torch.zeros(t.shape, dtype=dtype if t.dim() else t.dtype, device=t.device)
            if t is not None and want
            else None
            for t, want in zip(operands, wanted, strict=False)
        ]
        for level, (dim, w, part, rows) in enumerate(each_prefix(problem, operands), 1):
            share = weight * w
            if not problem.prefix_weights:
                assert isinstance(weight, Tensor)
                share = weight[-level]
            part_loss, found = self.total(part, rows, share, wanted)
            loss = loss + part_loss
            for total, grad in zip(sums, found, strict=True):
                if total is not None and grad is not None:
                    (total[..., :dim] if total.dim() else total).add_(grad)
        half = operands.query.dtype == torch.float16  # such gradients stay wide until scaled
        narrow = dtype if half else operands.query.dtype
        return loss, Gradients(*[g.to(narrow) if g is not None and g.dim() else g for g in sums])

    def _total_of_directions(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]:
        one_way = problem._replace(symmetric=False)
        loss, first = self.total(one_way, operands, weight / 2, wanted)
        given = positive_index(operands) >= 0
        share = (weight / 2) / given.sum(1).to(loss.dtype)
        pair_weight = (share.unsqueeze(1) * given).reshape(-1)
        turned_wanted = (wanted[1], wanted[0], False, False, wanted[4], wanted[5])
        turned_problem, turned = reversed_problem(problem, operands)
        turned_loss, second = self.total(turned_problem, turned, pair_weight, turned_wanted)
        return loss + turned_loss, _merged(first, second, operands)


def _merged(first: Gradients, second: Gradients, operands: Operands) -> Gradients:
    """The sum of both directions' gradients; the second's sit on gathered keys."""
    key = first.key
    if key is not None and second.query is not None:
        # Many pairs may share a key: sum their gradients wide, round once.
        index = positive_index(operands).clamp(min=0).reshape(-1)
        parts = second.query.to(operands.accumulation_dtype)
        key = key.to(parts.dtype).index_put((index,), parts, accumulate=True).to(key.dtype)
    return first._replace(
        query=_sum(first.query, second.key),
        key=key,
        temperature=_sum(first.temperature, second.temperature),
        bias=_sum(first.bias, second.bias),
    )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
