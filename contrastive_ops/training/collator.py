"""From rows to a batch: tokens of every column, and numbers that say which texts are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor


@dataclass
class RecipeCollator(SentenceTransformerDataCollator):
    """sentence-transformers' collator with two additions.

    Attributes:
        texts: the text columns.
        with_ids: whether to put ids of texts, see :func:`text_ids`, where labels go.
        frozen_fn: tokenizes for a frozen model, or None.
        frozen_texts: the columns that it reads; their tokens follow the others'.
    """

    texts: Sequence[str] = ()
    with_ids: bool = False
    frozen_fn: Callable[..., dict[str, Any]] | None = None
    frozen_texts: Sequence[str] = field(default_factory=tuple)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch that the trainer splits up again into columns and labels."""
        batch: dict[str, Any] = super().__call__(features)
        if self.frozen_fn is not None:
            for name in self.frozen_texts:
                found = self.frozen_fn([row[name] for row in features])
                # The trainer tells columns by their tokens; it has no use for what is no tensor.
                batch |= {f"frozen_{name}_{key}": value for key, value in found.items()}
        if self.with_ids:
            batch["label"] = text_ids([[row[name] for row in features] for name in self.texts])
        return batch


def text_ids(columns: Sequence[Sequence[str]]) -> Tensor:
    """(N, 1 + C) int64: the group of each row, and an id of each text.

    Rows that share the text of the first or second column, directly or through others, are of one
    group: none's positive is a negative to another. Equal texts have equal ids in all batches.

    Args:
        columns: C of N texts: anchors, positives, negatives.
    """
    ids = torch.tensor([[_hash(text) for text in c] for c in columns], dtype=torch.int64).T
    return torch.cat([groups(ids[:, :2]).unsqueeze(1), ids], 1)


def groups(ids: Tensor) -> Tensor:
    """(N,) int64 the group of each row: rows that share an id of any column, directly or through
    others, have the same.

    Args:
        ids: (N, 1 or 2) int64.
    """
    group = list(range(len(ids)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    first: dict[int, int] = {}
    for column in ids.T.tolist():
        for row, text in enumerate(column):
            other = root(first.setdefault(text, row))
            mine = root(row)
            group[max(mine, other)] = min(mine, other)
    return torch.tensor([root(i) for i in range(len(ids))], device=ids.device)


def _hash(text: str) -> int:
    """63 bits, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
