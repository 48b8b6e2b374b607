"""Classification by nearest neighbours: no classifier is trained on the embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ..engine import check
from ..mining.topk import topk_similarity
from .evaluator import Evaluator, Scores

NEIGHBORS = 10


def knn_scores(
    train: Tensor,
    train_labels: Sequence[Hashable],
    test: Tensor | None = None,
    test_labels: Sequence[Hashable] | None = None,
    *,
    k: int = NEIGHBORS,
    backend: str | None = None,
) -> Scores:
    """Accuracy of the label that most of the k nearest neighbours by cosine have, exactly.

    Among labels with as many neighbours the one whose neighbours are more similar in sum wins, then
    the one that comes first in `train_labels`.

    Args:
        train: (M, D) embeddings whose labels are known, M >= 2.
        train_labels: M of them.
        test: (N, D) of the same dtype; without them each row of `train` asks all the others.
        test_labels: N of them; one that no neighbour can have counts as wrong.
        k: neighbours that vote; fewer where there are not so many.
        backend: see :func:`contrastive_ops.backends`.

    Returns:
        ``accuracy`` in [0, 1].

    Raises:
        ValueError: an argument that contradicts the above.
    """
    check.matrix("train", train)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: got {k!r}, expected an integer >= 1")
    if len(train) != len(train_labels) or len(train) < 2:
        raise ValueError(f"train_labels: got {len(train_labels)}, expected {len(train)} >= 2")
    if (test is None) != (test_labels is None):
        raise ValueError("test_labels: expected them with test, and only then")
    queries, wanted = (train, train_labels) if test is None else (test, test_labels)
    assert wanted is not None
    if len(queries) != len(wanted):
        raise ValueError(f"test_labels: got {len(wanted)}, expected {len(queries)}")
    number: dict[Hashable, int] = {}
    own = torch.tensor([number.setdefault(label, len(number)) for label in train_labels])
    expected = torch.tensor([number.get(label, -1) for label in wanted])
    alone = test is None
    found = topk_similarity(
        queries,
        train,
        min(k, len(train) - alone),
        exclude=torch.arange(len(train), device=train.device) if alone else None,
        backend=backend,
    )
    voters, votes = own[found.indices.cpu()], found.scores.double().cpu()
    count = torch.zeros(len(queries), len(number), dtype=torch.float64)
    weight = count.clone()
    count.scatter_add_(1, voters, torch.ones_like(votes))
    weight.scatter_add_(1, voters, votes)
    leading = count == count.amax(1, keepdim=True)
    chosen = weight.masked_fill(~leading, -torch.inf)
    # `argmax` promises no order among equals; the first label wins.
    best = chosen == chosen.amax(1, keepdim=True)
    order = torch.arange(len(number)).expand_as(best).masked_fill(~best, len(number))
    return {"accuracy": (order.amin(1) == expected).double().mean().item()}


class KNNEvaluator(Evaluator):
    """Accuracy of nearest neighbours on labelled texts.

    Args:
        train_texts, train_labels: whose labels are known.
        test_texts, test_labels: to classify; None leaves each text of the former out in turn.
        k, backend: see :func:`knn_scores`.
        options: see :class:`Evaluator`. The similarity is always the cosine.

    Scores: ``accuracy``.
    """

    def __init__(
        self,
        train_texts: Sequence[str],
        train_labels: Sequence[Hashable],
        test_texts: Sequence[str] | None = None,
        test_labels: Sequence[Hashable] | None = None,
        *,
        k: int = NEIGHBORS,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__("accuracy", **options)
        self.train_texts, self.train_labels = train_texts, train_labels
        self.test_texts, self.test_labels = test_texts, test_labels
        self.k, self.backend = k, backend

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes both sets."""
        train = self.embed(model, self.train_texts)
        test = None if self.test_texts is None else self.embed(model, self.test_texts)
        return knn_scores(
            train, self.train_labels, test, self.test_labels, k=self.k, backend=self.backend
        )
