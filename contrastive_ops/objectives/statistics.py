"""What a batch looks like to its loss: accuracy, ranks, hardest negatives. No gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.problem import Operands, SimilarityProblem
from ..engine.similarity import positive_index
from ..engine.summary import Summary


class Statistics(NamedTuple):
    """Of N queries looking for their keys, in the loss's dtype; means are over queries."""

    accuracy: Tensor
    """() share of queries none of whose negatives has a logit above its best positive's, and none
    of whose logits is NaN."""
    rank: Tensor
    """(N,) int64: how many negatives have a logit above the best positive's; 0 is best."""
    hardest_negative: Tensor
    """(N,) largest logit of a negative; -inf where a query has none."""
    left_out: Tensor
    """() share of negatives, padding included, that exclusions took out of the denominators."""
    positive: Tensor
    """() mean logit of the positives."""
    negative: Tensor
    """() mean logit of the negatives that are there; 0 where there is none."""
    entropy: Tensor
    """() mean entropy of the softmax over a query's candidates, in nats."""


Receiver = Callable[[Statistics], Any]
"""What wants the statistics of a call: a list's ``append``, a logger."""


@torch.no_grad()
def statistics_of(problem: SimilarityProblem, operands: Operands, summary: Tensor) -> Statistics:
    """From the (6, N) summary that the loss's own scan filled."""
    rows = Summary(*summary.unbind())
    dtype = operands.accumulation_dtype
    n, width = operands.query.shape[0], 0
    if operands.negatives is not None:
        width += operands.negatives.shape[0]
    if operands.own_negatives is not None:
        width += operands.own_negatives.shape[1]
    candidates = torch.full_like(rows.kept, width)
    if problem.in_batch:
        given = (positive_index(operands) >= 0).sum(1)
        candidates = candidates + (n - 1 if problem.one_set else operands.key.shape[0]) - given
    every, kept = candidates.sum(), rows.kept.sum()
    return Statistics(
        accuracy=((rows.above == 0) & ~rows.entropy.isnan()).to(dtype).sum() / n,
        rank=rows.above.to(torch.int64),
        hardest_negative=rows.hardest.to(dtype),
        left_out=((every - kept) / every.clamp(min=1)).to(dtype),
        positive=(rows.positive.sum() / n).to(dtype),
        negative=(rows.total.sum() / kept.clamp(min=1)).to(dtype),
        entropy=(rows.entropy.sum() / n).to(dtype),
    )
