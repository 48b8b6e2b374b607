"""Strategy ``all_gather``: every rank receives all candidates and scores its own rows.

A rank computes n of the N rows, so nothing is computed twice; it holds all N candidates and their
gradient, which goes back to where each row came from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.problem import Operands, SimilarityProblem
from ..engine.similarity import positive_index
from ..engine.softmax_ce import softmax_ce
from .collectives import gather
from .directions import Layout


def all_gather(
    problem: SimilarityProblem,
    operands: Operands,
    layout: Layout,
    weight: Tensor | None,
    backend: str | None,
    summary: Tensor | None = None,
) -> Tensor:
    """A :class:`.directions.Strategy`."""
    wide = gathered(problem, operands, layout)
    return softmax_ce(problem, wide, weight, backend, summary)


def gathered(problem: SimilarityProblem, operands: Operands, layout: Layout) -> Operands:
    """This rank's rows with the candidates of all ranks."""
    o = operands
    if problem.in_batch:
        keys = layout.keys
        numbers = positive_index(o)
        o = o._replace(
            key=gather(o.key, keys),
            key_ids=None if o.key_ids is None else gather(o.key_ids.T, keys).T,
            guide_key=None if o.guide_key is None else gather(o.guide_key, keys),
            positives=torch.where(numbers < 0, numbers, numbers + keys.first),
        )
    if o.negatives is not None:
        negatives = layout.negatives
        # A row finds its own group by its number on this rank: this rank's groups stand first.
        start = negatives.first if problem.group else 0

        def every(x: Tensor | None, dim: int = 0) -> Tensor | None:
            if x is None:
                return None
            rows = gather(x.movedim(dim, 0), negatives)
            return (rows.roll(-start, 0) if start else rows).movedim(0, dim)

        o = o._replace(
            negatives=every(o.negatives),
            negative_ids=every(o.negative_ids, 1),
            negative_bias=every(o.negative_bias),
            guide_negatives=every(o.guide_negatives),
        )
    return o
