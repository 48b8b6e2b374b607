"""Losses of order: scores are to be ranked as their targets are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.reference import log_sum_exp
from ..engine.similarity import unit_rows
from .arguments import (
    Number,
    Reduction,
    inverse_temperature,
    over_temperature,
    pairs,
    reduced,
    vectors,
    wide,
)


def cosent(scores: Tensor, targets: Tensor, *, scale: Number | Tensor = 20.0) -> Tensor:
    r"""CoSENT: :math:`\log(1 + \sum_{y_i < y_j} e^{\lambda (s_i - s_j)})`.

    Sorted by target, the sum over pairs is one running log-sum-exp: O(N log N) time, O(N) memory,
    exact, equal targets included (they make no pair).

    Args:
        scores: (N,), floating: cosines of N pairs, say.
        targets: (N,), their order; any real dtype, not differentiated. The loss is 0 where all are
            equal.
        scale: lambda > 0, a number or a 0-dim tensor, then with gradient.

    Returns:
        0-dim: float32, float64 for float64 scores.

    Raises:
        ValueError: shapes that differ, an empty vector, or a scale that is not positive.

    Source: Su 2022, "CoSENT" (kexue.fm/archives/8847)
    """
    (scores,) = vectors(scores=scores)
    check.shaped("targets", check.tensor("targets", targets), (tuple(scores.shape),), scores)
    return _misranked(scores * _positive("scale", scale, scores), targets.detach())


def angle(query: Tensor, key: Tensor, targets: Tensor, *, scale: Number | Tensor = 20.0) -> Tensor:
    r"""AnglE: :func:`cosent` of the pairs' angle scores, O(N (D + log N)).

    The first half of a row is its real, the second its imaginary part; with :math:`x = a + bi` and
    :math:`y = c + di` the score of a pair is :math:`|\sum_d \mathrm{Re}(x \bar y) + \mathrm{Im}(x
    \bar y)| / (\|x\| \|y\|)`.

    Args:
        query, key: (N, D), D even.
        targets, scale: as in :func:`cosent`. (AnglE's "tau" multiplies too.)

    Raises:
        ValueError: an odd D, or as in :func:`cosent`.

    Source: Li and Li 2023, "AnglE-optimized Text Embeddings" (arXiv 2309.12871), and
    the authors' code.
    """
    return cosent(angle_scores(query, key), targets, scale=scale)


def angle_scores(query: Tensor, key: Tensor) -> Tensor:
    """(N,) scores of :func:`angle`."""
    rows = pairs(query=query, key=key)
    if rows[0].shape[1] % 2:
        raise ValueError(f"query: got width {rows[0].shape[1]}, expected an even one")
    (a, b), (c, d) = (unit_rows(wide(x)).chunk(2, 1) for x in rows)
    return (a * c + b * d + b * c - a * d).sum(1).abs()


def list_net(
    scores: Tensor,
    targets: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    teacher_temperature: Number | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""ListNet: cross-entropy :math:`-\sum_j \mathrm{softmax}(t/T')_j \log \mathrm{softmax}(s/T)_j`
    of given lists.

    For lists that are rows of similarities see :func:`similarity_divergence`, which does not hold
    them.

    Args:
        scores, targets: (N, M). The targets are not differentiated; -inf in both leaves an entry
            out.
        temperature, teacher_temperature: T and T', numbers or 0-dim tensors.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes that differ, or temperatures that are not positive.

    Source: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (ICML),
    top-one probability.
    """
    scores, targets = (wide(x) for x in pairs(scores=scores, targets=targets))
    p = torch.softmax(
        over_temperature(targets.detach(), teacher_temperature, "teacher_temperature"), 1
    )
    log_q = torch.log_softmax(over_temperature(scores, temperature), 1)
    return reduced(-(p * log_q.masked_fill(p == 0, 0.0)).sum(1), reduction)


def list_mle(
    scores: Tensor,
    targets: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""ListMLE: the likelihood of the targets' order, :math:`\sum_r [\log \sum_{r' \ge r}
    e^{s_{\pi(r')}/T} - s_{\pi(r)}/T]`, :math:`\pi` the order of falling targets.

    One running log-sum-exp a list: O(N M log M). Equal targets keep the order of the list.

    Args:
        scores, targets: (N, M). The targets are not differentiated.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.

    Source: Xia et al. 2008, "Listwise Approach to Learning to Rank" (ICML).
    """
    scores, targets = (wide(x) for x in pairs(scores=scores, targets=targets))
    logits = scores * inverse_temperature(temperature, scores)
    return reduced(order_losses(logits, targets.detach()), reduction)


def order_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) losses of :func:`list_mle`."""
    order = targets.argsort(stable=True, dim=1, descending=True)
    ordered = logits.gather(1, order)
    rest = ordered.flip(1).logcumsumexp(1).flip(1)
    return (rest - ordered).sum(1)


def _misranked(scores: Tensor, targets: Tensor) -> Tensor:
    """log(1 + sum over y_i < y_j of e^{s_i - s_j})."""
    targets, order = targets.sort(stable=True)
    scores = scores[order]
    lower = torch.searchsorted(targets, targets)  # how many targets are strictly lower
    below = scores.logcumsumexp(0)[(lower - 1).clamp(min=0)]
    terms = torch.where(lower > 0, below - scores, -torch.inf)
    total = log_sum_exp(terms.unsqueeze(0)).squeeze(0)
    return torch.logaddexp(total, torch.zeros_like(total))


def _positive(name: str, value: Any, like: Tensor) -> Tensor | float:
    if isinstance(value, Tensor):
        return check.positive_scalar(name, value, like.device).to(like.dtype)
    return check.positive_number(name, value)
