"""Triplet losses: triplets given, or mined from a labelled set without any list of them.

A mined loss is linear in the distances: every mining rule only says how often each distance counts,
positively or negatively. So a stripe of anchors needs its rows of distances and a matrix of integer
coefficients, whatever the rule; with the thresholds of an anchor's positives sorted, all its
triplets are counted by where its negatives fall among them. Nothing of size N^3 exists.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check, neighbours
from ..engine.similarity import unit_rows
from ..engine.stripes import Tensors, counted_stripe_losses, row_loss
from .arguments import (
    Number,
    Reduction,
    matrices,
    pairs,
    reduced,
    softplus,
    take_rows,
    wide,
    workspace,
)
from .arguments import labels as checked_labels
from .classes import Classes, classes, others_of_class
from .nearest import extreme_within, nearest_outside

MOST = 65
"""Rows of a class up to which semi-hard negatives are found by half a product: a comparison for
each positive and similarity."""

Distance = Literal["sq_l2", "l2", "cosine"]
Mining = Literal["all", "hard", "semi-hard", "easy", "violator"]


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Number | Literal["soft"] = 0.2,
    mining: Mining = "semi-hard",
    distance: Distance = "sq_l2",
    normalize: bool = True,
    seed: int = 0,
    reduction: Literal["mean", "nonzero", "sum"] = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Triplet loss over a labelled set: :math:`\max(0, d_{ap} - d_{an} + m)`.

    p and n run over rows of the anchor's class (other than the anchor) and of other classes:

    * ``"all"``: every triplet.
    * ``"hard"``: for each anchor its farthest positive and its nearest negative.
    * ``"semi-hard"``: for each (a, p) the nearest negative farther than p; where none is, the
      farthest negative (the rule of TensorFlow Addons and sentence-transformers).
    * ``"easy"``: for each anchor its nearest positive and its nearest negative.
    * ``"violator"``: for each (a, p) one negative drawn from those with a positive loss, as in the
      popular FaceNet port; pairs without one are dropped.

    ``"hard"`` and ``"easy"``, and on backend ``"cpu"`` with classes of at most 65 rows
    ``"semi-hard"``, select with half a matrix product (distances are symmetric) and differentiate
    O(D) a triplet; the others take 3 products a stripe of anchors at a time, with O(log P) a pair
    besides, P positives an anchor. Memory beyond inputs and gradients is O(N D), or O(N P) for
    semi-hard triplets, plus ``workspace_bytes``. Of negatives at equal distances the first has the
    gradient; they share it under ``"semi-hard"`` where that takes 3 products. A negative that is as
    far as the positive but for rounding may count as farther or not.

    Args:
        embeddings: (N, D).
        labels: (N,) int64. Anchors without a positive or without a negative have no triplets.
        margin: m, in units of the distance, or ``"soft"``: log(1 + e^{d_ap - d_an}), for ``"hard"``
            and ``"easy"`` only.
        mining: see above.
        distance: squared Euclidean (FaceNet), Euclidean, or 1 - cosine.
        normalize: whether rows are normalised first; ``"cosine"`` needs True.
        seed: of ``"violator"``: the same draw for the same seed, whatever the stripes.
        reduction: ``"mean"`` over the selected triplets, ``"nonzero"`` over those with a positive
            loss, or ``"sum"``. 0 where there are none.
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Returns:
        0-dim: float32, float64 for float64 inputs.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Schroff et al. 2015, "FaceNet" (arXiv 1503.03832); Hermans et al. 2017, "In
    Defense of the Triplet Loss" (arXiv 1703.07737); easy positives: Xuan et al. 2020
    (arXiv 1904.04370).
    """
    (rows,) = matrices(embeddings=embeddings)
    label = checked_labels("labels", labels, rows)
    check.choice("mining", mining, ("all", "hard", "semi-hard", "easy", "violator"))
    check.choice("distance", distance, ("sq_l2", "l2", "cosine"))
    check.choice("reduction", reduction, ("mean", "nonzero", "sum"))
    selecting = mining in ("hard", "easy")
    if margin == "soft":
        if not selecting:
            raise ValueError(f"margin: got 'soft' with mining={mining!r}, expected a number")
        if reduction == "nonzero":
            raise ValueError("reduction: got 'nonzero' with margin='soft', expected another")
    else:
        margin = check.number("margin", margin)
    rows = _distance_rows(rows, distance, normalize)
    found = classes(label)
    room = workspace(workspace_bytes)
    on_kernels = neighbours.available(rows, backend)
    if on_kernels and (selecting or (mining == "semi-hard" and int(found.size.max()) <= MOST)):
        anchor, near, far = _triplets(rows.detach(), found, mining, distance, room)
        losses = _hinge(*_pair_distances(rows, anchor, near, far, distance), margin)
        # What is chosen was compared, and NaN by no comparison is.
        total = losses.sum() + rows.detach().sum() * 0.0
        some = losses.detach() > 0
        amount = some.sum() if reduction == "nonzero" else total.new_tensor(anchor.numel())
    elif selecting:
        ordered = rows.detach()[found.order]
        spans = (ordered, found.first, found.end)
        cosine = distance == "cosine"
        near = extreme_within(*spans, mining == "hard", room, cosine=cosine)
        far = nearest_outside(*spans, room, backend, cosine=cosine)
        # From sorted places back to the rows as given.
        partner = torch.empty_like(near), torch.empty_like(far)
        partner[0][found.order], partner[1][found.order] = found.order[near], found.order[far]
        losses = _hinge(
            distances(rows, take_rows(rows, partner[0]), distance),
            distances(rows, take_rows(rows, partner[1]), distance),
            margin,
        )
        some = (found.size > 1) & (found.size < rows.shape[0])
        losses = torch.where(some, losses, 0.0)
        count = some if reduction == "mean" else losses.detach() > 0
        total, amount = losses.sum(), count.sum()
    else:
        rows = take_rows(rows, found.order)
        total, counts = counted_stripe_losses(
            _mined_rows,
            (rows, found.first, found.end),
            (rows,),
            1.0,
            counts=2,
            backend=backend,
            workspace_bytes=workspace_bytes,
            mining=mining,
            margin=margin,
            distance=distance,
            seed=seed,
        )
        amount = counts[:, 0 if reduction == "mean" else 1].sum()
    return total if reduction == "sum" else total / amount.clamp(min=1).to(total.dtype)


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: Number | Literal["soft"] = 1.0,
    distance: Distance | Literal["dot"] = "l2",
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Given triplets: :math:`\max(0, d(a_i, p_i) - d(a_i, n_i) + m)`, O(N D).

    Args:
        anchor, positive, negative: (N, D) each.
        margin: m, in units of the distance (5 in Phrase-BERT, on raw rows), or ``"soft"``.
        distance: Euclidean, squared Euclidean, 1 - cosine, or minus the dot product.
        normalize: whether rows are normalised first; ``"cosine"`` always is.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Reimers and Gurevych 2019 (arXiv 1908.10084); Schroff et al. 2015
    (arXiv 1503.03832) (squared, normalised).
    """
    check.choice("distance", distance, ("sq_l2", "l2", "cosine", "dot"))
    if margin != "soft":
        margin = check.number("margin", margin)
    rows = pairs(anchor=anchor, positive=positive, negative=negative)
    a, p, n = (
        unit_rows(wide(x))
        if check.flag("normalize", normalize) or distance == "cosine"
        else wide(x)
        for x in rows
    )
    return reduced(_hinge(distances(a, p, distance), distances(a, n, distance), margin), reduction)


def distances(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """(N,) distance of matching rows, with gradient 0 where they are equal."""
    if distance == "cosine":
        return 1 - (x * y).sum(1)
    if distance == "dot":
        return -(x * y).sum(1)
    squares = (x - y).square().sum(1)
    return squares if distance == "sq_l2" else _root(squares)


def distance_matrix(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """(R, M) distances by a matrix product."""
    if distance == "cosine":
        return 1 - x @ y.T
    squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2.0) + x.square().sum(1, keepdim=True)
    squares = squares.clamp(min=0.0)
    return squares if distance == "sq_l2" else _root(squares)


def _triplets(
    rows: Tensor, c: Classes, mining: str, distance: str, room: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(E,) anchors, positives and negatives, of the anchors that have both."""
    n = rows.shape[0]
    label = c.segment.to(torch.int32)
    closest = partial(
        neighbours.closest_of_another_label,
        rows,
        label,
        cosine=distance == "cosine",
        workspace_bytes=room,
    )
    both = (c.size > 1) & (c.size < n)
    if mining == "semi-hard":
        bound = others_of_class(c)
        found, farthest = closest(bound)
        assert farthest is not None
        far = torch.where(found >= 0, found, farthest)
        anchor, slot = ((bound >= 0) & both).T.nonzero(as_tuple=True)  # by anchor, then positive
        return anchor, bound[slot, anchor].long(), far[slot, anchor].clamp(min=0).long()
    if int(c.size.max()) <= MOST:
        near = _extreme(rows, others_of_class(c), mining == "hard", distance)
    else:
        ordered = extreme_within(
            rows[c.order],
            c.first,
            c.end,
            mining == "hard",
            room,
            cosine=distance == "cosine",
        )
        near = torch.empty_like(ordered)
        near[c.order] = c.order[ordered]
    anchor = both.nonzero().squeeze(1)
    return anchor, near[anchor], closest()[0][0, anchor].clamp(min=0).long()


def _extreme(rows: Tensor, others: Tensor, farthest: bool, distance: str) -> Tensor:
    """(N,) the farthest (or nearest) of each row's others, the first of equals; itself if none."""
    n = rows.shape[0]
    own = torch.arange(n)
    other = torch.where(others >= 0, others.long(), own)
    d, _ = _pair_distances(rows, own.repeat(len(other)), other.reshape(-1), own[:0], distance)
    d = d.view(other.shape).masked_fill(others < 0, -torch.inf if farthest else torch.inf)
    slot = d.argmax(0) if farthest else d.argmin(0)
    return other.gather(0, slot.unsqueeze(0)).squeeze(0)


def _pair_distances(
    rows: Tensor, anchor: Tensor, near: Tensor, far: Tensor, distance: str
) -> tuple[Tensor, Tensor]:
    """(E,) distances from the anchors to near and far."""
    left, right = torch.cat([anchor, anchor[: far.numel()]]), torch.cat([near, far])
    squares = neighbours.squared_distances(rows, left, right)
    if distance == "l2":
        squares = _root(squares)
    elif distance == "cosine":
        # 1 - <x, y>, also of zero rows.
        norms = rows.square().sum(1)
        squares = squares / 2 + (1 - (take_rows(norms, left) + take_rows(norms, right)) / 2)
    return squares[: near.numel()], squares[near.numel() :]


def _distance_rows(rows: Tensor, distance: str, normalize: bool) -> Tensor:
    rows = wide(rows)
    if check.flag("normalize", normalize):
        return unit_rows(rows)
    if distance == "cosine":
        raise ValueError("normalize: got False with distance='cosine', expected True")
    return rows - rows.detach().mean(0)  # changes no distance and steadies the products


def _root(squares: Tensor) -> Tensor:
    equal = squares <= 0
    return squares.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0)


def _hinge(near: Tensor, far: Tensor, margin: float | str) -> Tensor:
    if isinstance(margin, str):
        return softplus(near - far)
    return (near - far + margin).clamp(min=0.0)


def _own_class(first: Tensor, end: Tensor, own: Tensor) -> Tensor:
    """(R, P + 1) columns of each row's class; the row itself stands for what is too many."""
    width = int((end - first).max())
    column = first.unsqueeze(1) + torch.arange(width, device=first.device)
    return torch.where(column < end.unsqueeze(1), column, own.unsqueeze(1))


@row_loss
def _mined_rows(
    rows: Tensors, shared: Tensors, start: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """Each anchor's sum of losses; how many triplets were selected, and with a positive loss."""
    x, first, end = rows
    (y,) = shared
    assert x is not None
    assert first is not None
    assert end is not None
    assert y is not None
    d = distance_matrix(x, y, options["distance"])
    with torch.no_grad():
        own = torch.arange(start, start + x.shape[0], device=x.device)
        column = _own_class(first, end, own)
        coefficient, selected, active = _RULES[options["mining"]](
            d.detach(),
            column,
            column == own.unsqueeze(1),
            options["margin"],
            int(options["seed"]),
            own,
        )
    losses = (coefficient * d).sum(1) + options["margin"] * active
    return losses, torch.stack([selected, active], 1)


Counted = tuple[Tensor, Tensor, Tensor]
"""Coefficients (R, N) of the distances; how many triplets were selected and active, (R,) each."""


def _every_triplet(
    d: Tensor, column: Tensor, absent: Tensor, margin: float, seed: int, own: Tensor
) -> Counted:
    limit, order = (d.gather(1, column) + margin).masked_fill_(absent, torch.inf).sort(1)
    apart = d.scatter(1, column, torch.inf)
    # A triplet counts where the negative is below the positive's limit: by how many limits it
    # passes, each negative's coefficient; by how many negatives passed less, each positive's.
    passed = torch.searchsorted(limit, apart, right=True)
    positives = (~absent).sum(1, keepdim=True)
    below = torch.zeros_like(limit, dtype=torch.int64)
    histogram = torch.zeros(d.shape[0], limit.shape[1] + 1, dtype=torch.int64, device=d.device)
    histogram.scatter_add_(1, passed, (apart < torch.inf).to(torch.int64))
    below = histogram.cumsum(1)[:, :-1] * (limit < torch.inf)
    coefficient = (passed - positives).clamp_(max=0).to(d.dtype)
    coefficient.masked_fill_(apart == torch.inf, 0.0)
    coefficient.scatter_add_(1, column.gather(1, order), below.to(d.dtype))
    active = below.sum(1)
    selected = positives.squeeze(1) * (apart < torch.inf).sum(1)
    return coefficient, selected.to(d.dtype), active.to(d.dtype)


def _semi_hard(
    d: Tensor, column: Tensor, absent: Tensor, margin: float, seed: int, own: Tensor
) -> Counted:
    near, order = d.gather(1, column).masked_fill_(absent, torch.inf).sort(1)
    apart = d.scatter(1, column, torch.inf)
    width = near.shape[1]
    # Negatives between two neighbouring positives form a bin, of which only the nearest counts.
    bin_of = torch.searchsorted(near, apart)
    nearest = torch.full((d.shape[0], width + 1), torch.inf, dtype=d.dtype, device=d.device)
    nearest.scatter_reduce_(1, bin_of.clamp_(max=width), apart, "amin")
    least, which = _from_the_right(nearest)
    least, which = least[:, 1:], which[:, 1:]  # bins beyond the positive's own
    farthest = apart.masked_fill(apart == torch.inf, -torch.inf).amax(1, keepdim=True)
    fallback = least == torch.inf
    given = (near < torch.inf) & (farthest > -torch.inf)
    value = torch.where(fallback, farthest, least)
    active = given & (near - value + margin > 0)
    weight = torch.zeros_like(nearest).scatter_add_(1, which, (active & ~fallback).to(d.dtype))
    hit = (apart == nearest.gather(1, bin_of)) & (apart < torch.inf)
    coefficient = -_shared(hit, weight, bin_of)
    at_farthest = (apart == farthest).to(d.dtype)
    far_weight = (active & fallback).sum(1, keepdim=True).to(d.dtype)
    coefficient -= at_farthest * (far_weight / at_farthest.sum(1, keepdim=True).clamp(min=1))
    coefficient.scatter_add_(1, column.gather(1, order), active.to(d.dtype))
    return coefficient, given.sum(1).to(d.dtype), active.sum(1).to(d.dtype)


def _violator(
    d: Tensor, column: Tensor, absent: Tensor, margin: float, seed: int, own: Tensor
) -> Counted:
    limit, order = (d.gather(1, column) + margin).masked_fill_(absent, torch.inf).sort(1)
    apart = d.scatter(1, column, torch.inf)
    width = limit.shape[1]
    bin_of = torch.searchsorted(limit, apart, right=True).clamp_(max=width)
    # The violator of least random priority, of all that pass fewer limits than the positive's.
    priority = _priorities(own, d.shape[1], seed)
    last = torch.iinfo(torch.int64).max
    priority.masked_fill_(apart == torch.inf, last)
    first = torch.full((d.shape[0], width + 1), last, device=d.device)
    first.scatter_reduce_(1, bin_of, priority, "amin")
    least, which = first.cummin(1)
    active = (limit < torch.inf) & (least[:, :-1] < last)
    weight = torch.zeros(d.shape[0], width + 1, dtype=d.dtype, device=d.device)
    weight.scatter_add_(1, which[:, :-1], active.to(d.dtype))
    hit = (priority == first.gather(1, bin_of)) & (priority < last)
    coefficient = -_shared(hit, weight, bin_of)
    coefficient.scatter_add_(1, column.gather(1, order), active.to(d.dtype))
    count = active.sum(1).to(d.dtype)
    return coefficient, count, count


_RULES = {"all": _every_triplet, "semi-hard": _semi_hard, "violator": _violator}


def _from_the_right(bins: Tensor) -> tuple[Tensor, Tensor]:
    """Least value of each bin and those after it, and which bin has it."""
    values, which = bins.flip(1).cummin(1)
    return values.flip(1), bins.shape[1] - 1 - which.flip(1)


def _shared(hit: Tensor, weight: Tensor, bin_of: Tensor) -> Tensor:
    """(R, N): each bin's weight, divided among its hits."""
    hits = hit.to(weight.dtype)
    ties = torch.zeros_like(weight).scatter_add_(1, bin_of, hits).clamp_(min=1)
    return (weight / ties).gather(1, bin_of) * hits


def _priorities(row: Tensor, columns: int, seed: int) -> Tensor:
    """(R, N) distinct pseudo-random int64 >= 0 in each row, functions of (row, column, seed)."""
    column = torch.arange(columns, device=row.device)
    x = row.unsqueeze(1) * 0x9E3779B1 + column * 0x85EBCA77 + (seed % (1 << 31)) * 0xC2B2AE3D
    for factor in (0x2C1B3C6D, 0x297A2D39):
        x = ((x ^ (x >> 15)) & 0xFFFFFFFF) * factor
    return ((x ^ (x >> 16)) & 0x3FFFFFFF) * columns + column
