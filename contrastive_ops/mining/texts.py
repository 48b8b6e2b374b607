"""Pairs of texts as distinct queries and the distinct texts to mine in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tables import read_table, split_source


def read_texts(source: str, count: int) -> list[list[str]]:
    """Columns of texts from a table.

    Args:
        source: as for :func:`contrastive_ops.tables.read_columns`; of a dataset with
            splits, ``train``.
        count: how many columns: those that `source` names, or the first ones.

    Raises:
        ValueError: no such file, column or text.
    """
    path, names = split_source(source)
    if names is not None and len(names) != count:
        raise ValueError(f"{source}: got {len(names)} columns, expected {count}")
    table = read_table(path, splits=("train",), columns=names or count)
    return [table.texts(name) for name in names or table.columns]


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
