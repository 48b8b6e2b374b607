"""Semantic textual similarity: does the similarity of two texts follow people's judgement?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from torch import Tensor

from .evaluator import Evaluator, Scores


def sts_scores(
    x: Tensor, y: Tensor, gold: Sequence[float], *, similarity: str = "cosine"
) -> Scores:
    """Rank and linear correlation of similarities with gold scores.

    Args:
        x, y: (N, D) embeddings, row by row a pair; N >= 2.
        gold: N finite numbers, not all equal.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.

    Returns:
        ``spearman`` and ``pearson`` in [-1, 1]; 0 where all similarities are equal, NaN where any
        is.

    Raises:
        ValueError: numbers of rows that differ, or gold scores that are all equal.
    """
    if not (x.shape == y.shape and len(x) == len(gold)):
        raise ValueError(
            f"gold: got {len(gold)} scores for embeddings {tuple(x.shape)} and {tuple(y.shape)}, "
            "expected as many of each"
        )
    if len(set(gold)) < 2:
        raise ValueError(f"gold: got no two different scores among {len(gold)}")
    pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity)
    return _correlations(pairwise(x, y).cpu().numpy(), np.asarray(gold))


def _correlations(found: np.ndarray, gold: np.ndarray) -> Scores:
    if (found == found[0]).all():  # no order at all
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(gold, found).statistic),
        "pearson": float(pearsonr(gold, found).statistic),
    }


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts with gold scores."""

    first: Sequence[str]
    second: Sequence[str]
    gold: Sequence[float]


class STSEvaluator(Evaluator):
    """Spearman and Pearson correlation with gold scores, of one set of pairs or of several.

    Of several sets the score is that of all their pairs together, the setting "all" (Gao et al.
    2021, "SimCSE", appendix B); each set's own follows under its name.

    Args:
        first, second: texts, row by row a pair; or mappings from a set's name to its texts.
        gold: scores, the higher the more similar; a mapping likewise.
        options: see :class:`Evaluator`.

    Scores: ``spearman``, ``pearson``; of several sets also ``{set}_spearman`` and so on.

    Raises:
        ValueError: numbers of texts and scores that differ, or gold scores that are all equal.
    """

    def __init__(
        self,
        first: Sequence[str] | Mapping[str, Sequence[str]],
        second: Sequence[str] | Mapping[str, Sequence[str]],
        gold: Sequence[float] | Mapping[str, Sequence[float]],
        **options: Any,
    ) -> None:
        super().__init__("spearman", **options)
        if isinstance(first, Mapping):
            if not (isinstance(second, Mapping) and isinstance(gold, Mapping)):
                raise ValueError("second, gold: expected mappings, as first is")
            self.sets = {key: Pairs(first[key], second[key], gold[key]) for key in first}
        else:
            assert not isinstance(second, Mapping)
            assert not isinstance(gold, Mapping)
            self.sets = {"": Pairs(first, second, gold)}
        for key, pairs in self.sets.items():
            counts = (len(pairs.first), len(pairs.second), len(pairs.gold))
            what = f"{key or self.name or 'pairs'}"
            if len(set(counts)) > 1:
                raise ValueError(f"{what}: got {counts} texts, texts and scores, expected as many")
            if len(set(pairs.gold)) < 2:
                raise ValueError(f"{what}: got no two different scores among {counts[0]}")

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes the texts of all sets at once."""
        sets = self.sets.values()
        first = [text for pairs in sets for text in pairs.first]
        second = [text for pairs in sets for text in pairs.second]
        gold = np.array([score for pairs in sets for score in pairs.gold], dtype=np.float64)
        # Both sides at once, so that a text that stands on both is encoded once.
        x, y = self.embed(model, [*first, *second]).split(len(first))
        pairwise = SimilarityFunction.to_similarity_pairwise_fn(self.similarity_of(model))
        found = pairwise(x, y).cpu().numpy()
        result = _correlations(found, gold)
        if len(self.sets) > 1:
            ends = np.cumsum([len(pairs.gold) for pairs in sets])[:-1]
            parts = zip(self.sets, np.split(found, ends), np.split(gold, ends), strict=True)
            for key, own, own_gold in parts:
                own_scores = _correlations(own, own_gold)
                result |= {f"{key}_{score}": value for score, value in own_scores.items()}
        return result
