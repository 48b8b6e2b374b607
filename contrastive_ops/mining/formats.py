"""Mined negatives as training data: sentence-transformers' four formats and FlagEmbedding's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..training.atomic import atomic_path
from .hard_negatives import HardNegatives
from .texts import TextPairs

FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding")
Row = dict[str, Any]


def rows_of(
    pairs: TextPairs, mined: HardNegatives, kind: str, names: tuple[str, str] = ("query", "answer")
) -> Iterator[Row]:
    """Rows of a dataset.

    * ``triplet``: a row for each positive and each negative of a query: two named columns and
      ``negative``;
    * ``n-tuple``: a row for each positive whose query has all negatives: ``negative_1``, ...;
    * ``labeled-pair``: a row for each positive (``label`` 1) and each negative (0) of a query;
    * ``labeled-list``: a row for each positive: texts and ``labels``, the positive first;
    * ``flagembedding``: a row for each query: ``query``, ``pos``, ``neg`` and ``neg_scores``.
    """
    query_name, text_name = names
    texts = pairs.corpus
    width = mined.indices.shape[1]
    for query, positives, index, score in zip(
        pairs.queries,
        pairs.positives,
        mined.indices.tolist(),
        mined.scores.tolist(),
        strict=True,
    ):
        negatives = [texts[j] for j in index if j >= 0]
        if kind == "flagembedding":
            if negatives:
                kept = [s for s, j in zip(score, index, strict=True) if j >= 0]
                positive = [texts[p] for p in positives]
                yield {"query": query, "pos": positive, "neg": negatives, "neg_scores": kept}
            continue
        for p in positives:
            row = {query_name: query, text_name: texts[p]}
            if kind == "triplet":
                yield from ({**row, "negative": text} for text in negatives)
            elif kind == "n-tuple" and len(negatives) == width:
                yield row | {f"negative_{i}": text for i, text in enumerate(negatives, 1)}
            elif kind == "labeled-list" and negatives:
                labels = [1] + [0] * len(negatives)
                yield {query_name: query, text_name: [texts[p], *negatives], "labels": labels}
            elif kind == "labeled-pair":
                yield {**row, "label": 1}
        if kind == "labeled-pair":
            yield from ({query_name: query, text_name: text, "label": 0} for text in negatives)


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """JSON lines where the name ends in .jsonl, else the folder of a dataset; returns the rows."""
    if path.suffix != ".jsonl":
        from datasets import Dataset

        data = Dataset.from_list(list(rows))
        with atomic_path(path) as scratch:
            data.save_to_disk(str(scratch))
        return len(data)
    count = 0
    with atomic_path(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
