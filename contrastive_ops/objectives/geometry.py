"""How embeddings lie on the sphere: alignment, uniformity, nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import one_set
from ..engine.reductions import row_lse
from ..engine.similarity import full_precision, unit_rows
from .arguments import (
    Number,
    Reduction,
    describe,
    matrices,
    pairs,
    reduced,
    row_ids,
    take_rows,
    wide,
    workspace,
)
from .arguments import labels as checked_labels
from .classes import classes
from .distance import squared_l2_factors
from .nearest import nearest_outside
from .triplet import distances


def alignment(
    x: Tensor,
    y: Tensor,
    *,
    alpha: Number = 2.0,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Alignment: :math:`\|x_i - y_i\|^\alpha` of positive pairs.

    Args:
        x, y: (N, D).
        alpha: > 0.
        normalize: whether rows are normalised first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere" (arXiv 2005.10242)
    """
    alpha = check.positive_number("alpha", alpha)
    x, y = (
        unit_rows(wide(r)) if check.flag("normalize", normalize) else wide(r)
        for r in pairs(x=x, y=y)
    )
    if alpha == 2:
        return reduced((x - y).square().sum(1), reduction)
    return reduced(distances(x, y, "l2") ** alpha, reduction)


def uniformity(
    x: Tensor,
    *,
    t: Number = 2.0,
    normalize: bool = True,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Uniformity: :math:`\log \frac{1}{N (N - 1)} \sum_{i \ne j} e^{-t \|x_i - x_j\|^2}`.

    A row reduction of the set against itself: 4 matrix products, no distances are held.

    Args:
        x: (N, D), N >= 2.
        t: > 0.
        normalize: whether rows are normalised first.
        backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: a single row, or as in :func:`info_nce`.

    Source: Wang and Isola 2020 (arXiv 2005.10242); Gao et al. 2021, "SimCSE"
    """
    (x,) = matrices(x=x)
    t = check.positive_number("t", t)
    n = x.shape[0]
    if n < 2:
        raise ValueError("x: got 1 row, expected at least 2: one makes no pair")
    x = unit_rows(wide(x)) if check.flag("normalize", normalize) else wide(x)
    query, key, _ = squared_l2_factors(x, x)
    problem, operands = describe(
        query,
        key,
        temperature=1 / t,
        normalize=False,
        ids=row_ids(n, x),
        workspace_bytes=workspace_bytes,
    )
    rows = row_lse(problem, operands, backend)
    return rows.logsumexp(0) - rows.new_full((), n * (n - 1)).log()


def ko_leo(
    x: Tensor,
    *,
    eps: Number = 1e-8,
    normalize: bool = True,
    reduction: Reduction = "mean",
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""KoLeo: :math:`-\log(\|x_i - x_{nn(i)}\| + \varepsilon)`, nn(i) the nearest other row.

    Half a matrix product finds the neighbours, without gradient; the rest is O(N D).

    Args:
        x: (N, D), N >= 2.
        eps: > 0.
        normalize: whether rows are normalised first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).
        workspace_bytes: 192 MiB by default.

    Raises:
        ValueError: a single row, or as in :func:`contrastive_ops.info_nce`.

    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search" (arXiv 1806.03198);
    eps as in DINOv2.
    """
    (x,) = matrices(x=x)
    eps = check.positive_number("eps", eps)
    n = x.shape[0]
    if n < 2:
        raise ValueError("x: got 1 row, expected at least 2: one has no neighbour")
    x = unit_rows(wide(x)) if check.flag("normalize", normalize) else wide(x)
    row = row_ids(n, x)
    nearest = nearest_outside(x.detach(), row, row + 1, workspace(workspace_bytes))
    return reduced(-torch.log(distances(x, take_rows(x, nearest), "l2") + eps), reduction)


def negative_lse(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Number | Tensor = 0.05,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""SetCSE's inter-set loss: :math:`\log \sum_{m \in S} \sum_{n \notin S} e^{s_{mn}/T}` a set.

    Negatives alone: sets are pushed apart. One set: 2 matrix products (4 without a kernel for one);
    no logits are held.

    Args:
        embeddings: (N, D).
        labels: (N,) int64, the set of each row; two sets at least.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        normalize, backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`.
        reduction: ``"mean"`` or ``"sum"`` over the sets, or ``"none"``: (sets,), by rising label.

    Raises:
        ValueError: a single set, or as in :func:`info_nce`.

    Source: Liu et al. 2024, "SetCSE" (arXiv 2404.17606)
    """
    (rows,) = matrices(embeddings=embeddings)
    label = checked_labels("labels", labels, rows)
    found = classes(label)
    sets = rows.shape[0]  # no more than that
    if check.readable(found.segment) or reduction == "none":
        sets = int(found.segment.max()) + 1
        if sets < 2:
            raise ValueError(f"labels: got {sets} set, expected at least 2")
    problem, operands = describe(
        rows,
        rows,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )
    lse = row_lse(*one_set(problem, operands, label), backend)
    # The log-sum-exp over each set's rows, relative to the largest.
    none = lse.new_full((sets,), -torch.inf)
    largest = none.scatter_reduce(0, found.segment, lse.detach(), "amax")
    shift = largest.masked_fill(largest == -torch.inf, 0.0)
    terms = (lse - shift[found.segment]).exp()
    sums = torch.zeros_like(none).index_put((found.segment,), terms, accumulate=True)
    there = sums != 0
    losses = torch.where(there, sums.masked_fill(~there, 1.0).log() + shift, 0.0)
    return reduced(losses, reduction, there)


def sliced_wasserstein(
    x: Tensor, prior: Tensor, *, directions: int | Tensor = 256, seed: int = 0
) -> Tensor:
    r"""Sliced 2-Wasserstein distance of a batch to a sample of a prior, squared.

    The mean over directions a of the mean squared difference of the sorted projections x a and z a.

    Args:
        x, prior: (N, D).
        directions: how many to draw from ``seed``, or (A, D) of them.
        seed: of the draw.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Chen et al. 2020, "Intriguing Properties of Contrastive Losses" (arXiv 2011.02803).
    """
    x, prior = (wide(r) for r in pairs(x=x, prior=prior))
    axes = unit_directions(directions, x, seed)
    with full_precision(x.device):
        ours, theirs = (x @ axes.T).sort(0).values, (prior @ axes.T).sort(0).values
    return (ours - theirs).square().mean()


def unit_directions(directions: int | Tensor, x: Tensor, seed: int) -> Tensor:
    """(A, D) unit rows: those given, or Gaussian ones drawn on the CPU, the same on any device."""
    if isinstance(directions, Tensor):
        check.matrix("directions", directions)
        if directions.shape[1] != x.shape[1] or directions.shape[0] < 1:
            raise ValueError(
                f"directions: got shape {tuple(directions.shape)}, expected (A, {x.shape[1]})"
            )
        return unit_rows(directions.detach().to(x))
    if isinstance(directions, bool) or not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions: got {directions!r}, expected an integer >= 1 or a tensor")
    return unit_rows(_drawn(directions, x.shape[1], seed)).to(x)


@torch.library.custom_op("contrastive_ops::drawn_directions", mutates_args=())
def _drawn(count: int, width: int, seed: int) -> Tensor:
    """An operator: a compiled graph makes no generators."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


@_drawn.register_fake
def _(count: int, width: int, seed: int) -> Tensor:
    return torch.empty(count, width, dtype=torch.float64)
