"""What a batch looks like to its loss: accuracy, ranks, hardest negatives. No gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine import chunked, reference
from ..engine.describe import describe
from ..engine.similarity import full_precision
from .info_nce import DEFAULT_TEMPERATURE


class Statistics(NamedTuple):
    """Of N queries, in the loss's dtype; means are over queries."""

    accuracy: Tensor
    """() share of queries none of whose negatives has a logit above its best positive's."""
    rank: Tensor
    """(N,) int64: how many negatives have a logit above the best positive's; 0 is best."""
    hardest_negative: Tensor
    """(N,) largest logit of a negative; -inf where a query has none."""
    left_out: Tensor
    """() share of negatives that exclusions took out of the denominators."""
    positive: Tensor
    """() mean logit of the positives."""
    negative: Tensor
    """() mean logit of the negatives that are there."""
    entropy: Tensor
    """() mean entropy of the softmax over a query's candidates, in nats."""


_DEFAULTS: dict[str, Any] = {
    "temperature": DEFAULT_TEMPERATURE,
    "in_batch": True,
    "negatives_scope": "all",
    "positives": None,
    "query_ids": None,
    "key_ids": None,
    "negative_ids": None,
    "false_negative_margin": None,
    "guide": None,
    "guide_margin": 0.0,
    "margin": 0.0,
    "negative_log_weight": None,
    "own_negative_log_weight": None,
    "normalize": True,
    "workspace_bytes": None,
}


@torch.no_grad()
def info_nce_statistics(
    query: Tensor, key: Tensor, negatives: Tensor | None = None, **options: Any
) -> Statistics:
    """Statistics of the logits that :func:`contrastive_ops.info_nce` would see, query to key.

    A stripe of queries at a time in plain PyTorch: one matrix product more than the loss's own.

    Args:
        query, key, negatives: as in :func:`info_nce`.
        options: of ``info_nce`` those that say what the logits are: ``temperature``, ``in_batch``,
            ``negatives_scope``, ``positives``, the ids, ``false_negative_margin``, ``guide``,
            ``guide_margin``, ``margin``, the log-weights, ``normalize``, ``workspace_bytes``.

    Raises:
        TypeError: another option.
        ValueError: as in :func:`info_nce`.
    """
    unknown = [name for name in options if name not in _DEFAULTS]
    if unknown:
        raise TypeError(
            f"info_nce_statistics got an unknown option {unknown[0]!r}, expected some of "
            + ", ".join(_DEFAULTS)
        )
    problem, operands = describe(
        query, key, negatives, symmetric=False, label_smoothing=0.0, **(_DEFAULTS | options)
    )
    ranks, hardest, sums = [], [], []
    with full_precision(query.device):
        for part, stripe in chunked.stripes_of(problem, operands):
            found = reference.logits(part, stripe)
            best = found.positives.amax(1)
            given = found.positives > -torch.inf
            positive = torch.where(given, found.positives, 0.0).sum(1) / given.sum(1)
            blocks = found.negatives
            kept = [block > -torch.inf for block in blocks]
            ranks.append(_sum(b > best.unsqueeze(1) for b in blocks))
            hardest.append(torch.stack([b.amax(1) for b in blocks], 1).amax(1))
            logits = torch.cat([found.positives, *blocks], 1)
            p = logits.softmax(1)
            entropy = -(p * logits.log_softmax(1).masked_fill(p == 0, 0.0)).sum(1)
            columns = sum(block.shape[1] for block in blocks)
            candidates = columns - (given.sum(1) if problem.in_batch else 0)
            negative = _sum(torch.where(k, b, 0.0) for k, b in zip(kept, blocks, strict=True))
            count = _sum(kept)
            if not problem.in_batch and operands.negatives is None and columns == 1:
                candidates = count  # a placeholder stands where a query has no negatives at all
            parts = [positive, negative, count, entropy, candidates]
            sums.append(torch.stack([torch.as_tensor(x).double().sum() for x in parts]))
    rank = torch.cat(ranks)
    positive, negative, count, entropy, candidates = torch.stack(sums).sum(0).unbind()
    n, dtype = rank.shape[0], operands.accumulation_dtype
    return Statistics(
        (rank == 0).to(dtype).mean(),
        rank,
        torch.cat(hardest),
        (1 - count / candidates.clamp(min=1)).clamp(min=0.0).to(dtype) * (candidates > 0),
        (positive / n).to(dtype),
        (negative / count.clamp(min=1)).to(dtype),
        (entropy / n).to(dtype),
    )


def _sum(blocks: Any) -> Tensor:
    return torch.stack([block.sum(1) for block in blocks], 1).sum(1)
