"""Which column of a table is what: by the names that datasets use, or as a source says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .files import SPLITS, read_table
from .table import Table

DEV_SPLITS = ("validation", "dev", "test", "train")

#: What a column is for, and the names that it usually has, the surest first: those of
#: sentence-transformers, SimCSE's CSV, FlagEmbedding's JSON lines, NLI and STS sets.
ROLES: dict[str, tuple[str, ...]] = {
    "anchor": ("anchor", "query", "question", "sent0", "premise", "sentence1", "sentence_A"),
    # Not "hypothesis": that of an NLI pair may contradict.
    "positive": (
        *("positive", "pos", "answer", "sent1", "document", "passage", "context"),
        *("sentence2", "sentence_B", "sentence"),
    ),
    "negative": ("negative", "neg", "hard_neg", "negatives"),
    "sentence": ("sentence", "text", "sent0", "document", "utterance", "question"),
    "sentence1": (
        *("sentence1", "sentence_1", "sentence_A", "text1", "text_a"),
        *("premise", "sent0", "anchor"),
    ),
    "sentence2": (
        *("sentence2", "sentence_2", "sentence_B", "text2", "text_b"),
        *("hypothesis", "sent1", "positive"),
    ),
    "label": ("label", "intent", "class", "category", "topic"),
    "score": ("score", "similarity_score", "gold", "label"),
    "query": ("query", "question", "anchor", "sentence", "text"),
    # "source" last: in other tables it says where a row is from.
    "source": ("english", "anchor", "sentence1", "text", "sentence", "source"),
    "target": ("target", "non_english", "translation", "positive", "sentence2"),
}

#: Kinds of development sets, and the roles of the columns that tell them, the surest first.
KINDS = {
    "sts": ("sentence1", "sentence2", "score"),
    "knn": ("sentence", "label"),
    "retrieval": ("anchor", "positive"),
}


def read_columns(
    source: str, *roles: str, splits: Sequence[str] = SPLITS
) -> tuple[Table, tuple[str, ...]]:
    """A table, and the names of those of its columns that play the roles.

    Args:
        source: ``PATH`` or ``PATH:COLUMN,COLUMN...``: a ``.tsv`` or ``.csv`` with a header row, a
            ``.txt`` of one text a line (column ``sentence``), a ``.jsonl``, a ``.parquet``, or the
            folder or name of a Hugging Face dataset, with ``@SPLIT`` if it has several.
        roles: keys of ``ROLES``, whose names are looked for where `source` names no columns. A
            table without them, but with as many columns as roles, is taken in its own order if all
            are texts.
        splits: see :func:`read_table`.

    Raises:
        ValueError: no such file, no rows, a file that cannot be read, or columns that are missing.
    """
    path, names = split_source(source)
    table = read_table(path, splits=splits)
    if names is None:
        names = [next((n for n in ROLES[role] if n in table.columns), "") for role in roles]
        only_texts = not {"score", "label"} & set(roles)
        if "" in names and only_texts and len(table.columns) == len(roles):
            names = list(table.columns)
        if "" in names:
            raise ValueError(
                f"{path}: got the columns {', '.join(table.columns)}; expected "
                f"{', '.join(roles)}; name those to take: {path}:{','.join(roles).upper()}"
            )
    if len(names) != len(roles):
        raise ValueError(
            f"{source}: got {len(names)} columns, expected {len(roles)}: {', '.join(roles)}"
        )
    table.need(*names)
    return table, tuple(names)


def read_development_set(source: str) -> tuple[str, Table, list[str]]:
    """A development set, which its columns or those that `source` names tell.

    Three named columns are pairs with scores, two others than a text and a label are pairs.

    Args:
        source: see :func:`read_columns`.

    Returns:
        Its kind, a key of ``KINDS``; the table; the names of the columns of that kind's roles.

    Raises:
        ValueError: as :func:`read_columns`.
    """
    path, named = split_source(source)
    table = read_table(path, splits=DEV_SPLITS)
    if named is not None:
        table.need(*named)
        if len(named) == 3:
            return "sts", table, named
    for kind, roles in KINDS.items():
        columns: list[str] = []
        for role in roles:
            free = (n for n in ROLES[role] if n in (named or table.columns) and n not in columns)
            columns += [next(free, "")]
        if all(columns):
            return kind, table, columns
    if named is not None and len(named) == 2:
        return "retrieval", table, named
    expected = " or ".join(", ".join(roles) for roles in KINDS.values())
    raise ValueError(f"{path}: got the columns {', '.join(table.columns)}, expected {expected}")


def split_source(source: str) -> tuple[str, list[str] | None]:
    """``PATH:A,B`` as the path and the columns, or None."""
    path, colon, names = source.rpartition(":")
    if not colon or Path(source).exists() or "/" in names:
        return source, None
    if not all(names.split(",")):
        raise ValueError(f"{source}: got no name after the colon or a comma, expected columns")
    return path, names.split(",")
