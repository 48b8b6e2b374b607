"""The nearest row of another class, and the extremes of a row's own, by half a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import neighbours
from ..engine.similarity import full_precision
from ..engine.stripes import COPIES, STRIPE_BYTES
from .arguments import wide
from .distance import squared_l2_factors

OWN_ROWS = 128
"""Rows that meet the columns of their own classes together."""


@torch.no_grad()
def nearest_outside(
    rows: Tensor,
    first: Tensor,
    end: Tensor,
    workspace_bytes: int,
    backend: str | None = None,
    *,
    cosine: bool = False,
) -> Tensor:
    """(N,) for each row the row nearest to it outside its own range [first, end).

    Nearest by Euclidean distance; with ``cosine`` by the dot product of these (unit) rows.

    ``rows`` are sorted by class. Distances are symmetric: each block of rows only meets the rows
    from itself on, and what it finds serves both sides. The maxima say in which block the nearest
    row is; that block is met once more to find it there. The first of equals wins within a block.
    """
    if torch.compiler.is_compiling():  # what is chosen where is no matter of a graph's
        return _nearest_outside(rows, first, end, workspace_bytes, backend, cosine)
    if neighbours.available(rows, backend):
        rows = wide(rows) if cosine else wide(rows) - wide(rows).mean(0)
        found, _ = neighbours.closest_of_another_label(
            rows, first.to(torch.int32), cosine=cosine, workspace_bytes=workspace_bytes
        )
        return found[0].clamp(min=0).to(torch.int64)
    query, key = _factors(rows, cosine)
    n = rows.shape[0]
    room = min(workspace_bytes // COPIES, STRIPE_BYTES)
    step = max(1, room // (n * rows.element_size()))
    blocks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    best = torch.full((n,), -torch.inf, dtype=query.dtype, device=rows.device)
    where = torch.zeros(n, dtype=torch.int64, device=rows.device)
    with full_precision(rows.device):
        for i, part in enumerate(blocks):
            closeness = _apart(query, key, first, end, part, slice(part.start, n))
            # A block of columns at a time, so that each row knows its best block.
            for j, other in enumerate(blocks[i:], i):
                tile = closeness[:, other.start - part.start : other.stop - part.start]
                _update(best, where, part, tile.amax(1), j)
                if j > i:
                    _update(best, where, other, tile.amax(0), i)
        nearest = torch.empty_like(where)
        for j, part in enumerate(blocks):
            asking = (where == j).nonzero().squeeze(1)
            for some in asking.split(max(1, step)):
                closeness = query[some] @ key[part].T
                column = torch.arange(part.start, part.stop, device=rows.device)
                own = (column >= first[some, None]) & (column < end[some, None])
                nearest[some] = closeness.masked_fill_(own, -torch.inf).argmax(1) + part.start
    return nearest


@torch.no_grad()
def extreme_within(
    rows: Tensor,
    first: Tensor,
    end: Tensor,
    farthest: bool,
    workspace_bytes: int,
    *,
    cosine: bool = False,
) -> Tensor:
    """(N,) for each sorted row the farthest (or nearest) other row of its range; itself if none."""
    if torch.compiler.is_compiling():
        return _extreme_within(rows, first, end, farthest, workspace_bytes, cosine)
    query, key = _factors(rows, cosine)
    n = rows.shape[0]
    room = min(workspace_bytes // COPIES, STRIPE_BYTES)
    step = max(1, min(OWN_ROWS, room // (n * rows.element_size())))
    found = []
    with full_precision(rows.device):
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            low, high = int(first[start]), int(end[part.stop - 1])
            closeness = query[part] @ key[low:high].T
            column = torch.arange(low, high, device=rows.device)
            row = torch.arange(part.start, part.stop, device=rows.device).unsqueeze(1)
            other = (column < first[part, None]) | (column >= end[part, None]) | (column == row)
            if farthest:
                index = closeness.masked_fill_(other, torch.inf).argmin(1)
            else:
                index = closeness.masked_fill_(other, -torch.inf).argmax(1)
            found.append(index + low)
    alone = end - first == 1
    return torch.where(alone, torch.arange(n, device=rows.device), torch.cat(found))


def _factors(rows: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """Rows whose dot products rise with closeness. (By distances, a zero row would be closer than
    its cosine of 0 to everything says.)"""
    return (rows, rows) if cosine else squared_l2_factors(rows, rows)[:2]


def _apart(
    query: Tensor, key: Tensor, first: Tensor, end: Tensor, part: slice, columns: slice
) -> Tensor:
    """Closeness of some rows to later ones, -inf within a range."""
    closeness = query[part] @ key[columns].T
    low, high = max(int(first[part.start]), columns.start), int(end[part.stop - 1])
    column = torch.arange(low, high, device=key.device)
    own = (column >= first[part, None]) & (column < end[part, None])
    closeness[:, low - columns.start : high - columns.start].masked_fill_(own, -torch.inf)
    return closeness


def _update(best: Tensor, where: Tensor, rows: slice, value: Tensor, block: int) -> None:
    better = value > best[rows]
    best[rows] = torch.where(better, value, best[rows])
    where[rows] = torch.where(better, block, where[rows])


# As operators, which is how torch.compile sees them.
@torch.library.custom_op("contrastive_ops::nearest_outside", mutates_args=())
def _nearest_outside(
    rows: Tensor,
    first: Tensor,
    end: Tensor,
    workspace_bytes: int,
    backend: str | None,
    cosine: bool,
) -> Tensor:
    return nearest_outside(rows, first, end, workspace_bytes, backend, cosine=cosine)


@torch.library.custom_op("contrastive_ops::extreme_within", mutates_args=())
def _extreme_within(
    rows: Tensor, first: Tensor, end: Tensor, farthest: bool, workspace_bytes: int, cosine: bool
) -> Tensor:
    return extreme_within(rows, first, end, farthest, workspace_bytes, cosine=cosine)


@_nearest_outside.register_fake
@_extreme_within.register_fake
def _one_each(rows: Tensor, first: Tensor, *_: object) -> Tensor:
    return torch.empty_like(first)
