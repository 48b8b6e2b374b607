"""The `torch` backend: a stripe of rows at a time in plain PyTorch, on any device.

A stripe of rows is a one-direction problem of its own: its log-sum-exp closes within it, so its
gradient is finished while its logits are there and nothing is computed twice (3G). Two directions
come to it as two such problems (6G), prefixes of the rows as one each. The logits are the
reference's; the gradient is written out, so that it also works below autograd, where a compiled
graph calls it. Matrix products are PyTorch's, with their own rounding and threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import reference
from .problem import Gradients, Operands, SimilarityProblem, Wanted, Weight, scale_of
from .similarity import full_precision, positive_index, prepared
from .summary import summarize

TAKES_HALF = False
COPIES = 8
"""Stripe-sized tensors alive at once: similarities, logits, masks, probabilities, temporaries."""
SUM_LENGTH = 2048


def serves(problem: SimilarityProblem, operands: Operands) -> bool:
    return not (problem.symmetric or problem.one_set or problem.prefixes)


def forward(
    problem: SimilarityProblem, operands: Operands, summary: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) losses; this backend keeps no statistics, its backward starts anew."""
    # Not a list of parts: between the stripes' matrices they would keep the heap from reuse.
    losses = operands.query.new_empty(operands.query.shape[0], dtype=operands.accumulation_dtype)
    with torch.no_grad():
        for rows, part, stripe in _stripes(problem, _prepared(problem, operands)):
            logits = reference.logits(part, stripe)
            if problem.tile_map:
                losses[rows] = reference.pairwise(logits)
            else:
                losses[rows] = reference.cross_entropy(logits, problem.label_smoothing)
            if summary is not None:
                summary[:, rows] = summarize(part, stripe, logits)
    none = torch.empty(0, dtype=torch.float64, device=operands.query.device)
    return losses, none.clone(), none


def stats_shapes(
    problem: SimilarityProblem, operands: Operands
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (0,), (0,)


def backward(
    problem: SimilarityProblem,
    operands: Operands,
    row_stats: Tensor,
    column_stats: Tensor,
    weight: Weight,
    wanted: Wanted,
) -> Gradients:
    return total(problem, operands, weight, wanted)[1]


def total(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight,
    wanted: Wanted,
    summary: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """sum_i weight_i L_i and its gradients, which are summed up in the accumulation dtype."""
    with torch.no_grad(), full_precision(operands.query.device):
        return _total(problem, operands, weight, wanted, summary)


def _total(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight,
    wanted: Wanted,
    summary: Tensor | None,
) -> tuple[Tensor, Gradients]:
    o = _prepared(problem, operands)
    scale = scale_of(problem, operands)
    grads = [torch.zeros_like(t) if t is not None else None for t in (o.key, o.negatives)]
    key_grad, negatives_grad = (g if w else None for g, w in zip(grads, wanted[1:3], strict=True))
    query_grad = torch.empty_like(o.query)
    own_grad = None if o.own_negatives is None else torch.empty_like(o.own_negatives)
    loss = o.query.new_zeros(())
    scale_grad = torch.zeros((), dtype=torch.float64, device=o.query.device)
    bias_grad = torch.zeros_like(scale_grad)
    for rows, stripe_problem, stripe in _stripes(problem, o):
        parts = reference.logits(stripe_problem, stripe)
        if problem.tile_map:
            losses = reference.pairwise(parts)
        else:
            losses = reference.cross_entropy(parts, problem.label_smoothing)
        if summary is not None:
            summary[:, rows] = summarize(stripe_problem, stripe, parts)
        row_weight = weight[rows].unsqueeze(1) if isinstance(weight, Tensor) else weight
        loss += (losses.unsqueeze(1) * row_weight).sum()
        if not any(wanted):
            continue
        if problem.tile_map:
            positives, negatives = _pair_gradients(parts, row_weight)
            bias_grad += positives.sum(dtype=torch.float64)
            bias_grad += sum(part.sum(dtype=torch.float64) for part in negatives)
        else:
            positives, negatives = _logit_gradients(parts, problem.label_smoothing, row_weight)
        x, index = stripe.query, positive_index(stripe)
        x_grad = torch.zeros_like(x)
        for column, part in zip(index.unbind(1), positives.unbind(1), strict=True):
            at = column.clamp(min=0)
            x_grad += part.unsqueeze(1) * o.key[at]
            if key_grad is not None:
                key_grad.index_put_((at,), part.unsqueeze(1) * x, accumulate=True)
        rest = list(negatives)
        if problem.in_batch:
            _spread(rest.pop(0), x, o.key, x_grad, key_grad)
        if o.negatives is not None:
            _spread(rest.pop(0), x, o.negatives, x_grad, negatives_grad)
        if stripe.own_negatives is not None and own_grad is not None:
            part = rest.pop(0)
            x_grad += torch.bmm(part.unsqueeze(1), stripe.own_negatives).squeeze(1)
            own_grad[rows] = part.unsqueeze(2) * x.unsqueeze(1)
        # sum_j dL/dl_ij s_ij, the margin being part of the positives' s.
        scale_grad += (x * x_grad).sum(dtype=torch.float64) - problem.margin * positives.sum()
        query_grad[rows] = x_grad
    return loss, Gradients(
        _to_input(query_grad, operands.query, o.query, scale, problem) if wanted[0] else None,
        _to_input(key_grad, operands.key, o.key, scale, problem),
        _to_input(negatives_grad, operands.negatives, o.negatives, scale, problem),
        _to_input(own_grad, operands.own_negatives, o.own_negatives, scale, problem)
        if wanted[3]
        else None,
        (-scale_grad * scale**2).to(operands.temperature.dtype)
        if wanted[4] and operands.temperature is not None
        else None,
        bias_grad.to(operands.bias.dtype) if wanted[5] and operands.bias is not None else None,
    )


def _prepared(p: SimilarityProblem, o: Operands) -> Operands:
    """Rows whose dot products are the similarities, once for all stripes."""
    query, key, negatives, own = (
        None if t is None else prepared(t.detach(), p, o.accumulation_dtype) for t in o[:4]
    )
    assert query is not None
    assert key is not None
    return o._replace(query=query, key=key, negatives=negatives, own_negatives=own)


def _stripes(
    p: SimilarityProblem, o: Operands
) -> Iterator[tuple[slice, SimilarityProblem, Operands]]:
    """Rows at a time, so that the copies of a stripe fit the workspace."""
    n = o.query.shape[0]
    width = o.key.shape[0] * p.in_batch
    if o.negatives is not None:
        width += o.negatives.shape[0]
    if o.own_negatives is not None:
        width += o.own_negatives.shape[1]
    row_bytes = COPIES * o.query.element_size() * max(width, 1)
    step = min(n, max(1, p.workspace_bytes // row_bytes))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        stripe = p._replace(normalize=False, first_row=p.first_row + start)
        yield rows, stripe, _cut(o, rows)


def _cut(o: Operands, rows: slice) -> Operands:
    """The problem of some rows alone."""

    def maybe(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows]

    return o._replace(
        query=o.query[rows],
        own_negatives=maybe(o.own_negatives),
        positives=positive_index(o)[rows],
        query_ids=None if o.query_ids is None else o.query_ids[:, rows],
        own_bias=maybe(o.own_bias),
        guide_query=maybe(o.guide_query),
        guide_threshold=maybe(o.guide_threshold),
    )


def _logit_gradients(
    parts: reference.Logits, smoothing: float, weight: Weight
) -> tuple[Tensor, list[Tensor]]:
    """dL/dl at the positives (R, P) and at each block of negatives, times the rows' weights."""
    positives = parts.positives
    tops = [part.amax(1, keepdim=True) for part in (positives, *parts.negatives) if part.shape[1]]
    top = torch.cat(tops, 1).amax(1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    # Exponentials over their sum: exp(logit - lse) would carry the rounding of the lse.
    grads = [(part - top).exp_() for part in parts.negatives]
    negative_sum = torch.cat([grad.sum(1, keepdim=True) for grad in grads], 1).sum(1, keepdim=True)
    if not positives.shape[1]:
        every = negative_sum.masked_fill(negative_sum == 0, 1.0)
        return positives, [grad.mul_(weight / every) for grad in grads]
    positive_sum = (positives - top).exp().sum(1, keepdim=True)
    every = negative_sum + positive_sum
    given = positives != -math.inf
    count = given.sum(1, keepdim=True).to(positives.dtype)
    target = given / count
    # softmax - target, without its cancellation: both sum to 1, the negatives' share apart.
    share = torch.softmax(positives, 1)
    positive_grad = (share - target) - share * (negative_sum / every)
    if smoothing:
        for part in parts.negatives:
            count = count + (part != -math.inf).sum(1, keepdim=True)
        even = smoothing / count
        positive_grad = positive_grad + smoothing * target - even * given
        for grad, part in zip(grads, parts.negatives, strict=True):
            grad.div_(every).sub_((part != -math.inf) * even).mul_(weight)
    else:
        grads = [grad.mul_(weight / every) for grad in grads]
    return positive_grad * weight, grads


def _pair_gradients(parts: reference.Logits, weight: Weight) -> tuple[Tensor, list[Tensor]]:
    """dL/dl of sums of softplus, times the rows' weights."""
    given = parts.positives != -math.inf
    positives = torch.where(given, -torch.sigmoid(-parts.positives), 0.0)
    return positives * weight, [torch.sigmoid(part).mul_(weight) for part in parts.negatives]


def _spread(part: Tensor, x: Tensor, y: Tensor, x_grad: Tensor, y_grad: Tensor | None) -> None:
    """Adds what dL/dl (R, C) means for the rows of both sides."""
    # A library product over very many candidates is one long sum; short ones are more exact.
    for start in range(0, part.shape[1], SUM_LENGTH):
        block = slice(start, start + SUM_LENGTH)
        x_grad += part[:, block] @ y[block]
    if y_grad is not None:
        y_grad.addmm_(part.T, x)


def _to_input(
    grad: Tensor | None,
    given: Tensor | None,
    unit: Tensor | None,
    scale: Tensor | float,
    problem: SimilarityProblem,
) -> Tensor | None:
    """From prepared rows back through their normalisation: tangential, over the norm."""
    if grad is None or given is None or unit is None:
        return None
    grad = grad * scale
    if problem.normalize:
        wide = given.detach().to(grad.dtype)
        largest = wide.abs().amax(-1, keepdim=True)
        is_zero = largest == 0
        largest = largest.masked_fill(is_zero, 1.0)
        norm = (wide / largest).square().sum(-1, keepdim=True).sqrt().masked_fill(is_zero, 1.0)
        grad = grad - (grad * unit).sum(-1, keepdim=True) * unit
        grad = (grad / norm / largest).masked_fill(is_zero, 0.0)
    return grad.to(given.dtype)
