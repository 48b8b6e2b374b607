"""Candidates that go round the ranks of a group, each rank's to the next one.

Messages between two ranks arrive in the order in which both post them: every rank makes the same
calls, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from .collectives import Spread


class Candidates(NamedTuple):
    """One rank's candidates of one kind: rows, and what belongs to each of them."""

    rows: Tensor  # (K, D)
    ids: Tensor | None  # (K, R)
    bias: Tensor | None  # (K,)
    guide: Tensor | None  # (K, G)


def around(own: Candidates, spread: Spread) -> Iterator[tuple[int, Candidates]]:
    """Each rank's candidates with its number, own first; the next arrive while these are in use."""
    world = len(spread.counts)
    held = own
    for step in range(world):
        origin = (spread.rank - step) % world
        if step == world - 1:
            yield origin, held
            return
        given = [t is not None for t in held]
        rows = spread.counts[origin - 1]
        coming, works = _exchange([t for t in held if t is not None], rows, spread)
        yield origin, held
        for work in works:
            work.wait()
        arrived = iter(coming)
        held = Candidates._make(next(arrived) if there else None for there in given)


def passed_on(x: Tensor, spread: Spread, origin: int) -> Tensor:
    """To the next rank what belongs to the candidates of ``origin``, for what belongs to those
    that come next; after a whole round that is one's own."""
    (coming,), works = _exchange([x], spread.counts[origin - 1], spread)
    for work in works:
        work.wait()
    return coming


def _exchange(
    tensors: list[Tensor], rows: int, spread: Spread
) -> tuple[list[Tensor], list[dist.Work]]:
    """Sends to the next rank, and receives the like, of ``rows`` rows, from the one before."""
    world, group = len(spread.counts), spread.group
    after, before = (spread.rank + 1) % world, (spread.rank - 1) % world
    tensors = [t.contiguous() for t in tensors]
    coming = [t.new_empty(rows, *t.shape[1:]) for t in tensors]
    sends = [dist.P2POp(dist.isend, t, group=group, group_peer=after) for t in tensors]
    receives = [dist.P2POp(dist.irecv, t, group=group, group_peer=before) for t in coming]
    return coming, dist.batch_isend_irecv(sends + receives)
