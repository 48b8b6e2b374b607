"""Ranking metrics, BM25 and fusion against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from contrastive_ops.training.retrieval import (
    BM25,
    Task,
    choose_weight,
    dense_scores,
    evaluate,
    fused_scores,
)


def table(scores):
    return lambda start, stop: scores[start:stop]


def test_mrr_and_recall_at_10():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(600, 70, generator=generator)
    answers = torch.randint(70, (600,), generator=generator).tolist()
    task = Task("x", [str(i) for i in range(600)], [str(j) for j in range(70)], answers)
    ranks = [int((row > row[answer]).sum()) for row, answer in zip(scores, answers, strict=True)]
    expected = {
        "mrr@10": sum(1 / (rank + 1) for rank in ranks if rank < 10) / 600,
        "recall@10": sum(rank < 10 for rank in ranks) / 600,
    }
    assert evaluate(task, table(scores)) == pytest.approx(expected, rel=1e-12)


def test_equal_scores_rank_by_position():
    task = Task("x", ["q", "q"], list("abcd"), [2, 0])
    assert evaluate(task, table(torch.zeros(2, 4)))["mrr@10"] == pytest.approx((1 / 3 + 1) / 2)


def test_dense_scores_are_cosines():
    scores = dense_scores(
        torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]])
    )
    half = math.sqrt(0.5)
    torch.testing.assert_close(scores(0, 2), torch.tensor([[0.0, 1.0], [half, half]]))


DOCUMENTS = ["read a fileName", "read the table of the file", "graph of nodes", "sort_table table"]


def bm25(query, document, k1=1.5, b=0.75):
    """Lucene's BM25, the library's default, over words without stop words."""
    split = [
        ["read", "file", "name"],
        ["read", "table", "file"],
        ["graph", "nodes"],
        ["sort", "table", "table"],
    ]
    average = sum(map(len, split)) / len(split)
    total = 0.0
    for word in query:
        containing = sum(word in words for words in split)
        frequency = split[document].count(word)
        idf = math.log(1 + (len(split) - containing + 0.5) / (containing + 0.5))
        length = 1 - b + b * len(split[document]) / average
        total += idf * frequency / (frequency + k1 * length)
    return total


@pytest.mark.parametrize(
    ("query", "query_words"),
    [
        ("the fileTable", ["file", "table"]),
        ("Read unknown graph", ["read", "graph"]),
        ("table table", ["table", "table"]),
        ("of the unknown", []),
    ],
)
def test_bm25(query, query_words):
    expected = [[bm25(query_words, document) for document in range(4)]]
    torch.testing.assert_close(BM25(DOCUMENTS).scores([query])(0, 1), torch.tensor(expected))


def test_fusion_adds_bm25_scaled_to_its_best():
    dense = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.1, 0.0]])
    lexical = torch.tensor([[8.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    fused = fused_scores(table(dense), table(lexical), 0.5)
    torch.testing.assert_close(fused(0, 2), torch.tensor([[0.6, 0.5, 0.425], [0.2, 0.1, 0.0]]))


def test_the_best_weight_is_chosen():
    # The dense side alone is right about the first query, BM25 alone about the second.
    dense = torch.tensor([[0.9, 0.2, 0.0], [0.3, 0.2, 0.0]])
    lexical = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    task = Task("x", ["p", "q"], ["a", "b", "c"], [0, 1])
    assert choose_weight(task, table(dense), table(lexical), (0.05, 0.5, 1.0)) == 0.5
