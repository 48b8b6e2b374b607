"""The space of a model on a development set: similarities by group, and two principal components.

A table with gold scores gives pairs by score; one of pairs gives pairs and non-pairs; one of labels
gives texts of one label and of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import normalize

from ..evaluation.evaluator import embed
from ..tables import read_development_set
from ..training.atomic import atomic_path

#: Texts that are looked at, at most; a picture shows no more.
ROWS = 1500
#: Pairs that a line connects, of each kind.
LINKS = 25
#: Labels with a colour of their own.
LABELS = 7


@dataclass(frozen=True)
class Space:
    """What the pictures show.

    Attributes:
        groups: names of the groups of pairs, the least similar first.
        group: (P,) of each pair.
        similarity: (P,) cosine of each pair.
        points: (M, 2) principal components of the texts' unit vectors.
        explained: (R,) share of the variance along each component whose share is not zero.
        classes: names of the classes of texts; may be empty.
        class_of: (M,) of each text, -1 for none.
        links: (L, 2) pairs of texts to connect.
        link_group: (L,) their group.
    """

    groups: np.ndarray
    group: np.ndarray
    similarity: np.ndarray
    points: np.ndarray
    explained: np.ndarray
    classes: np.ndarray
    class_of: np.ndarray
    links: np.ndarray
    link_group: np.ndarray

    def save(self, path: Path) -> None:
        """To a ``.npz``, atomically."""
        with atomic_path(path) as scratch:
            np.savez_compressed(scratch, **vars(self))

    @staticmethod
    def load(path: Path) -> Space:
        """From a ``.npz``."""
        with np.load(path) as file:
            return Space(**{name: file[name] for name in Space.__dataclass_fields__})


def compute_space(
    model: SentenceTransformer, source: str, *, batch_size: int = 64, seed: int = 0
) -> Space:
    """The space of a model on a table; see :func:`read_columns` for its forms.

    Args:
        model: any SentenceTransformer.
        source: with gold scores (``score, sentence1, sentence2``), labels (``label, text``), or
            pairs.
        batch_size: texts at a time.
        seed: of the draw of rows from a large table, and of non-pairs.

    Raises:
        ValueError: a table that cannot be read.
    """
    draw = np.random.default_rng(seed)
    kind, table, names = read_development_set(source)
    if kind == "knn":
        rows = _sample(draw, len(table))
        texts, labels = (
            np.array(column)[rows] for column in (table.texts(names[0]), table.labels(names[1]))
        )
        unit = normalize(embed(model, texts.tolist(), batch_size=batch_size), dim=1)
        return _of_labels(unit, labels, draw)
    rows = _sample(draw, len(table))
    first, second = (np.array(table.texts(name))[rows].tolist() for name in names[:2])
    unit = normalize(embed(model, [*first, *second], batch_size=batch_size), dim=1)
    gold = np.array(table.numbers(names[2]))[rows] if kind == "sts" else None
    return _of_pairs(unit, gold, draw)


def _sample(draw: np.random.Generator, count: int) -> np.ndarray:
    """At most ROWS of them, in order."""
    return np.sort(draw.permutation(count)[:ROWS])


def _of_pairs(unit: Tensor, gold: np.ndarray | None, draw: np.random.Generator) -> Space:
    count = len(unit) // 2
    first, second = np.arange(count), count + np.arange(count)
    if gold is None:
        # A shift pairs every text with one that is not its own.
        shifted = count + (np.arange(count) + int(draw.integers(1, max(count, 2)))) % count
        groups = ["not a pair", "a pair"]
        pairs = np.concatenate([np.stack([first, shifted], 1), np.stack([first, second], 1)])
        group = np.repeat([0, 1], count)
    else:
        low, high = float(gold.min()), float(gold.max())
        edges = np.linspace(low, high, 6)
        groups = [f"{a:g}–{b:g}" for a, b in pairwise(edges)]
        pairs = np.stack([first, second], 1)
        group = np.clip(np.searchsorted(edges, gold, side="right") - 1, 0, 4)
    return _finish(unit, groups, group, pairs, [], np.full(len(unit), -1), draw)


def _of_labels(unit: Tensor, labels: np.ndarray, draw: np.random.Generator) -> Space:
    kinds, counts = np.unique(labels, return_counts=True)
    shown = kinds[np.argsort(-counts, kind="stable")[:LABELS]]
    class_of = np.full(len(labels), -1)
    for number, name in enumerate(shown):
        class_of[labels == name] = number
    pairs = draw.integers(0, len(labels), (20 * len(labels), 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    # Few random pairs share a label: each text with the next one of its label.
    order = np.argsort(labels, kind="stable")
    same = np.stack([order[:-1], order[1:]], 1)
    same = same[labels[same[:, 0]] == labels[same[:, 1]]]
    other = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]][: max(len(same), 1)]
    group = np.repeat([0, 1], [len(other), len(same)])
    pairs = np.concatenate([other, same])
    groups = ["two labels", "one label"]
    return _finish(unit, groups, group, pairs, list(shown), class_of, draw, links=0)


def _finish(
    unit: Tensor,
    groups: list[str],
    group: np.ndarray,
    pairs: np.ndarray,
    classes: list[Any],
    class_of: np.ndarray,
    draw: np.random.Generator,
    *,
    links: int = LINKS,
) -> Space:
    rows = unit.float().cpu().numpy()
    similarity = (rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1)
    pca = PCA(svd_solver="full")
    points = pca.fit_transform(rows)[:, :2]
    explained = pca.explained_variance_ratio_
    chosen = [draw.permutation(np.flatnonzero(group == g))[:links] for g in (0, len(groups) - 1)]
    picked = np.concatenate(chosen).astype(np.int64)
    return Space(
        np.array(groups),
        group,
        similarity,
        points.astype(np.float32),
        explained[explained > 1e-9],
        np.array(classes, dtype=str),
        class_of,
        pairs[picked],
        group[picked],
    )
