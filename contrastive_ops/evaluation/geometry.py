"""How the embeddings lie in their space, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ..engine.similarity import unit_rows
from ..objectives.decorrelation import effective_rank
from ..objectives.geometry import alignment, uniformity
from .evaluator import Evaluator, Scores

#: STS pairs with at least this gold score are positives to SimCSE's alignment.
CLOSE = 4.0


def geometry_scores(texts: Tensor, x: Tensor | None = None, y: Tensor | None = None) -> Scores:
    """Alignment of positive pairs; uniformity, anisotropy and effective rank of all embeddings.

    Args:
        texts: (M, D), M >= 2.
        x, y: (N, D), row by row a positive pair; without them alignment is left out.

    Returns:
        ``alignment`` in [0, 4], lower is closer; ``uniformity`` <= 0, lower is more even (Wang and
        Isola 2020, alpha = t = 2); ``anisotropy``, the mean cosine of two different rows, 0 where
        directions are even (Ethayarajh 2019, "How Contextual are Contextualized Word
        Representations?"); ``effective_rank`` of the unit vectors less their mean, in [1, D] (Roy
        and Vetterli 2007).

    Raises:
        ValueError: a single row, or only one of x and y.
    """
    if (x is None) != (y is None):
        raise ValueError("y: expected it with x, and only then")
    result = {}
    with torch.no_grad():
        if x is not None and y is not None:
            result["alignment"] = alignment(x, y).item()
        result["uniformity"] = uniformity(texts).item()
        unit = unit_rows(texts.double())
        count = len(unit)
        # The sum of all cosines is the square of the sum of all rows.
        cosines = unit.sum(0).square().sum() - unit.square().sum()
        result["anisotropy"] = (cosines / (count * (count - 1))).item()
        result["effective_rank"] = effective_rank(unit - unit.mean(0)).item()
    return result


class GeometryEvaluator(Evaluator):
    """Geometry of texts.

    Args:
        texts: all of them, at least two distinct ones; each counts once.
        anchors, positives: pairs whose alignment to measure, or None.
        options: see :class:`Evaluator`.

    Scores: those of :func:`geometry_scores`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        anchors: Sequence[str] | None = None,
        positives: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__("uniformity", **options)
        self.greater_is_better = False
        self.texts = list(dict.fromkeys(texts))
        self.anchors, self.positives = anchors, positives

    @staticmethod
    def of_sts(
        first: Sequence[str],
        second: Sequence[str],
        gold: Sequence[float],
        *,
        close: float = CLOSE,
        **options: Any,
    ) -> GeometryEvaluator:
        """As in SimCSE: pairs with a gold score of at least `close`, and all texts."""
        near = [(a, b) for a, b, score in zip(first, second, gold, strict=True) if score >= close]
        anchors, positives = [a for a, _ in near] or None, [b for _, b in near] or None
        return GeometryEvaluator([*first, *second], anchors, positives, **options)

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes all texts at once."""
        pairs = len(self.anchors or [])
        every = [*self.texts, *(self.anchors or []), *(self.positives or [])]
        texts, x, y = self.embed(model, every).split([len(self.texts), pairs, pairs])
        return geometry_scores(texts, x, y) if pairs else geometry_scores(texts)
