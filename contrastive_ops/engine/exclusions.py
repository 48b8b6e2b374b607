"""What rows of a selection leave out, in memory proportional to the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exclusions:
    """What rows leave out: row i the candidates ``index[begin[i]:begin[i + 1]]``, ascending."""

    begin: Tensor
    index: Tensor

    def rows(self, start: int, stop: int) -> Exclusions:
        """Those of some rows."""
        first, last = int(self.begin[start]), int(self.begin[stop])
        return Exclusions(self.begin[start : stop + 1] - first, self.index[first:last])

    @staticmethod
    def of(index: Tensor) -> Exclusions:
        """From (N, E) indices, negative ones being pads, in any order and as often as they like."""
        ordered = index.to(torch.int64).sort(1).values
        keep = ordered >= 0
        keep[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        begin = torch.zeros(len(index) + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(keep.sum(1), 0, out=begin[1:])
        return Exclusions(begin, ordered[keep])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(row, index) of every exclusion."""
        rows = torch.arange(len(self.begin) - 1, device=self.begin.device)
        return rows.repeat_interleave(self.begin.diff()), self.index
