"""Development sets of a run, told by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ..evaluation import (
    Evaluator,
    KNNEvaluator,
    RetrievalEvaluator,
    geometry_scores,
    sts_scores,
)
from ..evaluation.evaluator import Scores
from ..mining.texts import TextPairs
from ..tables import read_development_set


class STSAndGeometry(Evaluator):
    """Correlations with gold scores, and alignment and uniformity, of texts encoded once.

    Args:
        first, second: texts, row by row a pair.
        gold: scores; those of at least 4 / 5 of the highest are close, as in SimCSE.
        name: put before the correlations.
        own_geometry: whether the name also goes before the other scores.

    Scores: those of :func:`sts_scores` and :func:`geometry_scores`.
    """

    def __init__(
        self,
        first: Sequence[str],
        second: Sequence[str],
        gold: Sequence[float],
        *,
        name: str,
        own_geometry: bool,
    ) -> None:
        super().__init__("spearman", name=name)
        self.texts, self.gold = [*first, *second], list(gold)
        self.own_geometry = own_geometry
        self.close = torch.tensor(self.gold) >= 0.8 * max(self.gold)
        place = {text: i for i, text in reversed(list(enumerate(self.texts)))}
        self.distinct = torch.tensor(sorted(place.values()))

    def scores(self, model: SentenceTransformer) -> Scores:
        """Encodes all texts at once."""
        every = self.embed(model, self.texts)
        x, y = every.split(len(self.gold))
        close = self.close.to(every.device)
        geometry = geometry_scores(every[self.distinct.to(every.device)], x[close], y[close])
        self.geometry = list(geometry)
        return sts_scores(x, y, self.gold, similarity=self.similarity_of(model)) | geometry

    def __call__(self, model: SentenceTransformer, *args: Any, **kwargs: Any) -> Scores:
        found = super().__call__(model, *args, **kwargs)
        if self.own_geometry:
            return found
        plain = {f"{self.name}_{score}": score for score in self.geometry}
        return {plain.get(name, name): value for name, value in found.items()}


def build_evaluators(
    sources: Sequence[str],
    train: tuple[list[str], list[int]] | None = None,
    classes: Sequence[str] = (),
) -> list[Evaluator]:
    """Evaluators of ``NAME=PATH`` or ``PATH`` each.

    Pairs with scores give correlations, and alignment and uniformity with them; texts with labels
    the accuracy of nearest neighbours, among the training texts if these have labels and else among
    themselves; questions with answers retrieval.

    Args:
        sources: development sets. Without a name one is called by kind and file: ``sts-dev``.
        train: texts and labels that the training has.
        classes: names of those labels.

    Raises:
        ValueError: a file, column, text, label or score that is missing or wrong.
    """
    found: list[Evaluator] = []
    for number, text in enumerate(sources):
        name, source = split_name(text)
        kind, table, roles = read_development_set(source)
        name = name or f"{kind}-{Path(table.source.partition('@')[0]).stem}"
        if kind == "sts":
            first, second = table.texts(roles[0]), table.texts(roles[1])
            gold = table.numbers(roles[2])
            if len(set(gold)) < 2:
                raise ValueError(f"{table.source}: got no two different values of {roles[2]}")
            # The geometry of the first set goes by its plain names.
            found.append(STSAndGeometry(first, second, gold, name=name, own_geometry=number > 0))
        elif kind == "knn":
            texts, labels = table.texts(roles[0]), table.labels(roles[1])
            if train is None:
                found.append(KNNEvaluator(texts, labels, name=name))
            else:
                known = [classes[label] for label in train[1]]
                found.append(KNNEvaluator(train[0], known, texts, labels, name=name))
        else:
            pairs = TextPairs.of(table.texts(roles[0]), table.texts(roles[1]))
            found.append(
                RetrievalEvaluator(pairs.queries, pairs.corpus, pairs.positives, name=name)
            )
        if any(name == other.name for other in found[:-1]):
            raise ValueError(f"evaluate: got two sets of the name {name}, expected NAME=PATH")
    return found


def split_name(text: str) -> tuple[str, str]:
    """``NAME=PATH`` as the name and the path; the name of a path alone is empty."""
    name, equals, source = text.partition("=")
    return (name, source) if equals and "/" not in name else ("", text)
