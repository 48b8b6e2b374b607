"""Triplet accuracy: how often an anchor is nearer to its positive than to its negative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from torch import Tensor

from ..engine import check
from .evaluator import Evaluator, Scores


def triplet_scores(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    similarity: str = "cosine",
    margin: float = 0.0,
) -> Scores:
    """Share of triplets whose positive is more similar than the negative by more than `margin`.

    Args:
        anchor, positive, negative: (N, D) embeddings, N >= 1; row by row a triplet.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        margin: in units of the similarity; equal counts as wrong.

    Returns:
        ``accuracy`` in [0, 1].

    Raises:
        ValueError: shapes that differ, no rows, or a margin that is no finite number.
    """
    check.matrix("anchor", anchor)
    if not (anchor.shape == positive.shape == negative.shape) or len(anchor) == 0:
        raise ValueError(
            f"positive, negative: got shapes {tuple(positive.shape)} and {tuple(negative.shape)}, "
            f"expected {tuple(anchor.shape)} as anchor, with at least one row"
        )
    margin = check.number("margin", margin)
    pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity)
    right = pairwise(anchor, positive) > pairwise(anchor, negative) + margin
    return {"accuracy": right.double().mean().item()}


class TripletEvaluator(Evaluator):
    """Accuracy on triplets of texts; the anchor is encoded as a query, the others as documents.

    Args:
        anchors, positives, negatives: texts, row by row a triplet.
        margin: see :func:`triplet_scores`.
        options: see :class:`Evaluator`.

    Scores: ``accuracy``.

    Raises:
        ValueError: numbers of texts that differ, or none.
    """

    def __init__(
        self,
        anchors: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[str],
        *,
        margin: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__("accuracy", **options)
        counts = (len(anchors), len(positives), len(negatives))
        if len(set(counts)) > 1 or not anchors:
            raise ValueError(
                f"anchors, positives, negatives: got {counts} texts, expected as many of each"
            )
        self.anchors, self.positives, self.negatives = anchors, positives, negatives
        self.margin = margin

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes positives and negatives together: a text may be both."""
        anchor = self.embed(model, self.anchors, "query")
        both = self.embed(model, [*self.positives, *self.negatives], "document")
        positive, negative = both.split(len(self.positives))
        similarity = self.similarity_of(model)
        return triplet_scores(anchor, positive, negative, similarity=similarity, margin=self.margin)
