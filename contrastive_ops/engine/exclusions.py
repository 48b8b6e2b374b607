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

    @staticmethod
    def equal(row_ids: Tensor, column_ids: Tensor) -> Exclusions:
        """Each row's candidates of its own id, ids (N,) and (M,); memory is that of the pairs."""
        ordered, order = column_ids.sort(stable=True)
        start = torch.searchsorted(ordered, row_ids)
        count = torch.searchsorted(ordered, row_ids, right=True) - start
        begin = torch.zeros(len(row_ids) + 1, dtype=torch.int64, device=row_ids.device)
        torch.cumsum(count, 0, out=begin[1:])
        place = torch.arange(int(begin[-1]), device=row_ids.device)
        place += (start - begin[:-1]).repeat_interleave(count)
        return Exclusions(begin, order[place])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(row, index) of every exclusion."""
        rows = torch.arange(len(self.begin) - 1, device=self.begin.device)
        return rows.repeat_interleave(self.begin.diff()), self.index
