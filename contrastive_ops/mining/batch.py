"""In-batch miners, with the tuples of pytorch-metric-learning, in bounded memory.

A miner is called with ``embeddings`` (B, D) and integer ``labels`` (B,), and maybe a reference set
``ref_emb`` (M, D), ``ref_labels`` (M,) to pair them with. It returns index tensors: triplets
``(anchor, positive, negative)`` or pairs ``(anchor, positive, anchor, negative)``, which that
library's losses take as ``indices_tuple``. Positives and negatives are numbers of reference rows;
without a reference set a row is no positive of its own. Rows that hold NaN (for cosines: or an
infinity) are in no tuple. Nothing is differentiated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..engine import check
from ..engine.scores import pair_scores, prepared_rows
from ..engine.select import row_select
from ..engine.select_torch import merge
from ..engine.similarity import full_precision

Distance = Literal["euclidean", "cosine", "dot"]
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]
Tuples = TypeVar("Tuples", Pairs, Triplets)
_TILE = 1 << 21
"""Similarities at hand at once."""
_ANCHORS = 128
"""Anchors that meet the rows of their own classes together."""


class Batch(NamedTuple):
    """Prepared rows, so that similarities are products; ``own``: the reference set is the batch."""

    x: Tensor
    y: Tensor
    labels: Tensor
    ref_labels: Tensor
    own: bool
    broken: Tensor
    """Rows of y that hold NaN: nobody's positive, nobody's negative."""

    def rows(self) -> Iterator[slice]:
        """Blocks of anchors; none where there is nobody to meet."""
        if not len(self.y):
            return
        step = max(1, _TILE // max(1, len(self.y)))
        for start in range(0, len(self.x), step):
            yield slice(start, min(len(self.x), start + step))

    def negatives(self, rows: slice, left_out: float) -> Tensor:
        """(b, M) similarities, ``left_out`` where the label is the anchor's."""
        with full_precision(self.x.device):
            value = self.x[rows] @ self.y.T
        same = self.labels[rows, None] == self.ref_labels
        return value.masked_fill_(same, left_out).index_fill_(1, self.broken, left_out)

    def classes(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Blocks of anchors of neighbouring classes against the rows of these classes.

        (b,) anchors, (w,) rows, ascending within a class, (b, w) similarities, and which of them
        are of positive pairs.
        """
        order, ref_order = (ids.argsort(stable=True) for ids in (self.labels, self.ref_labels))
        labels, ref_labels = self.labels[order], self.ref_labels[ref_order]
        begins = torch.searchsorted(ref_labels, labels).tolist()
        ends = torch.searchsorted(ref_labels, labels, right=True).tolist()
        start = 0
        while start < len(order):
            stop = min(len(order), start + _ANCHORS)
            while stop > start + 1 and (stop - start) * (ends[stop - 1] - begins[start]) > _TILE:
                stop = (start + stop + 1) // 2
            anchor, row = order[start:stop], ref_order[begins[start] : ends[stop - 1]]
            with full_precision(self.x.device):
                value = self.x[anchor] @ self.y[row].T
            positive = self.labels[anchor, None] == self.ref_labels[row]
            positive &= ~value.isnan()
            if self.own:
                positive &= anchor[:, None] != row
            yield anchor, row, value, positive
            start = stop

    def positives(self) -> tuple[Tensor, Tensor, Tensor]:
        """(anchor, positive, similarity) of every positive pair, in order: O(pairs)."""
        none = self.labels.new_empty(0)
        parts = [(none, none, self.x.new_empty(0))]
        for anchor, row, value, positive in self.classes():
            i, j = positive.nonzero(as_tuple=True)
            parts.append((anchor[i], row[j], value[i, j]))
        anchors, rows, values = (torch.cat(each) for each in zip(*parts, strict=True))
        order = anchors.argsort(stable=True)
        return anchors[order], rows[order], values[order]


def _batch(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    normalize: bool,
) -> Batch:
    x = check.matrix("embeddings", embeddings).detach()
    labels = check.integers("labels", labels, ((len(x),),), x)
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_emb, ref_labels: got one of them, expected both or neither")
    rows, norms = prepared_rows(x, normalize)
    if ref_emb is None or ref_labels is None:
        return Batch(rows, rows, labels, labels, True, norms.isnan().nonzero()[:, 0])
    y = check.matrix("ref_emb", ref_emb).detach()
    check.same("ref_emb", y, "embeddings", x)
    ref_labels = check.integers("ref_labels", ref_labels, ((len(y),),), y)
    ref_rows, norms = prepared_rows(y, normalize)
    return Batch(rows, ref_rows, labels, ref_labels, False, norms.isnan().nonzero()[:, 0])


def _extreme(batch: Batch, easiest: bool) -> tuple[Tensor, Tensor]:
    """(B,) the most (or least) similar positive and its score; -1 and NaN where there is none.

    Products find who it may be; scores, as those of negatives, say who it is.
    """
    n, dim = batch.x.shape
    sign = 1 if easiest else -1
    index = torch.full((n, 1), -1, dtype=torch.int64, device=batch.x.device)
    best = torch.full((n, 1), -math.inf, dtype=batch.x.dtype, device=batch.x.device)
    x_norm, y_norm = (torch.linalg.vector_norm(rows, dim=1) for rows in (batch.x, batch.y))
    slack = 2 * (dim + 32) * torch.finfo(batch.x.dtype).eps * x_norm
    pairs: list[tuple[Tensor, Tensor]] = []
    room = max(1, _TILE // (2 * dim))

    def settle() -> None:
        a, p = (torch.cat(each) for each in zip(*pairs, strict=True))
        pairs.clear()
        for i, j in zip(a.split(room), p.split(room), strict=True):
            merge(i, j, sign * pair_scores(batch.x[i], batch.y[j], "dot"), best, index, None)

    for anchor, row, value, positive in batch.classes():
        if not value.shape[1]:
            continue
        value = (sign * value).masked_fill_(~positive, -math.inf)
        doubt = slack[anchor] * y_norm[row].amax()
        near = positive & ~(value < (value.amax(1) - doubt)[:, None])
        i, j = near.nonzero(as_tuple=True)
        pairs.append((anchor[i], row[j]))
        if sum(len(a) for a, _ in pairs) > 4 * room:
            settle()
    if pairs:
        settle()
    found = index[:, 0]
    return found, torch.where(found >= 0, sign * best[:, 0], math.nan)


def _nearest_negative(batch: Batch, upper: Tensor | None, backend: str | None) -> Tensor:
    """(B,) the most similar negative, at most as similar as ``upper``; -1 where there is none."""
    found = row_select(
        batch.x,
        batch.y,
        1,
        normalize=False,
        labels=(batch.labels, batch.ref_labels),
        upper=upper,
        backend=backend,
    )
    return found.indices[:, 0]


class _Miner(ABC, Generic[Tuples]):
    """What every miner is called with, in one place; ``normalize``: cosines instead of products."""

    normalize: bool = True

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tuples:
        """Tuples of a batch (B, D), (B,), or of it with a reference set (M, D), (M,)."""
        with torch.no_grad():
            return self.mine(_batch(embeddings, labels, ref_emb, ref_labels, self.normalize))

    @abstractmethod
    def mine(self, batch: Batch) -> Tuples:
        """Tuples of prepared rows."""


class _EasyHard(_Miner[Tuples]):
    """One positive and one negative for each anchor that has both."""

    def __init__(
        self,
        positive: Literal["hard", "easy"],
        negative: Literal["hard", "semihard"],
        normalize: bool,
        backend: str | None,
    ) -> None:
        check.choice("positive", positive, ("hard", "easy"))
        self.positive, self.negative = positive, negative
        self.normalize, self.backend = normalize, backend

    def one_of_each(self, batch: Batch) -> Triplets:
        """(anchor, positive, negative) of the anchors that have both."""
        positive, value = _extreme(batch, self.positive == "easy")
        upper = None
        if self.negative == "semihard":
            # Strictly further away than the positive.
            below = torch.nextafter(value, torch.full_like(value, -math.inf))
            upper = torch.where(value.isnan(), math.inf, below)
        negative = _nearest_negative(batch, upper, self.backend)
        anchor = ((positive >= 0) & (negative >= 0)).nonzero()[:, 0]
        return anchor, positive[anchor], negative[anchor]


class BatchHardMiner(_EasyHard[Triplets]):
    """The least similar positive and the most similar negative of each anchor: triplets.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss" (arXiv 1703.07737).

    Args:
        normalize: cosine similarity (whose order is that of the distance of unit rows) or products.
        backend: see :func:`contrastive_ops.backends`.
    """

    def __init__(self, *, normalize: bool = True, backend: str | None = None) -> None:
        super().__init__("hard", "hard", normalize, backend)

    def mine(self, batch: Batch) -> Triplets:
        """(anchor, positive, negative)."""
        return self.one_of_each(batch)


class SemiHardMiner(_EasyHard[Pairs]):
    """A positive, and the most similar negative that is less similar than it: pairs.

    Source: Schroff et al. 2015, "FaceNet" (arXiv 1503.03832).

    Args:
        positive: ``"easy"`` the most similar one, ``"hard"`` the least.
        normalize, backend: as for :class:`BatchHardMiner`.
    """

    def __init__(
        self,
        *,
        positive: Literal["hard", "easy"] = "easy",
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(positive, "semihard", normalize, backend)

    def mine(self, batch: Batch) -> Pairs:
        """(anchor, positive, anchor, negative)."""
        a, p, n = self.one_of_each(batch)
        return a, p, a, n


class EasyPositiveMiner(_EasyHard[Pairs]):
    """The most similar positive and the most similar negative: pairs.

    Source: Xuan et al. 2020, "Improved Embeddings with Easy Positive Triplet Mining"
    (arXiv 1904.04370).

    Args:
        normalize, backend: as for :class:`BatchHardMiner`.
    """

    def __init__(self, *, normalize: bool = True, backend: str | None = None) -> None:
        super().__init__("easy", "hard", normalize, backend)

    def mine(self, batch: Batch) -> Pairs:
        """(anchor, positive, anchor, negative)."""
        a, p, n = self.one_of_each(batch)
        return a, p, a, n


class _ByDistance(_Miner[Tuples]):
    """Miners whose rules have a margin in units of a distance."""

    def __init__(self, distance: Distance) -> None:
        check.choice("distance", distance, ("euclidean", "cosine", "dot"))
        self.distance = distance
        self.normalize = distance != "dot"

    def further(self, similarity: Tensor, by: float) -> Tensor:
        """The similarity of what is that much further away (euclidean: of unit rows)."""
        if self.distance != "euclidean":
            return similarity - by
        far = (2 - 2 * similarity).clamp(min=0).sqrt() + by
        # No product is below minus one; past it nothing is that far.
        return torch.where(far < 0, math.inf, 1 - far.square() / 2)

    def at(self, margin: float) -> float:
        """The similarity of what is ``margin`` away."""
        return 1 - margin * abs(margin) / 2 if self.distance == "euclidean" else margin


def _pairs_where(batch: Batch, keep: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
    """(anchor, negative) pairs that ``keep`` chooses from blocks of similarities."""
    none = batch.labels.new_empty(0)
    anchors, negatives = [none], [none]
    for rows in batch.rows():
        a, n = keep(batch.negatives(rows, -math.inf), rows).nonzero(as_tuple=True)
        anchors.append(a + rows.start)
        negatives.append(n)
    return torch.cat(anchors), torch.cat(negatives)


class PairMarginMiner(_ByDistance[Pairs]):
    """Positives further than a margin, negatives nearer than one: pairs.

    Args:
        pos_margin, neg_margin: Euclidean distances of unit rows; with ``"cosine"`` and ``"dot"``
            similarities, below and above which pairs are taken.
        distance: see above.
    """

    def __init__(
        self,
        pos_margin: float = 0.2,
        neg_margin: float = 0.8,
        *,
        distance: Distance = "euclidean",
    ) -> None:
        super().__init__(distance)
        self.pos_margin = check.number("pos_margin", pos_margin)
        self.neg_margin = check.number("neg_margin", neg_margin)

    def mine(self, batch: Batch) -> Pairs:
        a1, p, value = batch.positives()
        far = value < self.at(self.pos_margin)
        near = self.at(self.neg_margin)
        return a1[far], p[far], *_pairs_where(batch, lambda value, _: value > near)


class MultiSimilarityMiner(_ByDistance[Pairs]):
    """Negatives more similar than the least similar positive, positives less similar than the most
    similar negative, each within epsilon: pairs.

    Source: Wang et al. 2019, "Multi-Similarity Loss" (arXiv 1904.06627), eq. 11 and 12.

    Args:
        epsilon: how far beyond still counts.
        distance: ``"cosine"`` or ``"dot"``.
    """

    def __init__(
        self, epsilon: float = 0.1, *, distance: Literal["cosine", "dot"] = "cosine"
    ) -> None:
        check.choice("distance", distance, ("cosine", "dot"))
        super().__init__(distance)
        self.epsilon = check.number("epsilon", epsilon)

    def mine(self, batch: Batch) -> Pairs:
        a1, p, value = batch.positives()
        n = len(batch.x)
        least = value.new_full((n,), math.inf).scatter_reduce_(0, a1, value, "amin")
        most = value.new_full((n,), -math.inf)

        def keep(negatives: Tensor, rows: slice) -> Tensor:
            most[rows] = negatives.amax(1)
            return negatives + self.epsilon > least[rows, None]

        a2, negative = _pairs_where(batch, keep)
        hard = value - self.epsilon < most[a1]
        return a1[hard], p[hard], a2, negative


class AnyViolatorMiner(_ByDistance[Triplets]):
    """Every triplet whose negative is not further away than the positive by a margin.

    Args:
        margin: in units of the distance.
        distance: ``"euclidean"`` (of unit rows), ``"cosine"`` or ``"dot"``.
    """

    def __init__(self, margin: float = 0.2, *, distance: Distance = "euclidean") -> None:
        super().__init__(distance)
        self.margin = check.number("margin", margin)

    def mine(self, batch: Batch) -> Triplets:
        a, p, value = batch.positives()
        least = self.further(value, self.margin)
        begin = torch.searchsorted(a, torch.arange(len(batch.x) + 1, device=a.device))
        parts: list[Triplets] = []
        for rows in batch.rows():
            negatives = batch.negatives(rows, -math.inf)
            pairs = torch.arange(int(begin[rows.start]), int(begin[rows.stop]), device=a.device)
            for some in pairs.split(max(1, _TILE // max(1, len(batch.y)))):
                found = negatives[a[some] - rows.start] >= least[some, None]
                found &= negatives[a[some] - rows.start] > -math.inf
                pair, negative = found.nonzero(as_tuple=True)
                parts.append((a[some][pair], p[some][pair], negative))
        if not parts:
            return a, p, a
        anchor, positive, negative = (torch.cat(each) for each in zip(*parts, strict=True))
        return anchor, positive, negative


class DistanceWeightedMiner(_Miner[Triplets]):
    """A random negative for every positive pair, drawn inversely to how common its distance is.

    Source: Wu et al. 2017, "Sampling Matters in Deep Embedding Learning" (arXiv 1706.07567), eq. 4.

    Args:
        cutoff: distances (of unit rows) below count as this one.
        nonzero_loss_cutoff: negatives from this distance on are never drawn.
        generator: of the draws; torch's own by default.
    """

    def __init__(
        self,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.cutoff = check.positive_number("cutoff", cutoff)
        self.nonzero_loss_cutoff = check.positive_number("nonzero_loss_cutoff", nonzero_loss_cutoff)
        self.generator = generator

    def mine(self, batch: Batch) -> Triplets:
        a, p, _ = batch.positives()
        n = torch.full_like(p, -1)
        begin = torch.searchsorted(a, torch.arange(len(batch.x) + 1, device=a.device))
        for rows in batch.rows():
            weights = self._weights(batch.negatives(rows, -2.0), batch.x.shape[1])
            cumulative = weights.cumsum(1, dtype=torch.float64)
            some = slice(int(begin[rows.start]), int(begin[rows.stop]))
            row = a[some] - rows.start
            total = cumulative[:, -1][row]
            drawn = torch.rand(
                len(row), 1, dtype=total.dtype, device=total.device, generator=self.generator
            )
            for at in torch.arange(len(row), device=a.device).split(
                max(1, _TILE // max(1, len(batch.y)))
            ):
                target = drawn[at] * total[at, None]
                place = torch.searchsorted(cumulative[row[at]], target, right=True)[:, 0]
                place = place.clamp(max=len(batch.y) - 1)
                n[some][at] = torch.where(total[at] > 0, place, -1)
        found = n >= 0
        return a[found], p[found], n[found]

    def _weights(self, similarity: Tensor, dim: int) -> Tensor:
        """(b, M), each row's largest 1; 0 for what is never drawn."""
        square = (2 - 2 * similarity).clamp_(min=self.cutoff**2)
        never = (similarity == -2) | (square >= min(self.nonzero_loss_cutoff**2, 4.0))
        log_weight = square.log().mul_((2 - dim) / 2)
        log_weight -= torch.log1p(square.mul_(-0.25)).mul_((dim - 3) / 2)
        log_weight.masked_fill_(never, -math.inf)
        largest = log_weight.amax(1, keepdim=True)
        return log_weight.sub_(torch.where(largest.isinf(), 0.0, largest)).exp_()
