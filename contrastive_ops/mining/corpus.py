"""Corpora: tensors, numpy arrays and memory maps, or blocks that come one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..engine import check

BLOCK_BYTES = 16 << 20
"""Of a memory map, read at a time."""

DTYPES = (*check.FLOATING, torch.int8, torch.uint8)

Rows = Tensor | np.ndarray
Blocks = Rows | Iterable[Rows]


def as_rows(name: str, value: Any) -> Tensor:
    """A matrix of embeddings: floating, int8, or packed bits as uint8."""
    if isinstance(value, np.ndarray):
        # A read-only array may not become a tensor without a copy.
        value = torch.from_numpy(value if value.flags.writeable else np.array(value))
    x = check.tensor(name, value)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected a matrix (rows, width)")
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: got {x.dtype}, expected float16, bfloat16, float32, float64, int8, or packed "
            "bits as uint8"
        )
    return x.detach()


class Corpus:
    """Candidates for queries like ``query``, in blocks.

    Args:
        value: (M, D) tensor, array or memory map, or an iterable of such blocks, in order.
        query: (N, D); its dtype, width and device are the blocks'.
        name: the argument's, for errors.
    """

    def __init__(self, value: Blocks, query: Tensor, name: str = "corpus") -> None:
        self.value, self.query, self.name = value, query, name
        self.is_whole = isinstance(value, Tensor | np.ndarray)
        self.is_repeatable = self.is_whole or not isinstance(value, Iterator)
        if not self.is_whole and not isinstance(value, Iterable):
            raise TypeError(
                f"{name}: got {type(value).__name__}, expected a tensor, an array or blocks of them"
            )
        if isinstance(value, np.memmap):
            self._checked(value[:1])
        elif self.is_whole:
            self.value = self._checked(cast(Rows, value))

    def __len__(self) -> int:
        """Candidates in all; unknown for an iterable."""
        if not self.is_whole:
            raise TypeError(f"{self.name}: the length of an iterable is not known")
        return len(cast(Rows, self.value))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(index of its first row, block) in order."""
        first = 0
        for block in self._parts():
            yield first, block
            first += len(block)

    def rows(self, index: Tensor) -> Tensor:
        """(..., D) rows at any indices; of a whole corpus only."""
        value = cast(Rows, self.value)
        if isinstance(value, Tensor):
            return value[index]
        flat = self._checked(np.asarray(value[index.reshape(-1).numpy()]))
        return flat.reshape(*index.shape, flat.shape[1])

    def _parts(self) -> Iterator[Tensor]:
        if isinstance(self.value, Tensor):
            yield self.value
        elif isinstance(self.value, np.ndarray):
            at_once = max(1, BLOCK_BYTES // max(1, self.value[:1].nbytes))
            for start in range(0, len(self.value), at_once):
                yield self._checked(np.array(self.value[start : start + at_once]))
        else:
            for block in self.value:
                yield self._checked(block)

    def _checked(self, block: Rows) -> Tensor:
        rows = as_rows(self.name, block)
        check.same(self.name, rows, "queries", self.query)
        return rows


def read_index(name: str, value: Any, n: int, like: Tensor) -> Tensor:
    """(N, P) int64 with -1 pads from (N,) or (N, P)."""
    if isinstance(value, Sequence | np.ndarray):
        value = torch.as_tensor(value)
    x = check.tensor(name, value)
    width = x.shape[1] if x.dim() == 2 else 1
    x = check.integers(name, x, ((n,), (n, width)), like)
    if check.readable(x) and x.numel() and int(x.min()) < -1:
        raise ValueError(f"{name}: got index {int(x.min())}, expected indices >= 0, or -1 as a pad")
    return x.reshape(n, width)
