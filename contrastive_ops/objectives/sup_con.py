"""Supervised contrastive loss: every row of a row's class is its positive."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, one_set
from ..engine.reductions import row_lse, row_lses
from ..engine.softmax_ce import softmax_ce
from .arguments import (
    Number,
    Reduction,
    describe,
    matrices,
    reduced,
    shares,
    temperature_or,
)
from .arguments import labels as checked_labels
from .classes import classes, few, mean_positive_logit, others_of_class, over_positives
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Number | Tensor = 0.1,
    scale: Number | Tensor | None = None,
    sum_over_positives: Literal["out", "in"] = "out",
    positives_in_denominator: bool = True,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Supervised contrastive loss over one labelled set, self left out.

    .. math:: L^{out}_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}/T}}{Z_{ip}}
              \qquad
              L^{in}_i = -\log \frac{1}{|P_i|} \sum_{p \in P_i} \frac{e^{s_{ip}/T}}{Z_{ip}}

    with :math:`P_i` the other rows of row i's class and
    :math:`Z_{ip} = \sum_{a \ne i} e^{s_{ia}/T}`, without the other positives if they are kept out
    of the denominator. The positives' mean logit is linear in the classes' sums, so ``"out"`` needs
    no list of positive pairs: 2 matrix products (of a symmetric matrix, one half is computed),
    O(N D) memory. (On the CPU, where every row has a positive and none more than 8, they are
    listed, which is more exact.) Every other form adds the pairs within classes.

    Args:
        embeddings: (N, D).
        labels: (N,) int64. A row whose label no other row has counts 0 and is left out of the
            mean; where no row has a positive the mean is 0.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        scale: 1 / T instead of ``temperature``; giving both is an error.
        sum_over_positives: whether the sum over positives is outside or inside the logarithm.
        positives_in_denominator: whether a positive's denominator counts the other positives.
        matryoshka_dims, matryoshka_weights: as in :func:`contrastive_ops.info_nce`.
        normalize: cosine similarity if True, dot products if False.
        reduction: ``"mean"`` over rows with a positive, ``"sum"`` or ``"none"``, (N,).
        backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: labels that are no (N,) integers, or as in :func:`info_nce`.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362), eqs. 2 and 3.
    Own denominators: Kim et al. 2021, "Self-Guided Contrastive Learning for BERT Sentence
    Representations" (arXiv 2106.07345), and pytorch-metric-learning's NTXentLoss.
    """
    temperature = temperature_or(scale, temperature, 0.1)
    (rows,) = matrices(embeddings=embeddings)
    label = checked_labels("labels", labels, rows)
    check.choice("sum_over_positives", sum_over_positives, ("out", "in"))
    n = rows.shape[0]
    every = check.flag("positives_in_denominator", positives_in_denominator)
    outside = sum_over_positives == "out"
    problem, operands = describe(
        rows,
        rows,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    found = classes(label)
    some = found.has_positive
    weight = shares(reduction, n, some)
    if every and outside:  # linear in the log-sum-exps

        def mean_positive(p: SimilarityProblem, o: Operands) -> Tensor:
            return mean_positive_logit(p, o, found)

        alone = one_set(problem, operands)
        if few(found.size - 1):
            index = others_of_class(found).T.to(torch.int64).contiguous()
            return softmax_ce(
                alone[0], alone[1]._replace(positives=index), shares(reduction, n), backend
            )
        positives = weighted_sum(problem, operands, mean_positive)
        if weight is None or n == 1:  # a single row has no candidate: log-sum-exp -inf
            losses = torch.where(some, row_lse(*alone, backend), 0.0) - positives
            return losses if weight is None else losses.sum()
        assert isinstance(weight, Tensor)
        weight = weight.to(operands.accumulation_dtype)
        none = torch.empty(n, 0, dtype=torch.int64, device=rows.device)
        total = softmax_ce(alone[0], alone[1]._replace(positives=none), weight, backend)
        return total - (weight * positives).sum()
    how = "log_sum" if every else ("mean_own" if outside else "log_sum_own")

    negatives = row_lses(*one_set(problem, operands, label), backend)
    losses = over_positives(how, problem, operands, found, negatives, weight, backend)
    if outside:
        return losses
    # The logarithm's mean over positives, where `over_positives` has their sum.
    spread = torch.where(some, (found.size - 1).clamp(min=1), 1).to(losses.dtype).log()
    return losses + reduced(spread, reduction, some) * sum(problem.prefix_weights or (1.0,))
