"""Rows by column; what is wrong in a cell is told with its file and line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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

    def need(self, *names: str) -> None:
        """Raises a ValueError that names the columns that are missing, if any is."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ValueError(
                f"{self.source}: got the columns {', '.join(self.columns)}, expected "
                + ", ".join(missing)
            )

    def texts(self, name: str) -> list[str]:
        """A column of texts, none of which is empty.

        Raises:
            ValueError: a value that is no text, or blank, or half of a character; the message
                names its line.
        """
        for row, value in enumerate(self.columns[name]):
            if not isinstance(value, str):
                raise ValueError(f"{self.where(row)}: got {value!r} as {name}, expected a text")
            if not value or value.isspace():
                raise ValueError(f"{self.where(row)}: got no text in {name}")
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise ValueError(f"{self.where(row)}: {name}: {error}") from None
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
            if (
                not isinstance(value, str | int)
                or isinstance(value, bool)
                or not str(value).strip()
            ):
                raise ValueError(
                    f"{self.where(row)}: got {value!r} as {name}, expected a word or whole number"
                )
            labels.append(str(value))
        return labels
