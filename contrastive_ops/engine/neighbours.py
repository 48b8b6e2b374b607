"""Nearest rows of another label, and distances of chosen pairs of rows: what mined triplets need.

On the CPU by kernels of ours (``csrc/cpu/neighbours.h``): half a matrix product finds, distances
are symmetric; the pairs' distances are differences of rows, not of products, and their gradient is
added row by row in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, extension, tracing
from .reference import MAX_ELEMENTS


def available(rows: Tensor, backend: str | None = None) -> bool:
    """Whether the kernels serve these rows; where not, callers have plain PyTorch."""
    if not rows.is_cpu or tracing.is_traced() or tracing.needs_reference((rows,)):
        return False
    return backends.choose(backend, rows.device, rows.dtype) == "cpu"


@torch.no_grad()
def closest_of_another_label(
    rows: Tensor,
    label: Tensor,
    bound: Tensor | None = None,
    *,
    cosine: bool = False,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor | None]:
    """For each row the closest row with another label; of equals the first, and -1 where none is.

    Args:
        rows: (N, D) float32 or float64.
        label: (N,) int32.
        bound: (S, N) int32, or None. With it: for each slot the closest of those that are farther
            from the anchor than the row ``bound[s, anchor]`` (-1: the slot stays empty).
        cosine: by dot product, not by Euclidean distance.

    Returns:
        (S, N) int32, S = 1 without bound; and with bound the farthest row with another label, (N,).
    """
    half_norm = None if cosine else rows.square().sum(1) / 2
    closest, farthest = torch.ops.contrastive_ops.neighbours(
        rows, half_norm, label, bound, workspace_bytes
    )
    return closest, None if bound is None else farthest


def squared_distances(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(E,) squared Euclidean distances of rows ``left`` and ``right``, int64 (E,) each.

    Differentiable in the rows: O((N + E) D), with the same bits at every number of threads.
    """
    found: Tensor = _Distances.apply(rows, left, right)
    return found


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(rows, left, right):  # type: ignore[no-untyped-def]
        return _kernel().pair_distances(rows, left, right, None)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        rows, left, right = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _kernel().pair_distances(rows, left, right, grad.contiguous()), None, None
        if left.numel() * rows.shape[1] > MAX_ELEMENTS:
            raise ValueError(
                f"second derivatives build {left.numel()} x {rows.shape[1]} differences, expected "
                f"at most {MAX_ELEMENTS} elements"
            )
        pull = 2 * grad.unsqueeze(1) * (rows[left] - rows[right])
        empty = torch.zeros_like(rows)
        return empty.index_add(0, left, pull).index_add(0, right, -pull), None, None


# As an operator, which sees plain tensors under PyTorch's function transforms.
_library = torch.library.Library("contrastive_ops", "FRAGMENT")
_library.define(
    "neighbours(Tensor rows, Tensor? half_norm, Tensor label, Tensor? bound, int workspace_bytes) "
    "-> (Tensor, Tensor)"
)


def _neighbours(
    rows: Tensor, half_norm: Tensor | None, label: Tensor, bound: Tensor | None, room: int
) -> tuple[Tensor, Tensor]:
    closest, farthest = _kernel().neighbours(
        rows, half_norm, label.contiguous(), bound, bound is not None, room
    )
    return closest, label.new_empty(0) if farthest is None else farthest


def _fake(
    rows: Tensor, half_norm: Tensor | None, label: Tensor, bound: Tensor | None, room: int
) -> tuple[Tensor, Tensor]:
    n = rows.shape[0]
    if bound is None:
        return label.new_empty((1, n)), label.new_empty(0)
    return label.new_empty(bound.shape), label.new_empty(n)


def _kernel() -> Any:
    kernel, reason = extension.load()
    if kernel is None:
        raise ValueError(f"backend 'cpu' cannot be used here: {reason}")
    return kernel


_library.impl("neighbours", _neighbours, "CompositeExplicitAutograd")
torch.library.register_fake("contrastive_ops::neighbours", _fake, lib=_library)
