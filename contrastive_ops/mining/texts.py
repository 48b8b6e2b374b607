"""Texts from TSV, JSON lines, Parquet and Hugging Face datasets, and hard negatives among them."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


def read_columns(source: str, count: int) -> list[list[str]]:
    """The columns of a table of texts.

    Args:
        source: ``PATH`` or ``PATH:COLUMN[,COLUMN...]``: a ``.tsv`` with a header row, a ``.jsonl``,
            a ``.parquet``, or the folder or name of a dataset (its ``train`` split, if it has any).
        count: how many columns to read: those named, or the first ones.

    Raises:
        ValueError: no such file, column or text.
    """
    path, _, names = source.partition(":")
    wanted = names.split(",") if names else None
    if wanted is not None and len(wanted) != count:
        raise ValueError(f"{source}: got {len(wanted)} columns, expected {count}")
    suffix = Path(path).suffix
    if suffix in (".tsv", ".jsonl", ".parquet") and not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    if suffix == ".tsv":
        table = _read_tsv(path)
    elif suffix == ".jsonl":
        table = _read_jsonl(path, wanted, count)
    elif suffix == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        try:
            table = pq.read_table(path, columns=wanted).to_pydict()
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    elif Path(path).is_file():
        raise ValueError(f"{path}: got a {suffix or 'file'}, expected .tsv, .jsonl or .parquet")
    else:
        table = _read_dataset(path, wanted, count)
    chosen = wanted or list(table)[:count]
    missing = [name for name in chosen if name not in table]
    if missing or len(chosen) < count:
        raise ValueError(
            f"{source}: got columns {', '.join(table)}, expected "
            + (", ".join(missing) if missing else f"at least {count}")
        )
    columns = [table[name] for name in chosen]
    for name, column in zip(chosen, columns, strict=True):
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise ValueError(
                    f"{source}: got {type(text).__name__} in row {row + 1} of {name}, expected text"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{source}: row {row + 1} of {name}: {error}") from error
    if not columns[0]:
        raise ValueError(f"{source}: got no rows")
    return columns


def _read_tsv(path: str) -> dict[str, list[str]]:
    csv.field_size_limit(1 << 30)
    with open(path, "rb") as file:
        rows = csv.reader(_decoded(path, file), delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            names = next(rows, [])
            columns: list[list[str]] = [[] for _ in names]
            for row in rows:
                if len(row) != len(names):
                    raise ValueError(
                        f"{path}: got {len(row)} cells in line {rows.line_num}, "
                        f"expected {len(names)}"
                    )
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
        except csv.Error as error:
            raise ValueError(f"{path}: line {rows.line_num}: {error}") from error
    return dict(zip(names, columns, strict=True))


def _read_jsonl(path: str, wanted: list[str] | None, count: int) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(_decoded(path, file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is no JSON object")
            if not table:
                table = {name: [] for name in wanted or list(row)[:count]}
            for name, column in table.items():
                if name not in row:
                    raise ValueError(f"{path}: line {number} has no {name!r}")
                column.append(row[name])
    return table


def _decoded(path: str, file: BinaryIO) -> Iterator[str]:
    """The lines of a file of UTF-8, with a byte order mark or without."""
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {number} is no UTF-8") from error


def _read_dataset(path: str, wanted: list[str] | None, count: int) -> dict[str, list[str]]:
    from datasets import DatasetDict, load_dataset, load_from_disk

    data = load_from_disk(path) if Path(path).is_dir() else load_dataset(path)
    if isinstance(data, DatasetDict):
        data = data["train"] if "train" in data else next(iter(data.values()))
    names = [name for name in wanted or data.column_names[:count] if name in data.column_names]
    return {name: list(data[name]) for name in names}


@dataclass(frozen=True)
class TextPairs:
    """Distinct queries with their positives, and the distinct texts to mine in.

    Attributes:
        queries: every query once.
        corpus: every candidate once; all positives are among them.
        positives: for each query the positions of its positives in the corpus, each once.
        own: for each query the position of an equal text in the corpus, or -1.
    """

    queries: list[str]
    corpus: list[str]
    positives: list[list[int]]
    own: list[int]

    @staticmethod
    def of(
        queries: Sequence[str], positives: Sequence[str], corpus: Sequence[str] = ()
    ) -> TextPairs:
        """From pairs and further candidates; a query that comes twice has several positives.

        Raises:
            ValueError: no pairs, or not as many queries as positives.
        """
        if not len(queries) or len(queries) != len(positives):
            raise ValueError(
                f"queries, positives: got {len(queries)} and {len(positives)}, expected as many of "
                "both, and at least one"
            )
        place = {text: i for i, text in enumerate(dict.fromkeys([*corpus, *positives]))}
        grouped: dict[str, dict[int, None]] = {}
        for query, positive in zip(queries, positives, strict=True):
            grouped.setdefault(query, {})[place[positive]] = None
        own = [place.get(query, -1) for query in grouped]
        return TextPairs(list(grouped), list(place), [list(p) for p in grouped.values()], own)

    def padded_positives(self) -> list[list[int]]:
        """(N, P) with -1 pads."""
        width = max(map(len, self.positives))
        return [p + [-1] * (width - len(p)) for p in self.positives]
