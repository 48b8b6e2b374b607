"""NT-Xent: several views of each sample, every other row of the batch a negative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, one_set
from ..engine.reductions import row_lses, score_sum
from .arguments import (
    Number,
    Reduction,
    describe,
    pairs,
    reduced,
    row_ids,
    softplus,
    temperature_or,
)
from .info_nce import reduced_softmax
from .matryoshka import weighted_sum, with_prefixes
from .statistics import Receiver


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    *more: Tensor,
    temperature: Number | Tensor = 0.5,
    scale: Number | Tensor | None = None,
    positives_in_denominator: bool = True,
    margin: Number = 0.0,
    label_smoothing: Number = 0.0,
    false_negative_margin: Number | None = None,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[Number] | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""NT-Xent: each view of a sample looks for its other views among all rows of all views.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i}
                    \log \frac{e^{s_{ip}/T}}{\sum_{a \ne i} e^{s_{ia}/T}}

    over the V N rows of ``cat(views)``, with :math:`P_i` the V - 1 other views of row i's sample.
    One set against itself, self left out; the (V N) x (V N) logits are never held. They are
    symmetric: loss and gradients cost 2 matrix products, 1.5 as far as ``workspace_bytes`` holds
    half of them (backends without a kernel for that: 3).

    Args:
        view_a, view_b, *more: (N, D) each, row i of every one a view of sample i.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        scale: 1 / T instead of ``temperature``; giving both is an error.
        positives_in_denominator: whether a positive's denominator counts the sample's other views.
            If not, each positive stands alone against the negatives (pytorch-metric-learning's
            NTXentLoss). Two views are the same either way.
        margin, label_smoothing, false_negative_margin, statistics, matryoshka_dims,
        matryoshka_weights, normalize, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`; the first four need ``positives_in_denominator=True``.
        reduction: ``"mean"`` and ``"sum"`` over all V N rows, or ``"none"``, (V N,) view by view.

    Returns:
        0-dim, or (V N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: views of different shapes or dtypes, or as in :func:`info_nce`.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations" (arXiv 2002.05709), eq. 1. ConSERT's sum of both sides is twice this loss.
    """
    temperature = temperature_or(scale, temperature, 0.5)
    names = ["view_a", "view_b", *(f"more[{i}]" for i in range(len(more)))]
    views = pairs(**dict(zip(names, (view_a, view_b, *more), strict=True)))
    n, count = views[0].shape[0], len(views)
    rows = torch.cat(views)
    sample = row_ids(n, rows).repeat(count)
    view = row_ids(count, rows).repeat_interleave(n).unsqueeze(1)
    # The other views, in order from the next one on.
    others = (view + torch.arange(1, count, device=rows.device)) % count * n + sample.unsqueeze(1)
    problem, operands = describe(
        rows,
        rows,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )
    if check.flag("positives_in_denominator", positives_in_denominator):
        limit = math.inf
        if false_negative_margin is not None:
            limit = check.number("false_negative_margin", false_negative_margin)
        problem = problem._replace(
            margin=check.number("margin", margin),
            false_negative_margin=limit,
            label_smoothing=check.number("label_smoothing", label_smoothing, 0.0, 1.0),
        )
        problem, operands = one_set(problem, operands._replace(positives=others))
        return reduced_softmax(
            problem,
            operands,
            matryoshka_dims,
            matryoshka_weights,
            None,
            reduction,
            backend,
            statistics,
        )
    _refuse(
        margin=margin,
        label_smoothing=label_smoothing,
        false_negative_margin=false_negative_margin,
        statistics=statistics,
    )

    def losses(p: SimilarityProblem, o: Operands, negatives: Tensor) -> Tensor:
        positives = [score_sum(p, o, column.unsqueeze(1)) for column in others.unbind(1)]
        return softplus(negatives.unsqueeze(1) - torch.stack(positives, 1)).mean(1)

    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    negatives = row_lses(*one_set(problem, operands, sample), backend)
    return reduced(weighted_sum(problem, operands, losses, negatives), reduction)


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value or (value is not None and name == "false_negative_margin"):
            raise ValueError(
                f"{name}: got {value!r} with positives_in_denominator=False, expected it unset"
            )
