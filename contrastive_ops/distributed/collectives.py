"""What travels between ranks, and its gradient: rows gathered, numbers added up.

A collective is called by every rank of the group, in the same order, also in the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad


class Spread(NamedTuple):
    """How the rows of a set are spread over the ranks: rank r holds ``counts[r]`` of them.

    Counted over all ranks, rows stand in the order of the ranks.
    """

    group: dist.ProcessGroup | None
    rank: int
    counts: tuple[int, ...]

    @property
    def first(self) -> int:
        """The number of this rank's first row."""
        return sum(self.counts[: self.rank])

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        return slice(self.first, self.first + self.counts[self.rank])

    @property
    def total(self) -> int:
        return sum(self.counts)


def spread_of(count: int, device: torch.device) -> Spread:
    """How many rows each rank of the default group has; of a single process without any group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Spread(None, 0, (count,))
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    dist.all_reduce(counts)
    return Spread(None, dist.get_rank(), tuple(counts.tolist()))


def gather(x: Tensor, spread: Spread) -> Tensor:
    """This rank's rows (n, ...) -> those of all ranks (N, ...), differentiable any number of times.

    The gradient of a rank's rows is the sum of what all ranks found for them.
    """
    return _Gather.apply(x, spread)


def total(x: Tensor, group: dist.ProcessGroup | None, factor: int) -> Tensor:
    """The 0-dim sum over ranks; the gradient of a rank's own term, times ``factor``."""
    return _Total.apply(x, group, factor)


def shared(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """A value that all ranks hold alike; its gradient is the mean over ranks, alike as well."""
    return _Shared.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spread: Spread) -> Tensor:
        ctx.spread = spread
        return _gathered(x, spread)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.spread), None


class _Scatter(torch.autograd.Function):
    """The sum over ranks, of which each keeps its own rows: the adjoint of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spread: Spread) -> Tensor:
        ctx.spread = spread
        return _scattered(x, spread)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.spread), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, factor: int) -> Tensor:
        ctx.factor = factor
        every = x.to(torch.float64, copy=True)
        dist.all_reduce(every, group=group)
        return every.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.factor, None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Mean.apply(grad, ctx.group), None


class _Mean(torch.autograd.Function):
    """Over ranks; its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        every = x.to(torch.float64, copy=True)
        dist.all_reduce(every, group=group)
        return (every / dist.get_world_size(group)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Mean.apply(grad, ctx.group), None


def all_gather_rows(every: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # until 2.13
    call(every, x, group=group)


def reduce_scatter_rows(own: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # until 2.13
    call(own, x, group=group)


def _gathered(x: Tensor, spread: Spread) -> Tensor:
    """Collectives want as many rows of each rank: those with fewer send rows that nobody reads."""
    most = max(spread.counts)
    padded = pad(x, (0, 0) * (x.dim() - 1) + (0, most - x.shape[0])).contiguous()
    every = x.new_empty(len(spread.counts) * most, *x.shape[1:])
    all_gather_rows(every, padded, spread.group)
    if most * len(spread.counts) == spread.total:
        return every
    blocks = every.split(most)
    return torch.cat([block[:n] for block, n in zip(blocks, spread.counts, strict=True)])


def _scattered(x: Tensor, spread: Spread) -> Tensor:
    """16-bit rows are added up in float32 and rounded once."""
    most = max(spread.counts)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if most * len(spread.counts) != spread.total:
        blocks = wide.split(spread.counts)
        wide = torch.cat([pad(b, (0, 0) * (x.dim() - 1) + (0, most - len(b))) for b in blocks])
    own = wide.new_empty(most, *x.shape[1:])
    reduce_scatter_rows(own, wide.contiguous(), spread.group)
    return own[: spread.counts[spread.rank]].to(x.dtype)
