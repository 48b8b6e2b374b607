"""The `reference` backend: dense, plain autograd, written to be read as mathematics.

It builds every matrix that the kernels avoid. It is the oracle of the tests and serves double
backward; :data:`MAX_ELEMENTS` keeps the latter from taking a machine's memory unasked. The `torch`
backend runs the same mathematics on a stripe of rows at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import (
    DIFFERENTIABLE,
    Operands,
    SimilarityProblem,
    bias_of,
    each_prefix,
    of_prefixes,
    reversed_problem,
    scale_of,
    two_sets,
)
from .similarity import (
    any_equal,
    at_index,
    full_precision,
    positive_index,
    prepared,
    threshold_slack,
)

MAX_ELEMENTS = 1 << 26
"""Most logits that double backward recomputes densely (0.5 GiB a copy in float64)."""


class Logits(NamedTuple):
    """A problem's logits, query -> key; what is left out is -inf."""

    positives: Tensor  # (N, P); pads are -inf
    negatives: tuple[Tensor, ...]  # (N, M), (N, K), (N, H); positives are -inf in the first


def losses(problem: SimilarityProblem, operands: Operands) -> Tensor:
    """:func:`row_losses` in float64 whatever the operands, which autocast does not lower either."""
    wide = [None if t is None else t.to(torch.float64) for t in operands[:DIFFERENTIABLE]]
    exact = row_losses(problem, Operands(*wide, *operands[DIFFERENTIABLE:]))  # type: ignore[arg-type]
    return exact.to(operands.accumulation_dtype)


def row_losses(problem: SimilarityProblem, operands: Operands) -> Tensor:
    """(N,) losses, differentiable any number of times; the mean of both directions if symmetric."""
    if problem.prefixes:
        parts = [w * row_losses(p, o) for _, w, p, o in each_prefix(problem, operands)]
        return of_prefixes(problem, parts)
    if problem.one_set:
        return row_losses(*two_sets(problem, operands))
    if problem.tile_map:
        return pairwise(logits(problem, operands))
    if not problem.symmetric:
        return cross_entropy(logits(problem, operands), problem.label_smoothing)
    forward = row_losses(problem._replace(symmetric=False), operands)
    pairs = row_losses(*reversed_problem(problem, operands))
    return (forward + mean_over_positives(pairs, operands)) / 2


def mean_over_positives(pair_losses: Tensor, operands: Operands) -> Tensor:
    """(N * P,) losses of (query, positive) pairs -> (N,), leaving out the pads."""
    given = positive_index(operands) >= 0
    return torch.where(given, pair_losses.view(given.shape), 0.0).sum(1) / given.sum(1)


def cross_entropy(parts: Logits, label_smoothing: float) -> Tensor:
    """(N,) log sum exp of all logits minus the mean positive logit, without their cancellation.

    Without any positives, the log sum exp itself.
    """
    positives = parts.positives
    negative_lse = log_sum_exp(torch.stack([log_sum_exp(part) for part in parts.negatives], 1))
    if not positives.shape[1]:
        return negative_lse
    given = positives != -math.inf
    mean_positive = torch.where(given, positives, 0.0).sum(1) / given.sum(1)
    # Relative to the mean positive both sums are what remains after the cancellation. logaddexp has
    # no second derivative at -inf.
    alone = negative_lse == -math.inf
    relative = negative_lse.masked_fill(alone, 0.0) - mean_positive
    if positives.shape[1] == 1:
        positive_lse = torch.zeros_like(relative)
    else:
        positive_lse = log_sum_exp(positives - mean_positive.unsqueeze(1))
    loss = torch.where(alone, positive_lse, torch.logaddexp(relative, positive_lse))
    if label_smoothing:
        every = torch.cat([positives, *parts.negatives], 1)
        kept = every != -math.inf
        mean = torch.where(kept, every, 0.0).sum(1) / kept.sum(1)
        loss = loss + label_smoothing * (mean_positive - mean)
    return loss


def pairwise(parts: Logits) -> Tensor:
    """(N,) sums of softplus: of the positives' negated logits, and of all others."""
    given = parts.positives != -math.inf
    loss = torch.where(given, softplus(-parts.positives.masked_fill(~given, 0.0)), 0.0).sum(1)
    for part in parts.negatives:
        loss = loss + softplus(part).sum(1)
    return loss


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64 too."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def log_sum_exp(x: Tensor) -> Tensor:
    """Over dim 1; -inf, with gradient zero, where everything is -inf.

    Its gradient is e / sum(e) of the shifted exponentials e. exp(x - result), as torch.logsumexp
    has it, carries the rounding of the result: 4e-6 of every probability where the result is 100.
    """
    largest = x.detach().amax(1, keepdim=True)
    empty = largest == -math.inf
    shifted = x.masked_fill(empty, 0.0) - largest.masked_fill(empty, 0.0)
    result = shifted.exp().sum(1, keepdim=True).log() + largest
    return result.masked_fill(empty, -math.inf).squeeze(1)


def logits(problem: SimilarityProblem, operands: Operands) -> Logits:
    """Every logit of the problem, dense."""
    with full_precision(operands.query.device):
        return _logits(problem, operands)


def _logits(p: SimilarityProblem, o: Operands) -> Logits:
    scale = scale_of(p, o)
    query = prepared(o.query, p, o.accumulation_dtype)
    key = prepared(o.key, p, query.dtype)
    positives = at_index(query, key, positive_index(o))
    given = positive_index(o) >= 0
    negatives = []
    if p.in_batch:
        negatives.append(_in_batch(p, o, query, key, positives.detach(), scale))
    if o.negatives is not None:
        negatives.append(_shared(p, o, query, scale))
    if o.own_negatives is not None:
        own = prepared(o.own_negatives, p, query.dtype)
        own_logits = torch.einsum("nd,nhd->nh", query, own) * scale
        negatives.append(own_logits if o.own_bias is None else own_logits + o.own_bias)
    if not negatives:
        negatives.append(query.new_full((query.shape[0], 1), -math.inf))
    positive_logits = (positives - p.margin) * scale
    if p.tile_map:
        bias = bias_of(p, o)
        positive_logits = positive_logits + bias
        negatives = [part + bias for part in negatives]
    return Logits(positive_logits.masked_fill(~given, -math.inf), tuple(negatives))


def _in_batch(
    p: SimilarityProblem,
    o: Operands,
    query: Tensor,
    key: Tensor,
    positives: Tensor,
    scale: Tensor | float,
) -> Tensor:
    """(N, M) logits; -inf at positives and at what the exclusions leave out."""
    similarity = query @ key.T
    index = positive_index(o)
    out = torch.zeros_like(similarity, dtype=torch.bool)
    if index.shape[1]:  # pads write where some positive is: True either way
        out.scatter_(1, torch.where(index < 0, index.amax(1, keepdim=True), index), True)
    if o.query_ids is not None and o.key_ids is not None:
        out |= any_equal(o.query_ids, o.key_ids)
    if p.false_negative_margin < math.inf:
        slack = threshold_slack(p, query.detach().unsqueeze(1), key.detach()[index.clamp(min=0)])
        weakest = (positives + slack).masked_fill(index < 0, math.inf).amin(1, keepdim=True)
        out |= similarity > weakest + p.false_negative_margin
    if o.guide_query is not None and o.guide_key is not None and o.guide_threshold is not None:
        out |= o.guide_query @ o.guide_key.T > o.guide_threshold.unsqueeze(1)
    return (similarity * scale).masked_fill(out, -math.inf)


def _shared(p: SimilarityProblem, o: Operands, query: Tensor, scale: Tensor | float) -> Tensor:
    """(N, K) logits of the shared negatives."""
    assert o.negatives is not None
    result = query @ prepared(o.negatives, p, query.dtype).T * scale
    if o.negative_bias is not None:
        result = result + o.negative_bias
    if p.group:
        group = torch.arange(result.shape[1], device=result.device) // p.group
        row = torch.arange(result.shape[0], device=result.device) + p.first_row
        result = torch.where(group == row.unsqueeze(1), result + p.group_log_weight, result)
    if o.query_ids is not None and o.negative_ids is not None:
        result = result.masked_fill(any_equal(o.query_ids, o.negative_ids), -math.inf)
    if o.guide_query is not None and o.guide_negatives is not None:
        assert o.guide_threshold is not None
        guide = o.guide_query @ o.guide_negatives.T
        result = result.masked_fill(guide > o.guide_threshold.unsqueeze(1), -math.inf)
    return result
