"""Tables of texts, labels and scores from files; what is wrong in one is told with its line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = (".tsv", ".csv", ".txt", ".jsonl", ".parquet")
SPLITS = ("test", "validation", "train")
DEV_SPLITS = ("validation", "dev", "test", "train")

#: What a column is for, and the names that it usually has.
Role = tuple[str, ...]
ANCHOR: Role = ("anchor", "query", "question", "sentence1", "premise")
POSITIVE: Role = (
    "positive",
    "document",
    "answer",
    "passage",
    "context",
    "sentence",
    "sentence2",
    "hypothesis",
    "pos",
)
NEGATIVE: Role = ("negative", "neg")
SCORE: Role = ("score", "similarity_score", "gold", "label")
FIRST: Role = ("sentence1", "sentence_1", "sentence_A", "text1", "text_a")
SECOND: Role = ("sentence2", "sentence_2", "sentence_B", "text2", "text_b")
LABEL: Role = ("label", "intent", "class", "category", "topic")
TEXT: Role = ("text", "sentence", "document", "utterance", "question")


@dataclass(frozen=True)
class Table:
    """Rows of a file or dataset, column by column.

    Attributes:
        source: where it came from.
        columns: values of each column, by name.
        lines: of each row, the line that it begins in; of a dataset or Parquet file, its number.
        unit: ``"line"`` or ``"row"``.
    """

    source: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """``FILE, line 3``."""
        return f"{self.source}, {self.unit} {self.lines[row]}"

    def texts(self, name: str) -> list[str]:
        """A column of texts, none of which is empty.

        Raises:
            ValueError: a value that is no text, or blank; the message names its line.
        """
        for row, value in enumerate(self.columns[name]):
            if not isinstance(value, str):
                raise ValueError(f"{self.where(row)}: got {value!r} as {name}, expected a text")
            if not value.strip():
                raise ValueError(f"{self.where(row)}: got no text in {name}")
        return list(self.columns[name])

    def text_lists(self, name: str) -> list[list[str]]:
        """As :meth:`texts`; a cell may also be a list of texts."""
        lists = [v if isinstance(v, list) else [v] for v in self.columns[name]]
        rows = [row for row, cell in enumerate(lists) for _ in cell or [None]]
        flat = [text for cell in lists for text in cell or [""]]
        lines = [self.lines[row] for row in rows]
        Table(self.source, {name: flat}, lines, self.unit).texts(name)
        return lists

    def numbers(self, name: str) -> list[float]:
        """A column of finite numbers.

        Raises:
            ValueError: anything else; the message names its line.
        """
        numbers = []
        for row, value in enumerate(self.columns[name]):
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise ValueError(
                    f"{self.where(row)}: got {value!r} as {name}, expected a finite number"
                )
            numbers.append(number)
        return numbers

    def labels(self, name: str) -> list[str]:
        """A column of labels as text: of words, or of whole numbers."""
        labels = []
        for row, value in enumerate(self.columns[name]):
            if isinstance(value, bool | float) or value is None or not str(value).strip():
                raise ValueError(
                    f"{self.where(row)}: got {value!r} as {name}, expected a word or whole number"
                )
            labels.append(str(value))
        return labels


def read_columns(
    source: str, *roles: Role, splits: Sequence[str] = SPLITS
) -> tuple[Table, tuple[str, ...]]:
    """A table, and the names of those of its columns that play the roles.

    Args:
        source: ``PATH`` or ``PATH:COLUMN,COLUMN...``: a ``.tsv`` or ``.csv`` with a header row, a
            ``.txt`` of one text a line (column ``sentence``), a ``.jsonl``, a ``.parquet``, or the
            folder or name of a Hugging Face dataset, with ``@SPLIT`` if it has several.
        roles: for each the names that are looked for where `source` names no columns. A table
            without them, but with as many columns as roles, is taken in its own order if all are
            texts.
        splits: see :func:`read_table`.

    Raises:
        ValueError: no such file, no rows, a file that cannot be read, or columns that are missing.
    """
    path, names = split_source(source)
    table = read_table(path, splits=splits)
    if names is None:
        names = [next((n for n in role if n in table.columns), "") for role in roles]
        only_texts = SCORE not in roles and LABEL not in roles
        if "" in names and only_texts and len(table.columns) == len(roles):
            names = list(table.columns)
        if "" in names:
            expected = ", ".join(role[0] for role in roles)
            raise ValueError(
                f"{path}: got the columns {', '.join(table.columns)}; expected {expected}; name "
                f"those to take: {path}:{','.join(role[0].upper() for role in roles)}"
            )
    if len(names) != len(roles):
        raise ValueError(
            f"{source}: got {len(names)} columns, expected {len(roles)}: "
            + ", ".join(role[0] for role in roles)
        )
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path}: got the columns {', '.join(table.columns)}, expected {', '.join(missing)}"
        )
    return table, tuple(names)


def split_source(source: str) -> tuple[str, list[str] | None]:
    """``PATH:A,B`` as the path and the columns, or None."""
    path, colon, names = source.rpartition(":")
    if not colon or Path(source).exists() or "/" in names:
        return source, None
    return path, names.split(",")


def read_table(path: str, *, splits: Sequence[str] = SPLITS) -> Table:
    """A whole table: see :func:`read_columns`.

    Args:
        path: without columns.
        splits: of a dataset that has several, which to look for where `path` names none.

    Raises:
        ValueError: no such file, no rows, bad UTF-8, or a malformed line; the message names it.
    """
    suffix = Path(path).suffix.lower()
    if suffix in FORMATS and not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    if suffix not in FORMATS and Path(path).is_file():
        raise ValueError(f"{path}: got a file of another kind, expected {', '.join(FORMATS)}")
    if suffix == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        try:
            columns = pq.read_table(path).to_pydict()
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        table = Table(path, columns, range(1, 1 + _length(columns)), "row")
    elif suffix in FORMATS:
        text = _decode(path)
        reader = {".tsv": _tsv, ".csv": _csv, ".txt": _txt, ".jsonl": _jsonl}[suffix]
        table = reader(path, text)
    else:
        table = _dataset(path, splits)
    if len(table) == 0:
        raise ValueError(f"{path}: got no rows")
    return table


def _length(columns: dict[str, list[Any]]) -> int:
    return len(next(iter(columns.values()), []))


def _decode(path: str) -> str:
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ValueError(f"{path}, line {line}: byte 0x{byte:02x} is no UTF-8") from None


def _txt(path: str, text: str) -> Table:
    rows = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return Table(path, {"sentence": [line for _, line in rows]}, [n for n, _ in rows])


def _tsv(path: str, text: str) -> Table:
    """No quoting: a quotation mark is a character like any other."""
    rows = (
        (number, line.removesuffix("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip("\r\n")
    )
    return _header_and_rows(path, rows)


def _csv(path: str, text: str) -> Table:
    csv.field_size_limit(1 << 30)
    # Strict: a quotation mark that is never closed would swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        begin = 1
        try:
            for cells in reader:
                if cells:
                    yield begin, cells
                begin = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {begin}: {error}") from None

    return _header_and_rows(path, rows())


def _header_and_rows(path: str, rows: Iterator[tuple[int, list[str]]]) -> Table:
    _, names = next(rows, (1, []))
    if len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: got a column name twice in {', '.join(names)}")
    lines, cells_of = [], []
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {number}: got {len(cells)} cells, expected {len(names)}: "
                + ", ".join(names)
            )
        lines.append(number)
        cells_of.append(cells)
    columns = [list(column) for column in zip(*cells_of, strict=True)] or [[] for _ in names]
    return Table(path, dict(zip(names, columns, strict=True)), lines)


def _jsonl(path: str, text: str) -> Table:
    lines, rows = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: got no JSON object")
        lines.append(number)
        rows.append(row)
    # A column that not all rows have is none, unless the first has it: then a row lacks it.
    names = list(rows[0]) if rows else []
    for number, row in zip(lines, rows, strict=True):
        for name in names:
            if name not in row:
                raise ValueError(f"{path}, line {number}: got no {name!r}")
    return Table(path, {name: [row[name] for row in rows] for name in names}, lines)


def _dataset(path: str, splits: Sequence[str]) -> Table:
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
    columns = {name: list(data[name]) for name in data.column_names}
    return Table(path, columns, range(1, 1 + len(data)), "row")
