"""Clustering: do k-means' clusters of the embeddings agree with the labels?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sklearn.cluster import KMeans
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from .evaluator import Evaluator, Scores


def clustering_scores(embeddings: Tensor, labels: Sequence[Hashable], *, seed: int = 0) -> Scores:
    """V-measure of k-means on unit vectors, with as many clusters as there are labels.

    Args:
        embeddings: (N, D).
        labels: N of them, of at least two kinds.
        seed: of k-means++'s draw.

    Returns:
        ``v_measure`` in [0, 1]: the harmonic mean of homogeneity and completeness (Rosenberg and
        Hirschberg 2007, "V-Measure").

    Raises:
        ValueError: numbers that differ, or labels that are all equal.
    """
    kinds = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    if len(labels) != len(embeddings) or len(kinds) < 2:
        raise ValueError(
            f"labels: got {len(labels)} of {len(kinds)} kinds, expected {len(embeddings)} of at "
            "least 2"
        )
    rows = normalize(embeddings.float(), dim=1).cpu().numpy()
    # One thread: with more, sums are taken in another order on every run.
    with threadpool_limits(1):
        found = KMeans(len(kinds), n_init=1, random_state=seed).fit_predict(rows)
    return {"v_measure": float(v_measure_score([kinds[label] for label in labels], found))}


class ClusteringEvaluator(Evaluator):
    """V-measure on labelled texts.

    Args:
        texts, labels: row by row.
        seed: see :func:`clustering_scores`.
        options: see :class:`Evaluator`. The similarity is always the cosine.

    Scores: ``v_measure``.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[Hashable], *, seed: int = 0, **options: Any
    ) -> None:
        super().__init__("v_measure", **options)
        self.texts, self.labels, self.seed = texts, labels, seed

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes and clusters."""
        return clustering_scores(self.embed(model, self.texts), self.labels, seed=self.seed)
