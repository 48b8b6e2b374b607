"""Two views whose positive stays out of the denominator, or whose negatives are corrected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, one_set
from ..engine.reductions import row_lse, row_lses, score_sum
from .arguments import Number, Reduction, describe, divisor, pairs, reduced, row_ids, softplus
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes


def decoupled_nce(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: Number | Tensor = 0.1,
    positive_weight_width: Number | None = None,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Decoupled contrastive loss (DCL): NT-Xent without the positive in its denominator.

    .. math:: L_i = -w_i s_{ip}/T + \log \sum_{a \notin \{i, p\}} e^{s_{ia}/T}

    over the 2 N rows of both views. One set: 2 matrix products (4 without a kernel for one); no
    logits are held.

    Args:
        view_a, view_b: (N, D), N >= 2.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        positive_weight_width: None: w = 1 (DCL). A number sigma: the von Mises-Fisher weight (DCLW)
            w = 2 - e^{s/sigma} / mean e^{s/sigma} over the N pairs, not differentiated.
        matryoshka_dims, matryoshka_weights, normalize, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.
        reduction: ``"mean"`` or ``"sum"`` over the 2 N rows, or ``"none"``, (2 N,).

    Returns:
        0-dim, or (2 N,): float32, float64 for float64 inputs. It may be negative.

    Raises:
        ValueError: a single pair, which has no negatives, or as in :func:`info_nce`.

    Source: Yeh et al. 2022, "Decoupled Contrastive Learning" (arXiv 2110.06848)
    """
    width = None
    if positive_weight_width is not None:
        width = check.positive_number("positive_weight_width", positive_weight_width)
    problem, operands, sample, other = _two_views(
        view_a, view_b, temperature, normalize, workspace_bytes
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)

    def weighted_positives(p: SimilarityProblem, o: Operands) -> Tensor:
        positives = score_sum(p, o, other)
        if width is None:
            return positives
        n = positives.shape[0] // 2
        similarity = (positives[:n] * _temperature(temperature, positives)).detach()
        weight = 2 - n * torch.softmax(similarity / width, 0)
        return positives * weight.repeat(2)

    losses = row_lse(*one_set(problem, operands, sample), backend)
    return reduced(losses - weighted_sum(problem, operands, weighted_positives), reduction)


def debiased_nce(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: Number | Tensor = 0.5,
    positive_prior: Number = 0.1,
    hardness: Number = 0.0,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Debiased contrastive loss, with importance weights for hard negatives on request.

    .. math:: L_i = -\log \frac{e^{s_{ip}/T}}{e^{s_{ip}/T} + G_i} \qquad
              G_i = \max\left(\frac{R_i - \tau^+ n\, e^{s_{ip}/T}}{1 - \tau^+},
                              n\, e^{-1/T}\right)

    over the 2 N rows of both views, n = 2 N - 2 negatives a row, and :math:`R_i = n \sum_a
    e^{(1 + \beta) s_{ia}/T} / \sum_a e^{\beta s_{ia}/T}`, which is their plain sum for
    :math:`\beta = 0`. One set: 2 matrix products (4 without a kernel for one), twice that with
    ``hardness``; no logits are held.

    Args:
        view_a, view_b: (N, D), N >= 2.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        positive_prior: tau+ in [0, 1), the share of negatives that are positives in truth.
        hardness: beta >= 0; the weights are differentiated, as in the authors' code.
        matryoshka_dims, matryoshka_weights: as in :func:`contrastive_ops.info_nce`.
        normalize: cosine similarity; with dot products the floor e^{-1/T} is the authors' all the
            same.
        reduction: ``"mean"`` or ``"sum"`` over the 2 N rows, or ``"none"``, (2 N,).
        backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Returns:
        0-dim, or (2 N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: a single pair, which has no negatives, or as in :func:`info_nce`.

    Source: Chuang et al. 2020, "Debiased Contrastive Learning" (arXiv 2007.00224); Robinson
    et al. 2021, "Contrastive Learning with Hard Negative Samples" (arXiv 2010.04592).
    """
    prior = check.number("positive_prior", positive_prior, 0.0, 1.0)
    if prior == 1.0:
        raise ValueError(f"positive_prior: got {positive_prior!r}, expected a number in [0, 1)")
    beta = check.number("hardness", hardness, 0.0)
    problem, operands, sample, other = _two_views(
        view_a, view_b, temperature, normalize, workspace_bytes
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    count = math.log(operands.query.shape[0] - 2)

    def lses(factor: float) -> Tensor:
        sharper = _sharper(problem, operands, factor) if beta else (problem, operands)
        return row_lses(*one_set(*sharper, sample), backend)

    negatives = count + lses(1 + beta) - lses(beta) if beta else lses(1.0)

    def losses(p: SimilarityProblem, o: Operands, negatives: Tensor) -> Tensor:
        positives = score_sum(p, o, other)
        # Everything relative to the positive: log G - s_p, the difference taken where it is > 0.
        excess = negatives - positives
        if prior:
            share = math.log(prior) + count
            above = excess > share
            safe = torch.where(above, excess, share + 1.0)
            excess = safe + torch.log(-torch.expm1(share - safe)) - math.log1p(-prior)
            excess = torch.where(above, excess, -torch.inf)
        floor = count - 1 / _temperature(temperature, positives) - positives
        return softplus(torch.maximum(excess, floor))

    return reduced(weighted_sum(problem, operands, losses, negatives), reduction)


def _two_views(
    view_a: Tensor,
    view_b: Tensor,
    temperature: Number | Tensor,
    normalize: bool,
    workspace_bytes: int | None,
) -> tuple[SimilarityProblem, Operands, Tensor, Tensor]:
    """Both views' 2 N rows, the sample of each, and (2 N, 1) where its positive is."""
    view_a, view_b = pairs(view_a=view_a, view_b=view_b)
    n = view_a.shape[0]
    if n < 2:
        raise ValueError("view_a: got 1 row, expected at least 2: a single pair has no negatives")
    rows = torch.cat([view_a, view_b])
    sample = row_ids(n, rows)
    problem, operands = describe(
        rows,
        rows,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )
    other = torch.cat([sample + n, sample]).unsqueeze(1)
    return problem, operands, sample.repeat(2), other


def _temperature(temperature: Number | Tensor, like: Tensor) -> Tensor | float:
    scale, tensor = divisor(temperature, like)
    return 1 / scale if tensor is None else tensor.to(like.dtype)


def _sharper(
    problem: SimilarityProblem, operands: Operands, factor: float
) -> tuple[SimilarityProblem, Operands]:
    """The same with all logits times ``factor``."""
    if operands.temperature is None:
        return problem._replace(scale=problem.scale * factor), operands
    wide = operands.temperature.to(operands.accumulation_dtype)
    return problem, operands._replace(temperature=wide / factor)
