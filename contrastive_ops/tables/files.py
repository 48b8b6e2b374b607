"""Tables from files and datasets; a malformed line is told with its file and number."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .table import Table

FORMATS = (".tsv", ".csv", ".txt", ".jsonl", ".parquet")
SPLITS = ("test", "validation", "train")

Numbered = Iterator[tuple[int, str]]


def read_table(
    path: str, *, splits: Sequence[str] = SPLITS, columns: Sequence[str] | int | None = None
) -> Table:
    """A whole table, or some of its columns: see :func:`read_columns`.

    Args:
        path: without columns.
        splits: of a dataset that has several, which to look for where `path` names none.
        columns: names of those to keep, or how many of the first; None keeps all.

    Raises:
        ValueError: no such file, no rows, no such columns, bad UTF-8, or a malformed line; the
            message names it.
    """
    suffix = Path(path).suffix.lower()
    if suffix in FORMATS and not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    if suffix not in FORMATS and Path(path).is_file():
        raise ValueError(f"{path}: got a file of another kind, expected {', '.join(FORMATS)}")
    if suffix in (".tsv", ".csv"):
        csv.field_size_limit(1 << 30)
        table = _of_cells(path, _tsv(path) if suffix == ".tsv" else _csv(path), columns)
    elif suffix == ".txt":
        lines = [(n, line.strip()) for n, line in _lines(path) if line.strip()]
        table = Table(path, {"sentence": [line for _, line in lines]}, [n for n, _ in lines])
        _chosen(path, ["sentence"], columns)
    elif suffix == ".jsonl":
        table = _jsonl(path, columns)
    elif suffix == ".parquet":
        table = _parquet(path, columns)
    else:
        table = _dataset(path, splits, columns)
    if len(table) == 0:
        raise ValueError(f"{path}: got no rows")
    return table


def _chosen(path: str, names: Iterable[str], columns: Sequence[str] | int | None) -> list[str]:
    """Those of the columns that are kept."""
    names = list(names)
    if columns is None:
        return names
    if isinstance(columns, int):
        if len(names) < columns:
            got = f"the columns {', '.join(names)}" if names else "no columns"
            raise ValueError(f"{path}: got {got}, expected at least {columns}")
        return names[:columns]
    Table(path, {name: [] for name in names}, ()).need(*columns)
    return list(columns)


def _lines(path: str) -> Numbered:
    """Lines of a file of UTF-8, with or without a byte order mark, without their ends."""
    with open(path, "rb") as file:
        for number, data in enumerate(file, 1):
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                line = data.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = data[error.start]
                raise ValueError(f"{path}, line {number}: byte 0x{byte:02x} is no UTF-8") from None
            yield number, line.removesuffix("\n").removesuffix("\r")


def _tsv(path: str) -> Iterator[tuple[int, list[str]]]:
    """No quoting: a quotation mark is a character like any other."""
    for number, line in _lines(path):
        if "\r" in line:
            raise ValueError(f"{path}, line {number}: got a carriage return inside the line")
        if line:
            yield number, line.split("\t")


def _csv(path: str) -> Iterator[tuple[int, list[str]]]:
    # Strict: a quotation mark that is never closed would swallow the rest of the file.
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {begin}: {error}") from None


def _of_cells(
    path: str, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str] | int | None
) -> Table:
    _, names = next(rows, (1, []))
    if len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: got a column name twice in {', '.join(names)}")
    chosen = _chosen(path, names, columns)
    places = [names.index(name) for name in chosen]
    lines: list[int] = []
    kept: list[list[Any]] = [[] for _ in places]
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {number}: got {len(cells)} cells, expected {len(names)}: "
                + ", ".join(names)
            )
        lines.append(number)
        for column, place in zip(kept, places, strict=True):
            column.append(cells[place])
    return Table(path, dict(zip(chosen, kept, strict=True)), lines)


def _jsonl(path: str, columns: Sequence[str] | int | None) -> Table:
    # A column that not all rows have is none, unless the first has it: then a row lacks it.
    lines: list[int] = []
    kept: dict[str, list[Any]] = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: got no JSON object")
        if not lines:
            kept = {name: [] for name in _chosen(path, row, columns)}
        lines.append(number)
        for name, column in kept.items():
            if name not in row:
                raise ValueError(f"{path}, line {number}: got no {name!r}")
            column.append(row[name])
    return Table(path, kept, lines)


def _parquet(path: str, columns: Sequence[str] | int | None) -> Table:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        chosen = _chosen(path, pq.read_schema(path).names, columns)
        kept = pq.read_table(path, columns=chosen).to_pydict()
    except OSError as error:
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None
    return Table(path, kept, range(1, 1 + len(next(iter(kept.values()), []))), "row")


def _dataset(path: str, splits: Sequence[str], columns: Sequence[str] | int | None) -> Table:
    from datasets import DatasetDict, load_dataset, load_from_disk

    name, _, split = path.partition("@")
    try:
        data = load_from_disk(name) if Path(name).is_dir() else load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"{path}: neither a file nor a dataset: {error}") from None
    if isinstance(data, DatasetDict):
        wanted = [split] if split else [*splits, *data]
        found = next((key for key in wanted if key in data), None)
        if found is None:
            raise ValueError(f"{path}: got the splits {', '.join(data)}, expected {split}")
        data = data[found]
    chosen = _chosen(path, data.column_names, columns)
    return Table(path, {name: list(data[name]) for name in chosen}, range(1, 1 + len(data)), "row")
