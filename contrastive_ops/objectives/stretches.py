r"""Rows whose products, summed stretch by stretch, are the similarities of all their prefixes.

With stretch l what prefix l has beyond prefix l - 1, and :math:`n_l` the norm of prefix l:

.. math:: t_l[i, j] = t_{l-1}[i, j] + \langle x_i, x_j \rangle_{stretch} \qquad
          s_l[i, j] = t_l[i, j] / (n_l[i]\, n_l[j])

so every entry is multiplied once. Rows are scaled halfway between their shortest prefix and the
whole, that neither over- or underflows. For dot products n is 1.
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

    rows: Tensor  # (N, D)
    inverse: Tensor | None  # (N, L): 1 / n, 0 for 0; None for dot products, and of one prefix


def stretches(x: Tensor, problem: SimilarityProblem, dtype: torch.dtype) -> Stretches:
    """The rows of ``x``, whose last prefix is whole, differentiable."""
    x = x.to(dtype)
    if not problem.normalize:
        return Stretches(x, None)
    if len(problem.prefixes) < 2:
        return Stretches(unit_rows(x), None)
    # No similarity depends on the scale, so it is not differentiated.
    largest = [x[:, :end].detach().abs().amax(1) for end in problem.prefixes]
    whole = largest[-1]
    shortest = torch.stack([torch.where(m > 0, m, whole) for m in largest]).amin(0)
    scale = torch.where(whole > 0, shortest.sqrt() * whole.sqrt(), 1.0)
    x = x / scale.unsqueeze(1)
    parts = x.tensor_split(problem.prefixes[:-1], 1)
    squares = torch.stack([part.square().sum(1) for part in parts], 1).cumsum(1)
    nothing = squares == 0  # a norm has no second derivative there
    norms = squares.masked_fill(nothing, 1.0).sqrt()
    inverse = torch.where(nothing, 0.0, norms.reciprocal())
    return Stretches(x, inverse)


def each_similarity(
    x: Stretches, y: Stretches, ends: str, weights: str
) -> Iterator[tuple[float, Tensor]]:
    """The weight of every prefix and its (R, C) similarities, the shortest first.

    Args:
        x, y: R and C rows.
        ends, weights: of :func:`as_options`.
    """
    stops = [int(end) for end in ends.split()]
    sizes = [end - begin for begin, end in pairwise((0, *stops))]
    sums: Tensor | None = None
    # Split at once: each slice's gradient alone would be as large as the rows.
    parts = zip(x.rows.split(sizes, 1), y.rows.split(sizes, 1), weights.split(), strict=True)
    for level, (rows, columns, weight) in enumerate(parts):
        product = rows @ columns.T
        sums = product if sums is None else sums + product
        similarity = sums
        if x.inverse is not None and y.inverse is not None:
            similarity = sums * x.inverse[:, level, None] * y.inverse[:, level]
        yield float(weight), similarity


def as_options(problem: SimilarityProblem, width: int) -> dict[str, str]:
    """Where the prefixes end and what they weigh, for a row loss; or whole rows of this width."""
    ends, weights = problem.prefixes or (width,), problem.prefix_weights or (1.0,)
    return {"ends": " ".join(map(str, ends)), "weights": " ".join(map(repr, weights))}
