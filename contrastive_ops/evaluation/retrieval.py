"""Retrieval: MRR, nDCG, recall and MAP of the exact nearest documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ..mining.topk import topk_similarity
from .evaluator import Evaluator, Scores

CUTOFFS = (1, 10, 100)


def retrieval_scores(
    queries: Tensor,
    corpus: Tensor,
    positives: Sequence[Sequence[int]],
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    similarity: str = "cosine",
    backend: str | None = None,
) -> Scores:
    """How high the documents that answer a query rank among all documents, exactly.

    Documents with equal scores rank by their position in the corpus.

    Args:
        queries: (N, D), N >= 1.
        corpus: (M, D) of the same dtype.
        positives: for each query the rows of `corpus` that answer it, at least one, each once.
        cutoffs: ranks that count; the largest is the depth of the search.
        similarity: ``"cosine"``, ``"dot"`` or ``"euclidean"``.
        backend: see :func:`contrastive_ops.backends`.

    Returns:
        For each cutoff k, means over queries in [0, 1]: ``mrr@k`` (1 / rank of the first answer, 0
        beyond k), ``ndcg@k`` (binary gains, log2 discounts), ``recall@k`` (share of the answers
        that are among the first k), ``map@k`` (average precision, divided by the lesser of k and
        the number of answers).

    Raises:
        ValueError: an argument that contradicts the above.
    """
    cutoffs = sorted(set(cutoffs))
    if not cutoffs or cutoffs[0] < 1:
        raise ValueError(f"cutoffs: got {cutoffs}, expected ranks >= 1")
    found = nearest(queries, corpus, cutoffs[-1], similarity=similarity, backend=backend)
    return ranking_scores(found, positives, cutoffs, len(corpus))


def nearest(
    queries: Tensor, corpus: Tensor, k: int, *, similarity: str, backend: str | None = None
) -> Tensor:
    """(N, min(k, M)) indices of the most similar documents, best first; see `topk_similarity`."""
    if similarity not in ("cosine", "dot", "euclidean"):
        raise ValueError(
            f"similarity: got {similarity!r}, expected 'cosine', 'dot' or 'euclidean': the others "
            "have no exact search"
        )
    return topk_similarity(
        queries,
        corpus,
        min(k, len(corpus)),
        normalize=similarity == "cosine",
        metric="l2" if similarity == "euclidean" else "dot",
        backend=backend,
    ).indices.cpu()


def ranking_scores(
    ranked: Tensor, positives: Sequence[Sequence[int]], cutoffs: Sequence[int], documents: int
) -> Scores:
    """Scores of any ranking: (N, K) int64 indices of documents, best first, -1 pads."""
    n, width = ranked.shape
    if len(positives) != n:
        raise ValueError(f"positives: got {len(positives)} lists, expected {n}, one for each query")
    most = max(map(len, positives), default=0)
    answers = torch.full((n, max(most, 1)), -2)
    for row, own in enumerate(positives):
        if not own or len(set(own)) < len(own) or not all(0 <= j < documents for j in own):
            raise ValueError(
                f"positives: got {list(own)} for query {row}, expected at least one of the "
                f"{documents} documents, each once"
            )
        answers[row, : len(own)] = torch.tensor(own)
    # One answer at a time: (N, K) bytes, not (N, K, P).
    hit = torch.zeros(n, width, dtype=torch.bool)
    for column in answers.T:
        hit |= ranked == column[:, None]
    gain = hit.double()
    count = (answers >= 0).sum(1).double()
    rank = torch.arange(1, width + 1, dtype=torch.float64)
    discounts = 1 / torch.log2(torch.arange(2, max(width, most) + 2, dtype=torch.float64))
    ideal = discounts.cumsum(0)
    precision = gain.cumsum(1) / rank
    result = {}
    for k in cutoffs:
        here, best = gain[:, :k], count.clamp(max=k)
        first = torch.where(here > 0, 1 / rank[:k], 0.0).amax(1)
        dcg = (here * discounts[: here.shape[1]]).sum(1)
        result[f"mrr@{k}"] = first.mean().item()
        result[f"ndcg@{k}"] = (dcg / ideal[best.long() - 1]).mean().item()
        result[f"recall@{k}"] = (here.sum(1) / count).mean().item()
        result[f"map@{k}"] = ((here * precision[:, :k]).sum(1) / best).mean().item()
    return result


class RetrievalEvaluator(Evaluator):
    """Retrieval among texts, by exact search.

    Args:
        queries, corpus: texts; encoded as queries and as documents.
        positives: for each query the positions in `corpus` that answer it.
        cutoffs, backend: see :func:`retrieval_scores`.
        options: see :class:`Evaluator`.

    Scores: those of :func:`retrieval_scores`; the main one is nDCG at the middle cutoff.
    """

    def __init__(
        self,
        queries: Sequence[str],
        corpus: Sequence[str],
        positives: Sequence[Sequence[int]],
        *,
        cutoffs: Sequence[int] = CUTOFFS,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        cutoffs = sorted(set(cutoffs))
        if not cutoffs or cutoffs[0] < 1:
            raise ValueError(f"cutoffs: got {cutoffs}, expected ranks >= 1")
        super().__init__(f"ndcg@{cutoffs[len(cutoffs) // 2]}", **options)
        self.queries, self.corpus, self.positives = queries, corpus, positives
        self.cutoffs, self.backend = cutoffs, backend

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes, searches, scores."""
        return retrieval_scores(
            self.embed(model, self.queries, "query"),
            self.embed(model, self.corpus, "document"),
            self.positives,
            cutoffs=self.cutoffs,
            similarity=self.similarity_of(model),
            backend=self.backend,
        )
