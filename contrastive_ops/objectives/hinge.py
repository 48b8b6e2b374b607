"""Hinges other than the triplet's: lifted structure, energy, band, tokens, given pairs; N-pair."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.reference import log_sum_exp
from ..engine.similarity import full_precision, unit_rows
from ..engine.stripes import (
    COPIES,
    STRIPE_BYTES,
    Tensors,
    counted_stripe_losses,
    row_loss,
    stripe_losses,
)
from .arguments import Number, Reduction, matrices, pairs, reduced, take_rows, wide, workspace
from .arguments import labels as checked_labels
from .classes import classes
from .info_nce import info_nce
from .triplet import Distance, distance_matrix, distances


def lifted_structure(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Number = 1.0,
    normalize: bool = False,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Lifted structured loss: each positive pair against the negatives of both its ends.

    .. math:: \frac{1}{2|P|} \sum_{(i,j) \in P} \max\Big(0,\; d_{ij} + \log\Big[
              \sum_{k: y_k \ne y_i} e^{m - d_{ik}} + \sum_{l: y_l \ne y_j} e^{m - d_{jl}}
              \Big]\Big)^2

    over unordered pairs, d Euclidean. Two passes over stripes of rows; the second only meets the
    rows' own classes.

    Args:
        embeddings: (N, D).
        labels: (N,) int64. 0 where no class has two rows.
        margin: m.
        normalize: whether rows are normalised first.
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding"
    (arXiv 1511.06452), eq. 4.
    """
    (rows,) = matrices(embeddings=embeddings)
    label = checked_labels("labels", labels, rows)
    margin = check.number("margin", margin)
    rows = wide(rows)
    rows = unit_rows(rows) if check.flag("normalize", normalize) else rows - rows.detach().mean(0)
    found = classes(label)
    rows = take_rows(rows, found.order)
    settings: dict[str, Any] = {"backend": backend, "workspace_bytes": workspace_bytes}
    negatives = stripe_losses(
        _negative_lse, (rows, found.first, found.end), (rows,), None, margin=margin, **settings
    )
    total = stripe_losses(
        _lifted_rows,
        (rows, negatives, found.first, found.end),
        (rows, negatives),
        1.0,
        **settings,
    )
    # Rows meet each pair from both its ends, so half the sum runs over the unordered pairs.
    ordered_pairs = (found.size - 1).sum().clamp(min=1)
    return total / (2 * ordered_pairs).to(total.dtype)


def n_pair(
    anchor: Tensor,
    positive: Tensor,
    *,
    l2_weight: Number = 0.0,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Multi-class N-pair loss, :math:`\log(1 + \sum_{j \ne i} e^{a_i p_j - a_i p_i})`.

    Args:
        anchor, positive: (N, D), one pair a class.
        l2_weight: adds this times the mean of :math:`(\|a_i\|^2 + \|p_i\|^2) / 2`.
        reduction, backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`, which this is
            with dot products and temperature 1.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective"
    (NeurIPS)
    """
    anchor, positive = pairs(anchor=anchor, positive=positive)
    weight = check.number("l2_weight", l2_weight, 0.0)
    loss = info_nce(
        anchor,
        positive,
        temperature=1.0,
        normalize=False,
        reduction=reduction,
        backend=backend,
        workspace_bytes=workspace_bytes,
    )
    if not weight:
        return loss
    squares = (wide(anchor).square().sum(1) + wide(positive).square().sum(1)) / 2
    return loss + weight * reduced(squares, reduction)


def energy_hinge(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    margin: Number = 0.2,
    normalize: bool = True,
    reduction: Reduction = "mean",
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""The hardest candidate within a margin: :math:`\max(0, m - s_{ii} + \max_{j} s_{ij})`.

    j runs over the other queries' keys and ``negatives``. One matrix product selects, without
    gradient; the rest is O(N D).

    Args:
        query, key: (N, D) and (M, D), M >= N, M + K >= 2.
        negatives: (K, D).
        margin: m, in units of the similarity.
        normalize: cosine if True, dot products if False.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).
        workspace_bytes: 192 MiB by default.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Jiang et al. 2022, "Improved Universal Sentence Embeddings with Prompt-based Contrastive
    Learning and Energy-based Learning" (arXiv 2203.06875)
    """
    if negatives is None:
        query, key = matrices(query=query, key=key)
        candidates = key
    else:
        query, key, negatives = matrices(query=query, key=key, negatives=negatives)
        candidates = torch.cat([key, negatives])
    n = query.shape[0]
    if key.shape[0] < n:
        raise ValueError(f"key: got {key.shape[0]} rows, expected at least {n} as in query")
    if candidates.shape[0] < 2:
        raise ValueError("key: got 1 row and no negatives, expected at least 2 candidates")
    margin = check.number("margin", margin)
    query, candidates = wide(query), wide(candidates)
    if check.flag("normalize", normalize):
        query, candidates = unit_rows(query), unit_rows(candidates)
    room = min(workspace(workspace_bytes) // COPIES, STRIPE_BYTES)
    step = max(1, room // (candidates.shape[0] * query.element_size()))
    hardest = []
    with torch.no_grad(), full_precision(query.device):
        for start in range(0, n, step):
            similarity = query[start : start + step] @ candidates.T
            rows = torch.arange(similarity.shape[0], device=query.device)
            similarity[rows, rows + start] = -torch.inf
            hardest.append(similarity.argmax(1))
    positive = (query * candidates[:n]).sum(1)
    negative = (query * take_rows(candidates, torch.cat(hardest))).sum(1)
    return reduced((margin - positive + negative).clamp(min=0.0), reduction)


def band_hinge(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    *,
    lower: Number = 0.1,
    upper: Number = 0.3,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Soft negatives held in a band: :math:`\max(0, \Delta + \alpha) + \max(0, -\Delta - \beta)`.

    :math:`\Delta_i = \cos(q_i, n_i) - \cos(q_i, k_i)`: the negative is to be less similar than the
    positive by at least alpha and at most beta.

    Args:
        query, key, negatives: (N, D) each.
        lower, upper: alpha and beta.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Wang et al. 2022, "SNCSE" (arXiv 2201.05979)
    """
    alpha, beta = check.number("lower", lower), check.number("upper", upper)
    rows = pairs(query=query, key=key, negatives=negatives)
    q, k, n = (unit_rows(wide(x)) for x in rows)
    gap = (q * n).sum(1) - (q * k).sum(1)
    return reduced((gap + alpha).clamp(min=0.0) + (-gap - beta).clamp(min=0.0), reduction)


def cluster_band_hinge(
    query: Tensor,
    key: Tensor,
    clusters: Tensor,
    *,
    lower: Number = 0.2,
    upper: Number = 0.5,
    reduction: Literal["mean", "sum"] = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""ClusterNS's bidirectional margin: pairs of one cluster, held below the positive in a band.

    :math:`\max(0, \Delta_{ij} + \alpha) + \max(0, -\Delta_{ij} - \beta)` summed over i != j of one
    cluster, :math:`\Delta_{ij} = \cos(q_i, k_j) - \cos(q_i, k_i)`; every other pair counts the
    constant of :math:`\Delta = 0`, as in the authors' code. ``"mean"`` divides by N^2.

    Args:
        query, key: (N, D).
        clusters: (N,) int64, the cluster of each pair.
        lower, upper: alpha and beta.
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Deng et al. 2023, "Clustering-Aware Negative Sampling for Unsupervised Sentence
    Representation" (arXiv 2305.09892), and the authors' code.
    """
    query, key = pairs(query=query, key=key)
    check.choice("reduction", reduction, ("mean", "sum"))
    alpha, beta = check.number("lower", lower), check.number("upper", upper)
    n = query.shape[0]
    found = classes(checked_labels("clusters", clusters, query))
    q, k = (take_rows(unit_rows(wide(x)), found.order) for x in (query, key))
    total = stripe_losses(
        _cluster_rows,
        (q, (q * k).sum(1), found.first, found.end),
        (k,),
        1.0,
        backend=backend,
        workspace_bytes=workspace_bytes,
        alpha=alpha,
        beta=beta,
    )
    others = n * n - (found.size - 1).sum().to(total.dtype)
    total = total + others * (max(0.0, alpha) + max(0.0, -beta))
    return total / n**2 if reduction == "mean" else total


def token_hinge(
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    margin: Number = 0.5,
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""SimCTG: tokens of one sequence are to be dissimilar,
    :math:`\max(0, \rho - 1 + \cos(h_i, h_j))`, the mean over i != j of all sequences.

    Some sequences at a time: the B x L x L similarities are not held together.

    Args:
        tokens: (B, L, D) hidden states.
        mask: (B, L), true or 1 where there is a token; None: everywhere.
        margin: rho.
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation"
    (arXiv 2202.06417)
    """
    check.matrix("tokens", tokens, (3,))
    if 0 in tokens.shape:
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected no empty dimension")
    margin = check.number("margin", margin)
    batch, length, _ = tokens.shape
    valid = tokens.new_ones(batch, length, dtype=torch.bool)
    if mask is not None:
        check.shaped("mask", check.tensor("mask", mask), ((batch, length),), tokens)
        valid = mask.to(torch.bool)
    total, count = counted_stripe_losses(
        _token_rows,
        (unit_rows(wide(tokens)), valid),
        (),
        1.0,
        backend=backend,
        workspace_bytes=workspace_bytes,
        width=length * length,
        margin=margin,
    )
    return total / count.sum().clamp(min=1).to(total.dtype)


def pair_contrastive(
    query: Tensor,
    key: Tensor,
    targets: Tensor,
    *,
    margin: Number = 0.5,
    distance: Distance = "cosine",
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Contrastive loss of given pairs, :math:`\tfrac12 [y d^2 + (1 - y) \max(0, m - d)^2]`.

    Args:
        query, key: (N, D).
        targets: y, (N,), 1 for pairs that belong together, not differentiated.
        margin: m.
        distance: d: 1 - cosine, Euclidean, or squared Euclidean.
        normalize: whether rows are normalised first; ``"cosine"`` always is.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping" (CVPR).
    """
    check.choice("distance", distance, ("sq_l2", "l2", "cosine"))
    margin = check.number("margin", margin)
    query, key = (wide(x) for x in pairs(query=query, key=key))
    target = check.tensor("targets", targets)
    check.shaped("targets", target, ((query.shape[0],),), query)
    y = target.detach().to(query.dtype)
    if check.flag("normalize", normalize) or distance == "cosine":
        query, key = unit_rows(query), unit_rows(key)
    d = distances(query, key, distance)
    losses = (y * d.square() + (1 - y) * (margin - d).clamp(min=0.0).square()) / 2
    return reduced(losses, reduction)


@row_loss
def _negative_lse(rows: Tensors, shared: Tensors, start: int, **options: Any) -> Tensor:
    x, first, end = rows
    (y,) = shared
    assert x is not None
    assert first is not None
    assert end is not None
    assert y is not None
    column = torch.arange(y.shape[0], device=y.device)
    same = (column >= first.unsqueeze(1)) & (column < end.unsqueeze(1))
    logits = options["margin"] - distance_matrix(x, y, "l2")
    return log_sum_exp(logits.masked_fill(same, -torch.inf))


@row_loss
def _lifted_rows(rows: Tensors, shared: Tensors, start: int, **_: Any) -> Tensor:
    x, of_row, first, end = rows
    y, of_column = shared
    assert x is not None
    assert of_row is not None
    assert first is not None
    assert end is not None
    assert y is not None
    assert of_column is not None
    low, column, positive = _within(x, first, end, start)
    d = distance_matrix(x, y[low : low + column.shape[0]], "l2")
    # Without any negative the logarithm is -inf, and so is the hinge's argument.
    some = of_row != -torch.inf
    ends = torch.logaddexp(
        torch.where(some, of_row, 0.0).unsqueeze(1), of_column[low : low + column.shape[0]]
    )
    hinge = (d + ends).clamp(min=0.0).square()
    return torch.where(positive & some.unsqueeze(1), hinge, 0.0).sum(1)


@row_loss
def _cluster_rows(rows: Tensors, shared: Tensors, start: int, **options: Any) -> Tensor:
    q, own, first, end = rows
    (k,) = shared
    assert q is not None
    assert own is not None
    assert first is not None
    assert end is not None
    assert k is not None
    low, column, same = _within(q, first, end, start)
    gap = q @ k[low : low + column.shape[0]].T - own.unsqueeze(1)
    band = (gap + options["alpha"]).clamp(min=0.0) + (-gap - options["beta"]).clamp(min=0.0)
    return torch.where(same, band, 0.0).sum(1)


@row_loss
def _token_rows(
    rows: Tensors, shared: Tensors, start: int, **options: Any
) -> tuple[Tensor, Tensor]:
    h, valid = rows
    assert h is not None
    assert valid is not None
    similarity = torch.bmm(h, h.transpose(1, 2))
    both = valid.unsqueeze(1) & valid.unsqueeze(2)
    both = both & ~torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
    hinge = (options["margin"] - 1 + similarity).clamp(min=0.0)
    return torch.where(both, hinge, 0.0).sum((1, 2)), both.sum((1, 2)).unsqueeze(1)


def _within(x: Tensor, first: Tensor, end: Tensor, start: int) -> tuple[int, Tensor, Tensor]:
    """The columns that a stripe's classes span, and where they are of a row's class, not itself."""
    low, high = int(first[0]), int(end[-1])
    column = torch.arange(low, high, device=x.device)
    row = torch.arange(start, start + x.shape[0], device=x.device).unsqueeze(1)
    same = (column >= first.unsqueeze(1)) & (column < end.unsqueeze(1)) & (column != row)
    return low, column, same
