"""What each row of a problem sees, for statistics: six numbers, from the scan that finds its loss.

A summary is (6, N) float64, without gradient. Its rows, of query i and its candidates:

* ``above``: how many kept negatives have a logit above that of the best positive
* ``hardest``: the largest logit of a kept negative; -inf where there is none
* ``kept``, ``total``: how many negatives are kept, and the sum of their logits
* ``positive``: the mean logit of the positives
* ``entropy``: of the softmax over positives and kept negatives, in nats
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Operands, SimilarityProblem, scale_of
from .reference import Logits, log_sum_exp
from .similarity import positive_index, threshold_slack


class Summary(NamedTuple):
    """The rows of a summary, (N,) each."""

    above: Tensor
    hardest: Tensor
    kept: Tensor
    total: Tensor
    positive: Tensor
    entropy: Tensor


def empty_summary(operands: Operands) -> Tensor:
    """Room for the summary of a problem."""
    shape = (len(Summary._fields), operands.query.shape[0])
    return operands.query.new_empty(shape, dtype=torch.float64)


def summarize(problem: SimilarityProblem, operands: Operands, logits: Logits) -> Tensor:
    """(6, R) of R rows whose ``logits`` are at hand; the operands' rows are prepared ones."""
    index = positive_index(operands)
    positives = logits.positives
    given = index >= 0
    slack = threshold_slack(
        problem, operands.query.unsqueeze(1), operands.key[index.clamp(min=0)]
    ) * scale_of(problem, operands)
    limit = (positives + slack).amax(1, keepdim=True)
    blocks = logits.negatives
    kept = [block > -torch.inf for block in blocks]
    lse = log_sum_exp(torch.stack([log_sum_exp(part) for part in (positives, *blocks)], 1))
    entropy = torch.zeros_like(lse)
    for part, there in zip((positives, *blocks), (given, *kept), strict=True):
        below = torch.where(there, part - lse.unsqueeze(1), 0.0)
        entropy -= torch.where(there, below.exp() * below, 0.0).sum(1)
    numbers = Summary(
        above=_over([block > limit for block in blocks]),
        hardest=torch.stack([block.amax(1) for block in blocks], 1).amax(1),
        kept=_over(kept),
        total=_over([torch.where(k, b, 0.0) for k, b in zip(kept, blocks, strict=True)]),
        positive=torch.where(given, positives, 0.0).sum(1) / given.sum(1),
        entropy=entropy,
    )
    return torch.stack([number.to(torch.float64) for number in numbers])


def _over(blocks: list[Tensor]) -> Tensor:
    """(R,) sums over all columns of all blocks."""
    return torch.stack([block.sum(1, dtype=torch.float64) for block in blocks], 1).sum(1)
