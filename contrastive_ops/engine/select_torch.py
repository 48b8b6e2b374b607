"""``row_select`` in plain PyTorch: column blocks, bounded memory, on any device.

A block's products in the rows' own precision bound the scores; whatever could be among the k best
within the bound is scored as :mod:`.scores` defines it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .exclusions import Exclusions
from .scores import Metric, pair_scores, prepared_rows
from .similarity import full_precision


class Block(NamedTuple):
    """Queries against one block of candidates; see :func:`.select.row_select`."""

    query: Tensor
    corpus: Tensor
    normalize: bool
    metric: Metric
    exclude: Exclusions
    upper: Tensor | None
    first: int
    labels: tuple[Tensor, Tensor] | None = None
    """In place of exclusions, of rows and candidates; only where the backend has them."""


def select(
    block: Block, scores: Tensor, indices: Tensor, above: Tensor | None, budget: int
) -> dict[str, Any]:
    """Merges the block into scores and indices (N, k)."""
    scores, indices = scores.clone(), indices.clone()
    above = None if above is None else above.clone()
    n, m, dim = len(block.query), len(block.corpus), block.query.shape[1]
    dim *= 8 if block.query.dtype == torch.uint8 else 1
    wide = 8 * max(dim, 8)
    rows_at_once = max(1, min(n, 1024, budget // 8 // wide))
    # About eight numbers live for each pair of a tile.
    columns_at_once = max(1, min(m, budget // 2 // (64 * rows_at_once), budget // 8 // wide))
    scored = nan_rows = 0
    for column in range(0, m, columns_at_once):
        y, y_norm = prepared_rows(block.corpus[column : column + columns_at_once], block.normalize)
        nan_rows += int(y_norm.isnan().sum())
        for row in range(0, n, rows_at_once):
            part = slice(row, min(n, row + rows_at_once))
            x, x_norm = prepared_rows(block.query[part], block.normalize)
            tile = _Tile(block, x, x_norm, y, y_norm, row, column)
            limit = None if block.upper is None else block.upper[part]
            found = tile.candidates(scores[part], indices[part], limit)
            over, count = tile.merge(found, scores[part], indices[part], limit, budget)
            scored += count
            if above is not None and over is not None:
                above[part] += over
    return {
        "scores": scores,
        "indices": indices,
        "above": above,
        "scored": scored,
        "nan_rows": nan_rows,
    }


class _Tile:
    """Some rows against some columns."""

    def __init__(
        self, block: Block, x: Tensor, x_norm: Tensor, y: Tensor, y_norm: Tensor, row: int, col: int
    ) -> None:
        self.x, self.y, self.metric = x, y, block.metric
        self.first = block.first + col
        rows, index = block.exclude.pairs()
        inside = (rows >= row) & (rows < row + len(x))
        inside &= (index >= self.first) & (index < self.first + len(y))
        self.left_out = rows[inside] - row, index[inside] - self.first
        self.x_norm, self.y_norm = x_norm, y_norm

    def candidates(self, scores: Tensor, indices: Tensor, upper: Tensor | None) -> Tensor:
        """(rows, columns) bool: what may be among the k best, or is above the limit."""
        k = scores.shape[1]
        with full_precision(self.x.device):
            value = self.x @ self.y.T
        if self.metric == "l2":
            value = 2 * value - self.x_norm.square()[:, None] - self.y_norm.square()
        value = value.double()
        slack = self._slack()
        known = value.isfinite() & slack.isfinite()
        possible = ~(self.x_norm.isnan()[:, None] | self.y_norm.isnan())
        possible[self.left_out] = False
        low = torch.where(known & possible, value - slack, -torch.inf)
        if upper is not None:
            low = low.masked_fill(value + slack > upper.double()[:, None], -torch.inf)
        least = torch.where(indices[:, -1] >= 0, scores[:, -1].double(), -torch.inf)
        if value.shape[1] >= k:
            least = torch.maximum(least, low.topk(k, 1, sorted=False).values.amin(1))
        return possible & (~known | (value + slack >= least[:, None]))

    def _slack(self) -> Tensor:
        """A bound on how far the products are from the scores."""
        dtype = self.x.dtype
        unit = torch.finfo(dtype).eps
        # `allow_tf32` raises where only the newer setting was made.
        rounded = self.x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
        if dtype == torch.float32 and rounded:
            unit = 2.0**-9
        lengths = self.x_norm[:, None] * self.y_norm
        if self.metric == "l2":
            lengths = (self.x_norm[:, None] + self.y_norm).square()
        return (self.x.shape[1] + 32) * unit * lengths + torch.finfo(dtype).tiny * len(self.x.T)

    def merge(
        self, found: Tensor, scores: Tensor, indices: Tensor, upper: Tensor | None, budget: int
    ) -> tuple[Tensor | None, int]:
        """Scores the candidates and keeps the best, in place; counts those above the limit."""
        rows, columns = found.nonzero(as_tuple=True)
        at_once = max(1, budget // 8 // (64 * self.x.shape[1]))
        parts = [
            pair_scores(self.x[r], self.y[c], self.metric)
            for r, c in zip(rows.split(at_once), columns.split(at_once), strict=True)
        ]
        score = torch.cat(parts) if parts else scores.new_empty(0)
        over = merge(rows, columns + self.first, score, scores, indices, upper)
        return over, len(rows)


def merge(
    rows: Tensor,
    columns: Tensor,
    score: Tensor,
    scores: Tensor,
    indices: Tensor,
    upper: Tensor | None,
) -> Tensor | None:
    """Merges scored pairs into the best of each row, (N, k) in place: NaN never, and nothing above
    the limits (N,), of which the count per row is returned."""
    keep = ~score.isnan()
    over = None
    if upper is not None:
        above = keep & (score > upper[rows])
        over = torch.bincount(rows[above], minlength=len(scores))
        keep &= ~above
    earlier = (indices >= 0).nonzero(as_tuple=True)
    all_rows = torch.cat([earlier[0], rows[keep]])
    all_scores = torch.cat([scores[earlier], score[keep]])
    all_indices = torch.cat([indices[earlier], columns[keep]])
    order = all_indices.argsort(stable=True)
    order = order[all_scores[order].argsort(descending=True, stable=True)]
    order = order[all_rows[order].argsort(stable=True)]
    all_rows, all_scores, all_indices = all_rows[order], all_scores[order], all_indices[order]
    begin = torch.searchsorted(all_rows, torch.arange(len(scores), device=all_rows.device))
    rank = torch.arange(len(all_rows), device=all_rows.device) - begin[all_rows]
    best = rank < scores.shape[1]
    scores[all_rows[best], rank[best]] = all_scores[best]
    indices[all_rows[best], rank[best]] = all_indices[best]
    return over
