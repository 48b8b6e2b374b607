"""Positive pairs of labelled rows without an index of them: classes side by side.

Rows are sorted by label, so that a row's positives are one contiguous range, and stripes of rows
only meet the columns of their own classes: the work is the sum of the squared class sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, Weight, scale_of
from ..engine.reference import log_sum_exp
from ..engine.similarity import prepared
from ..engine.stripes import Tensors, row_loss, stripe_losses
from .arguments import softplus, take_rows
from .stretches import Stretches, as_options, each_similarity, stretches

FEW = 8
"""Positives of a row up to which they are listed."""


class Classes(NamedTuple):
    """Rows sorted by label: sorted row r is row ``order[r]``, its class is [first, end)."""

    order: Tensor  # (N,)
    first: Tensor  # (N,), of the sorted rows
    end: Tensor  # (N,)
    segment: Tensor  # (N,) which class each unsorted row is of, counted from 0
    size: Tensor  # (N,) of each unsorted row's class

    @property
    def has_positive(self) -> Tensor:
        return self.size > 1


def classes(labels: Tensor) -> Classes:
    order = labels.argsort(stable=True)
    ordered = labels[order]
    first = torch.searchsorted(ordered, ordered)
    end = torch.searchsorted(ordered, ordered, right=True)
    starts = torch.ones_like(labels)
    starts[1:] = ordered[1:] != ordered[:-1]
    segment = torch.empty_like(order).scatter_(0, order, starts.cumsum(0) - 1)
    size = torch.empty_like(order).scatter_(0, order, end - first)
    return Classes(order, first, end, segment, size)


def others_of_class(c: Classes) -> Tensor:
    """(P, N) int32: in slot s the s-th other row of each row's class; -1 where there are fewer."""
    n = c.order.shape[0]
    slot = torch.arange(max(1, int(c.size.max()) - 1), device=c.order.device).unsqueeze(1)
    column = c.first + slot
    column = column + (column >= torch.arange(n, device=c.order.device))
    others = torch.where(column < c.end, c.order[column.clamp(max=n - 1)], -1)
    return torch.empty_like(others, dtype=torch.int32).index_copy_(1, c.order, others.int())


def few(count: Tensor) -> bool:
    """Whether every row has a positive and none has many, as far as that may be read.

    Then positives are given by their index, and the sums of positives and of negatives stay apart:
    the loss of a row with one positive goes to 0, where a log-sum-exp minus a logit would leave
    rounding alone. With many it does not.
    """
    return check.readable(count) and 1 <= int(count.min()) <= int(count.max()) <= FEW


def mean_positive_logit(problem: SimilarityProblem, o: Operands, c: Classes) -> Tensor:
    """(N,) mean logit of each row of ``o.query`` with the others of its class: O(N D).

    The mean is linear in the class's sum of rows. Rows alone in their class get 0.
    """
    rows = prepared(o.query, problem, o.accumulation_dtype)
    sums = torch.zeros_like(rows).index_put((c.segment,), rows, accumulate=True)
    others = (sums[c.segment] - rows) / (c.size - 1).clamp(min=1).unsqueeze(1).to(rows.dtype)
    means = (rows * others).sum(1) * scale_of(problem, o)
    return torch.where(c.has_positive, means, 0.0)


def over_positives(
    how: str,
    problem: SimilarityProblem,
    o: Operands,
    c: Classes,
    denominators: Tensor,
    weight: Weight | None,
    backend: str | None,
) -> Tensor:
    """Row losses (or their weighted sum) from each row's logits with the others of its class; of
    a problem on prefixes the weighted sum over them.

    ``denominators`` (prefixes, N) are the log-sum-exps of the row's negatives, L_n; s_p are the
    positives' logits.

    * ``"log_sum"``: log(e^{L_n} + sum_p e^{s_p}) - log sum_p e^{s_p}
    * ``"mean_own"``: the mean over p of log(e^{L_n} + e^{s_p}) - s_p
    * ``"log_sum_own"``: minus the log of the sum over p of e^{s_p} / (e^{L_n} + e^{s_p})

    Rows alone in their class have loss 0.
    """
    rows = columns = _by_class(o.query, problem, o, c)
    if o.key is not o.query:
        columns = _by_class(o.key, problem, o, c)
    if isinstance(weight, Tensor):
        weight = weight[c.order]
    result = stripe_losses(
        _row_losses,
        (*rows, denominators.T[c.order], c.first, c.end),
        (*columns, o.temperature),
        weight,
        backend=backend,
        workspace_bytes=problem.workspace_bytes,
        width=o.key.shape[0] * len(problem.prefixes),
        how=how,
        scale=problem.scale,
        **as_options(problem, o.query.shape[1]),
    )
    if weight is not None:
        return result
    return torch.empty_like(result).scatter(0, c.order, result)


def _by_class(x: Tensor, problem: SimilarityProblem, o: Operands, c: Classes) -> Stretches:
    parts = stretches(x, problem, o.accumulation_dtype)
    return Stretches(*[None if part is None else take_rows(part, c.order) for part in parts])  # type: ignore[arg-type]


@row_loss
def _row_losses(rows: Tensors, shared: Tensors, start: int, **options: Any) -> Tensor:
    x, x_inverse, denominators, first, end = rows
    y, y_inverse, temperature = shared
    assert x is not None
    assert denominators is not None
    assert first is not None
    assert end is not None
    assert y is not None
    low, high = int(first[0]), int(end[-1])
    scale = options["scale"] if temperature is None else temperature.to(x.dtype).reciprocal()
    column = torch.arange(low, high, device=x.device)
    row = torch.arange(start, start + x.shape[0], device=x.device).unsqueeze(1)
    positive = (column >= first.unsqueeze(1)) & (column < end.unsqueeze(1)) & (column != row)
    some = end - first > 1
    denominators = torch.where(some.unsqueeze(1), denominators, 0.0)
    columns = Stretches(y[low:high], None if y_inverse is None else y_inverse[low:high])
    prefixes = each_similarity(
        Stretches(x, x_inverse), columns, options["ends"], options["weights"]
    )
    losses = torch.zeros_like(denominators[:, 0])
    for (weight, similarity), denominator in zip(prefixes, denominators.unbind(1), strict=True):
        logits = similarity * scale
        if options["how"] == "log_sum":
            lse = log_sum_exp(logits.masked_fill(~positive, -torch.inf))
            part = softplus(denominator - torch.where(some, lse, 0.0))
        else:
            alone = softplus(denominator.unsqueeze(1) - logits)
            if options["how"] == "mean_own":
                count = positive.sum(1).clamp(min=1).to(x.dtype)
                part = torch.where(positive, alone, 0.0).sum(1) / count
            else:
                lse = log_sum_exp((-alone).masked_fill(~positive, -torch.inf))
                part = -torch.where(some, lse, 0)
        losses = losses + weight * part
    return torch.where(some, losses, 0.0)
