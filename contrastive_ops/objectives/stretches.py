r"""Rows whose products, summed stretch by stretch, are the similarities of all their prefixes.

With :math:`u_l` the unit rows of prefix l and its stretch what it has beyond prefix l - 1:

.. math:: s_l[i, j] = a_l[i]\, a_l[j]\, s_{l-1}[i, j] + \langle u_l[i], u_l[j] \rangle_{stretch}

where :math:`a_l` is how long the first entries of :math:`u_l` are, those of prefix l - 1. So every
entry is multiplied once, and nothing over- or underflows however short a prefix is beside its row.
For dot products a is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.problem import SimilarityProblem
from ..engine.similarity import unit_rows


class Stretches(NamedTuple):
    """Rows of all prefixes, as stripes of rows are handed them."""

    rows: Tensor  # (N, D): each stretch of its prefix' unit rows
    carry: Tensor | None  # (N, L): a; None for dot products, and where there is one prefix


def stretches(x: Tensor, problem: SimilarityProblem, dtype: torch.dtype) -> Stretches:
    """The rows of ``x``, whose last prefix is whole, differentiable."""
    x = x.to(dtype)
    if not problem.normalize:
        return Stretches(x, None)
    if len(problem.prefixes) < 2:
        return Stretches(unit_rows(x), None)
    parts, lengths = [], []
    for begin, end in pairwise((0, *problem.prefixes)):
        unit = unit_rows(x[:, :end])
        parts.append(unit[:, begin:])
        lengths.append(torch.linalg.vector_norm(unit[:, :begin], dim=1))
    return Stretches(torch.cat(parts, 1), torch.stack(lengths, 1))


def each_similarity(
    x: Stretches, y: Stretches, ends: str, weights: str
) -> Iterator[tuple[float, Tensor]]:
    """The weight of every prefix and its (R, C) similarities, the shortest first.

    Args:
        x, y: R and C rows.
        ends, weights: of :func:`as_options`.
    """
    whole: Tensor | None = None
    begin = 0
    for level, (end, weight) in enumerate(zip(ends.split(), weights.split(), strict=True)):
        stretch = slice(begin, int(end))
        product = x.rows[:, stretch] @ y.rows[:, stretch].T
        if whole is not None:
            if x.carry is not None and y.carry is not None:
                whole = whole * x.carry[:, level, None] * y.carry[:, level]
            product = whole + product
        whole, begin = product, stretch.stop
        yield float(weight), whole


def as_options(problem: SimilarityProblem, width: int) -> dict[str, str]:
    """Where the prefixes end and what they weigh, for a row loss; or whole rows of this width."""
    ends, weights = problem.prefixes or (width,), problem.prefix_weights or (1.0,)
    return {"ends": " ".join(map(str, ends)), "weights": " ".join(map(repr, weights))}
