"""Corpora: tensors, numpy arrays and memory maps, or blocks that come one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..engine import check
from ..engine.scores import Metric

BLOCK_BYTES = 16 << 20
"""Of a memory map, read at a time."""

DTYPES = (*check.FLOATING, torch.int8, torch.uint8)

Rows = Tensor | np.ndarray
Blocks = Rows | Iterable[Rows]


def as_rows(name: str, value: Any) -> Tensor:
    """A matrix of embeddings: floating, int8, or packed bits as uint8."""
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
    x = check.tensor(name, value)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected a matrix (rows, width)")
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: got {x.dtype}, expected float16, bfloat16, float32, float64, int8, or packed "
            "bits as uint8"
        )
    return x.detach()


def _from_numpy(name: str, value: np.ndarray) -> Tensor:
    """Without a copy, unless the array is read-only, reversed or of the other byte order."""
    native = value.dtype.newbyteorder("=")
    if not value.flags.writeable or value.dtype != native or min(value.strides, default=0) < 0:
        value = np.array(value, dtype=native, order="C")
    try:
        return torch.from_numpy(value)
    except TypeError as error:
        raise ValueError(f"{name}: got an array of {value.dtype}, expected numbers") from error


def scoring(query: Tensor, normalize: bool, metric: Metric = "dot") -> tuple[bool, Metric]:
    """``normalize`` and ``metric`` for rows like these: packed bits have Hamming distances."""
    return (False, "l2") if query.dtype == torch.uint8 else (normalize, metric)


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
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: got no matrix of integers: {error}") from error
    x = check.tensor(name, value)
    width = x.shape[1] if x.dim() == 2 else 1
    x = check.integers(name, x, ((n,), (n, width)), like)
    if check.readable(x) and x.numel() and int(x.min()) < -1:
        raise ValueError(f"{name}: got index {int(x.min())}, expected indices >= 0, or -1 as a pad")
    return x.reshape(n, width)


def check_range(name: str, index: Tensor, count: int) -> None:
    """Indices into a corpus of so many rows."""
    if check.readable(index) and index.numel() and int(index.max()) >= count:
        raise ValueError(
            f"{name}: got index {int(index.max())}, expected less than {count}, the rows of corpus"
        )
