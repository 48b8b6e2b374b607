"""Retrieval of held-out queries against the whole corpus: dense, BM25, and both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bm25s
import torch
from bm25s.stopwords import STOPWORDS_EN
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor
from torch.nn.functional import normalize

from .encoder import words

_TOP = 10
_QUERIES_AT_A_TIME = 256
_STOP_WORDS = frozenset(STOPWORDS_EN)

#: Scores of the queries from `start` to `stop` against every document.
Scores = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Task:
    """Queries, each answered by one document of a corpus.

    Attributes:
        name: what the table calls it.
        queries: texts to search for.
        documents: texts to search in.
        answers: for each query, the position of its document.
    """

    name: str
    queries: list[str]
    documents: list[str]
    answers: list[int]

    def evaluator(self, name: str = "") -> InformationRetrievalEvaluator:
        """sentence-transformers' evaluator of this task, MRR and recall at 10."""
        return InformationRetrievalEvaluator(
            queries=dict(enumerate(self.queries)),
            corpus=dict(enumerate(self.documents)),
            relevant_docs={query: {answer} for query, answer in enumerate(self.answers)},
            accuracy_at_k=[1],
            precision_recall_at_k=[_TOP],
            mrr_at_k=[_TOP],
            ndcg_at_k=[_TOP],
            map_at_k=[_TOP],
            batch_size=1024,
            name=name,
            write_csv=False,
        )


def evaluate(task: Task, scores: Scores) -> dict[str, float]:
    """MRR@10 and recall@10 of any scoring function, by sentence-transformers' definitions.

    Equal scores rank by position in the corpus.
    """
    hits = []
    for start in range(0, len(task.queries), _QUERIES_AT_A_TIME):
        stop = min(start + _QUERIES_AT_A_TIME, len(task.queries))
        values = scores(start, stop)
        # More than the ten that count, so that equal scores at the border are ranked by position.
        best = values.topk(min(4 * _TOP, values.shape[1]), dim=1)
        for row, columns in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            hits.append(
                [
                    {"corpus_id": column, "score": score}
                    for score, column in zip(row, columns, strict=True)
                ]
            )
    metrics = task.evaluator().compute_metrics(hits)
    return {
        "mrr@10": float(metrics["mrr@k"][_TOP]),
        "recall@10": float(metrics["recall@k"][_TOP]),
    }


def dense_scores(queries: Tensor, documents: Tensor) -> Scores:
    """Cosine similarities of embeddings: queries (Q, D), documents (M, D)."""
    queries, documents = normalize(queries, dim=1), normalize(documents, dim=1)
    return lambda start, stop: queries[start:stop] @ documents.T


class BM25:
    """BM25 by the bm25s library at its default settings.

    Texts fall into the words that the encoder's tokenizer sees, identifiers split; English stop
    words are left out. Both make it stronger than the library's own splitting.

    Args:
        documents: texts to search in.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._size = len(documents)
        self._index = bm25s.BM25()
        self._index.index([_content_words(text) for text in documents], show_progress=False)

    def scores(self, queries: Sequence[str]) -> Scores:
        """Scores of texts; zero where no word is shared."""
        rows = torch.zeros(len(queries), self._size)
        for row, text in enumerate(queries):
            known = [word for word in _content_words(text) if word in self._index.vocab_dict]
            if known:
                rows[row] = torch.from_numpy(self._index.get_scores(known))
        return lambda start, stop: rows[start:stop]


def fused_scores(dense: Scores, lexical: Scores, weight: float) -> Scores:
    """Cosine plus `weight` times BM25, each query's BM25 scaled to 1 at its best document."""

    def scores(start: int, stop: int) -> Tensor:
        bm25 = lexical(start, stop)
        best = bm25.amax(dim=1, keepdim=True)
        return dense(start, stop) + weight * bm25 / torch.where(best > 0, best, 1.0)

    return scores


def choose_weight(
    task: Task,
    dense: Scores,
    lexical: Scores,
    candidates: Sequence[float] = (0.0, 0.125, 0.25, 0.5, 1.0),
) -> float:
    """The weight of `fused_scores` with the best MRR@10; for a split that is not reported."""
    return max(
        candidates,
        key=lambda weight: evaluate(task, fused_scores(dense, lexical, weight))["mrr@10"],
    )


def _content_words(text: str) -> list[str]:
    return [word for word in words(text) if word not in _STOP_WORDS]
