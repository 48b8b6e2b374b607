"""Training data: from files and datasets to columns that an objective understands.

Everything is read and checked before training starts; an error names the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, interleave_datasets

from ..tables import ROLES, Table, read_table, split_source
from .settings import Settings

_NUMBERED = re.compile(r"negative_\d+")
_WEIGHT = re.compile(r"(.+)\*(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Attributes:
        train: one dataset, or one of each source if batches are not mixed.
        texts: names of the text columns, in the order in which the loss gets them.
        classes: names of the labels, in the order of their numbers.
    """

    train: Dataset | DatasetDict
    texts: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def columns(self) -> list[list[str]]:
        """All texts, column by column."""
        parts = list(self.train.values()) if isinstance(self.train, dict) else [self.train]
        return [[text for part in parts for text in part[name]] for name in self.texts]


def read_data(settings: Settings) -> Data:
    """Reads and checks all sources.

    Raises:
        ValueError: no source; a file, column, text, label or score that is missing or wrong.
    """
    if not settings.data:
        raise ValueError("data: got no source, expected at least one")
    weights, tables = [], []
    for source in settings.data:
        matched = _WEIGHT.fullmatch(source)
        weights.append(float(matched[2]) if matched else 1.0)
        if not weights[-1]:
            raise ValueError(f"{source}: got the weight 0, expected a positive one")
        tables.append(_read(matched[1] if matched else source))
    layouts = [_layout(settings, table, names) for table, names in tables]
    shape = set(layouts[0])
    for source, layout in zip(settings.data, layouts, strict=True):
        if set(layout) != shape:
            raise ValueError(
                f"{source}: got {', '.join(layout)}, expected {', '.join(layouts[0])} as in "
                f"{settings.data[0]}"
            )
    parts = [
        _columns(settings, table, layout)
        for (table, _), layout in zip(tables, layouts, strict=True)
    ]
    for source, part in zip(settings.data, parts, strict=True):
        if list(part) != list(parts[0]):
            raise ValueError(
                f"{source}: got {len(part) - 2} negatives a row, expected {len(parts[0]) - 2} as "
                f"in {settings.data[0]}"
            )
    classes: tuple[str, ...] = ()
    if "label" in shape:
        classes = _number_labels(settings, parts, [table for table, _ in tables], layouts)
    texts = tuple(name for name in parts[0] if name not in ("label", "score"))
    datasets = [Dataset.from_dict(part) for part in parts]
    train = _combined(settings, datasets, weights)
    return Data(train, texts, classes)


def _read(source: str) -> tuple[Table, list[str] | None]:
    path, names = split_source(source)
    table = read_table(path, splits=("train",))
    return table, names


def _layout(settings: Settings, table: Table, names: list[str] | None) -> dict[str, str]:
    """The column of a table for each role."""
    options = _roles(settings)
    if names is not None:
        table.need(*names)
        for roles in options:
            if len(roles) == len(names):
                return dict(zip(roles, names, strict=True))
        counts = " or ".join(str(len(roles)) for roles in options)
        raise ValueError(f"{table.source}: got {len(names)} columns, expected {counts}")
    for roles in options:
        found: dict[str, str] = {}
        for role in roles:
            free = (n for n in ROLES[role] if n in table.columns and n not in found.values())
            found[role] = next(free, "")
        if all(found.values()):
            return found
    expected = " or ".join(", ".join(roles) for roles in options)
    shown = ",".join(role.upper() for role in options[0])
    raise ValueError(
        f"{table.source}: got the columns {', '.join(table.columns)}, expected {expected}; name "
        f"those to take: {table.source}:{shown}"
    )


def _roles(settings: Settings) -> list[tuple[str, ...]]:
    """The columns that an objective can use, the fullest first."""
    match settings.objective:
        case "info_nce":
            pairs = [("anchor", "positive", "negative"), ("anchor", "positive")]
            # A recipe with a published kind of data takes no other by chance.
            if settings.recipe == "simcse-unsup":
                return [("sentence",)]
            if settings.recipe in ("simcse-sup", "static"):
                return [*pairs]
            return [*pairs, ("sentence",)]
        case "sup_con":
            return [("sentence", "label")]
        case "triplet":
            return [("anchor", "positive", "negative"), ("sentence", "label")]
        case "softmax":
            return [("sentence1", "sentence2", "label")]
        case "cosine":
            return [("sentence1", "sentence2", "score")]
        case _:
            return [("source", "target"), ("sentence",)]


def _columns(settings: Settings, table: Table, layout: dict[str, str]) -> dict[str, list[Any]]:
    """Checked columns, a row for each positive where a cell holds several."""
    made: dict[str, list[Any]] = {}
    repeat: list[int] | None = None
    for role, name in layout.items():
        if role == "label":
            made[role] = table.labels(name)
        elif role == "score":
            made[role] = _scores(settings, table, name)
        elif role == "positive" and any(isinstance(cell, list) for cell in table.columns[name]):
            lists = table.text_lists(name)
            repeat = [row for row, cell in enumerate(lists) for _ in cell]
            made[role] = [text for cell in lists for text in cell]
        elif role == "negative":
            lists = table.text_lists(name)
            count = settings.negatives if any(len(cell) > 1 for cell in lists) else 1
            more = sorted(n for n in table.columns if _NUMBERED.fullmatch(n) and n != name)
            for i in range(count):
                made["negative" if i == 0 else f"negative_{i + 1}"] = [
                    cell[i % len(cell)] for cell in lists
                ]
            for i, other in enumerate(more, count + 1):
                made[f"negative_{i}"] = table.texts(other)
        else:
            made[role] = table.texts(name)
    if repeat is None:
        return made
    return {
        role: column if role == "positive" else [column[row] for row in repeat]
        for role, column in made.items()
    }


def _scores(settings: Settings, table: Table, name: str) -> list[float]:
    low, high = settings.score_range
    scores = table.numbers(name)
    for row, score in enumerate(scores):
        if not low <= score <= high:
            raise ValueError(
                f"{table.where(row)}: got {score:g} as {name}, expected it in [{low:g}, {high:g}] "
                "(score_range)"
            )
    return [(score - low) / (high - low) for score in scores]


def _number_labels(
    settings: Settings,
    parts: Sequence[dict[str, list[Any]]],
    tables: Sequence[Table],
    layouts: Sequence[dict[str, str]],
) -> tuple[str, ...]:
    """Puts numbers in place of labels, in all sources the same."""
    classes = settings.labels or sorted({label for part in parts for label in part["label"]})
    place = {name: number for number, name in enumerate(classes)}
    if settings.labels:
        place |= {str(number): number for number in range(len(classes))}
    for part, table, layout in zip(parts, tables, layouts, strict=True):
        for row, label in enumerate(part["label"]):
            if label not in place:
                raise ValueError(
                    f"{table.where(row)}: got {label!r} as {layout['label']}, expected one of "
                    f"{', '.join(classes)}, or a number from 0 to {len(classes) - 1}"
                )
        part["label"] = [place[label] for label in part["label"]]
    if len(classes) < 2:
        raise ValueError(f"{tables[0].source}: got the one label {classes[0]!r}, expected several")
    return tuple(classes)


def _combined(
    settings: Settings, datasets: list[Dataset], weights: list[float]
) -> Dataset | DatasetDict:
    if len(datasets) == 1:
        return datasets[0]
    if settings.sampling == "mixed":
        if len(set(weights)) == 1:
            return concatenate_datasets(datasets)
        total = sum(weights)
        return interleave_datasets(
            datasets,
            probabilities=[weight / total for weight in weights],
            seed=int(settings.trainer.get("seed", 42)),
            stopping_strategy="all_exhausted",
        )
    if len(set(weights)) > 1:
        raise ValueError(f"data: got weights with sampling={settings.sampling!r}, expected 'mixed'")
    return DatasetDict({f"source_{i}": dataset for i, dataset in enumerate(datasets)})
