"""Development sets of a run, told by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation import (
    Evaluator,
    GeometryEvaluator,
    KNNEvaluator,
    RetrievalEvaluator,
    STSEvaluator,
)
from ..evaluation.tables import read_table, split_source
from .data import ALIASES

_SPLITS = ("validation", "dev", "test", "train")
#: Kinds of sets, and the columns that tell them, the surest first.
_KINDS = {
    "sts": ("sentence1", "sentence2", "score"),
    "knn": ("sentence", "label"),
    "retrieval": ("anchor", "positive"),
}


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
        name, equals, source = text.partition("=")
        if not equals or "/" in name:
            name, source = "", text
        path, columns = split_source(source)
        table = read_table(path, splits=_SPLITS)
        kind, roles = _kind(table.columns, columns, path)
        name = name or f"{kind}-{Path(path.partition('@')[0]).stem}"
        if kind == "sts":
            first, second = table.texts(roles[0]), table.texts(roles[1])
            gold = table.numbers(roles[2])
            found.append(STSEvaluator(first, second, gold, name=name))
            # Those of the first set go by their plain names.
            found.append(
                GeometryEvaluator.of_sts(
                    first,
                    second,
                    gold,
                    close=0.8 * max(gold),  # 4 of 5, as in SimCSE
                    name=name if number else "",
                )
            )
        elif kind == "knn":
            texts, labels = table.texts(roles[0]), table.labels(roles[1])
            if train is None:
                found.append(KNNEvaluator(texts, labels, name=name))
            else:
                known = [classes[label] for label in train[1]]
                found.append(KNNEvaluator(train[0], known, texts, labels, name=name))
        else:
            queries, answers = table.texts(roles[0]), table.texts(roles[1])
            place = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
            right: dict[str, list[int]] = {}
            for query, answer in zip(queries, answers, strict=True):
                if place[answer] not in right.setdefault(query, []):
                    right[query].append(place[answer])
            found.append(
                RetrievalEvaluator(list(right), list(place), list(right.values()), name=name)
            )
    return found


def _kind(
    available: dict[str, list[object]], named: list[str] | None, path: str
) -> tuple[str, list[str]]:
    """The kind of a set, and its columns."""
    if named is not None:
        missing = [name for name in named if name not in available]
        if missing:
            raise ValueError(
                f"{path}: got the columns {', '.join(available)}, expected {', '.join(missing)}"
            )
        if len(named) == 3:
            return "sts", named
    for kind, roles in _KINDS.items():
        columns: list[str] = []
        for role in roles:
            free = (n for n in ALIASES[role] if n in (named or available) and n not in columns)
            columns += [next(free, "")]
        if all(columns):
            return kind, columns
    expected = " or ".join(", ".join(roles) for roles in _KINDS.values())
    raise ValueError(f"{path}: got the columns {', '.join(available)}, expected {expected}")
