"""A corpus of documented functions: de-duplicated, grouped, split without leakage, and saved.

Two functions belong to one *group* if they share a summary, the rest of the docstring or the code,
directly or through others. Groups serve twice: a query that is held out comes from a group of one,
so that no copy of it was trained on and exactly one document answers it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from .atomic import atomic_path
from .docstrings import Function

#: What one function looks like from different sides.
VIEWS = ("name", "summary", "rest", "code", "document")

# Shorter texts ("return self", "pass") say too little to make two functions one.
_MIN_SHARED_CHARACTERS = 60
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Corpus:
    """Functions and the part each plays.

    Attributes:
        functions: all documents; every search runs against all of them.
        split: for each function `"train"`, `"dev"` or `"test"`. Functions of dev and test are
            never seen in training, neither as query nor as document.
    """

    functions: list[Function]
    split: list[str]

    def rows(self, split: str) -> list[int]:
        """Positions of the functions of one split."""
        return [row for row, name in enumerate(self.split) if name == split]

    def view(self, view: str, rows: Iterable[int] | None = None) -> list[str]:
        """One view of each function.

        Args:
            view: one of `VIEWS`; `"document"` is the rest of the docstring, name and code,
                without the summary.
            rows: positions (default: all).
        """
        if view not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {view!r}")
        functions = self.functions if rows is None else [self.functions[row] for row in rows]
        if view == "document":
            return ["\n".join((f.rest, f.name, f.code)) for f in functions]
        return [getattr(f, view) for f in functions]

    def save(self, path: str | Path) -> None:
        """Write a Parquet file, atomically."""
        columns: dict[str, list[str]] = {
            field.name: [getattr(f, field.name) for f in self.functions]
            for field in fields(Function)
        }
        with atomic_path(path) as scratch:
            pq.write_table(pa.table({**columns, "split": self.split}), scratch)

    @classmethod
    def load(cls, path: str | Path) -> Corpus:
        """Read what `save` wrote."""
        rows = pq.read_table(path).to_pylist()
        split = [row.pop("split") for row in rows]
        return cls([Function(**row) for row in rows], split)


def build_corpus(functions: Sequence[Function], *, queries: int, seed: int) -> Corpus:
    """Drop exact duplicates and hold out queries for two purposes.

    Args:
        functions: as mined.
        queries: functions to hold out for `"dev"`, and as many again for `"test"`.
        seed: of the draw.

    Raises:
        ValueError: too few distinct functions to hold out that many and train on at least as many.
    """
    first: dict[tuple[str, ...], Function] = {}
    for function in functions:
        first.setdefault(_fingerprint(function), function)
    distinct = list(first.values())
    groups = group_by_shared_keys(
        [
            [("summary", _squash(f.summary)), *_long("rest", f.rest), *_long("code", _body(f.code))]
            for f in distinct
        ]
    )
    sizes = Counter(groups)
    alone = [row for row, group in enumerate(groups) if sizes[group] == 1]
    if queries < 1 or len(alone) < 2 * queries or len(distinct) < 4 * queries:
        raise ValueError(
            f"queries: expected at least 1 and few enough to hold out twice from "
            f"{len(distinct)} functions, {len(alone)} of them without a duplicate; got {queries}"
        )
    drawn = random.Random(seed).sample(alone, 2 * queries)
    split = ["train"] * len(distinct)
    for rank, row in enumerate(drawn):
        split[row] = "dev" if rank < queries else "test"
    return Corpus(distinct, split)


def group_by_shared_keys(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Connected components of items that share a key.

    Args:
        keys: for each item, its keys.

    Returns:
        For each item the position of the first item of its component.
    """
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[Hashable, int] = {}
    for item, its_keys in enumerate(keys):
        for key in its_keys:
            low, high = sorted((root(first.setdefault(key, item)), root(item)))
            parent[high] = low
    return [root(item) for item in range(len(keys))]


def _squash(text: str) -> str:
    return " ".join(_WORDS.findall(text.lower()))


def _body(code: str) -> str:
    """Code below the signature: copies of a function are often renamed."""
    return code.split(":\n", 1)[-1]


def _long(kind: str, text: str) -> list[Hashable]:
    squashed = _squash(text)
    return [(kind, squashed)] if len(squashed) >= _MIN_SHARED_CHARACTERS else []


def _fingerprint(function: Function) -> tuple[str, ...]:
    texts = asdict(function)
    return tuple(_squash(texts[field]) for field in ("summary", "rest", "code"))
