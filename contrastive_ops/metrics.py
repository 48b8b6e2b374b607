"""Two numbers that say how good a space of embeddings is, whatever the task.

Alignment is the distance between the two sides of a positive pair; uniformity is how evenly the
embeddings cover the hypersphere. A contrastive loss lowers both (Wang and Isola, "Understanding
Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Rows of the distance matrix that exist at a time: a block is at most this many bytes.
_BLOCK_BYTES = 32 * 2**20


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0) -> Tensor:
    """Mean distance of positive pairs on the unit sphere, to the power alpha: lower is better.

    Args:
        x, y: (N, D) embeddings, N >= 1, of one floating dtype; row i of `x` belongs to row i of
            `y`. They are normalised here. An all-zero row stays zero.
        alpha: power of the Euclidean distance, > 0.

    Returns:
        0-dim tensor, float32 (float64 for float64 input), differentiable in both.

    Raises:
        ValueError: shapes or dtypes that differ, an empty batch, or `alpha` not positive.
    """
    x, y = _embeddings("x", x), _embeddings("y", y)
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"y: expected {x.dtype} on {x.device} as x has, got {y.dtype} on {y.device}"
        )
    _positive("alpha", alpha)
    squared = (_unit(x) - _unit(y)).square().sum(dim=1)
    if alpha == 2.0:
        return squared.mean()
    # The root of a zero distance has no gradient of its own; it takes part in none.
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0) ** (alpha / 2), 0.0).mean()


def uniformity(x: Tensor, *, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential between all pairs of rows: lower is more uniform.

    `log mean_{i<j} exp(-t |x_i - x_j|^2)` over unit vectors, in blocks of rows: memory beyond the
    input grows as N, not as its square, with or without gradient.

    Args:
        x: (N, D) embeddings, N >= 2, any floating dtype. They are normalised here.
        t: inverse width of the Gaussian, > 0.

    Returns:
        0-dim tensor, float32 (float64 for float64 input), differentiable.

    Raises:
        ValueError: fewer than two rows, no floating dtype, or `t` not positive.
    """
    x = _embeddings("x", x)
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows to compare, got {len(x)}")
    _positive("t", t)
    unit = _unit(x)
    rows = max(1, _BLOCK_BYTES // (len(x) * unit.element_size()))
    parts = []
    for start in range(0, len(x) - 1, rows):
        stop = min(start + rows, len(x) - 1)
        if unit.requires_grad:
            # Recomputed in the backward pass: otherwise autograd would keep every block.
            parts.append(checkpoint(_log_potential, unit, start, stop, t, use_reentrant=False))
        else:
            parts.append(_log_potential(unit, start, stop, t))
    pairs = len(x) * (len(x) - 1) / 2
    return torch.stack(parts).logsumexp(dim=0) - math.log(pairs)


def _log_potential(unit: Tensor, start: int, stop: int, t: float) -> Tensor:
    """Log-sum-exp of -t |x_i - x_j|^2 over start <= i < stop and j > i."""
    rows, others = unit[start:stop], unit[start + 1 :]
    norms = unit.square().sum(dim=1)
    squared = norms[start:stop, None] + norms[start + 1 :] - 2.0 * (rows @ others.T)
    exponents = squared.clamp_min(0.0) * -t
    i = torch.arange(len(rows), device=unit.device)[:, None]
    j = torch.arange(len(others), device=unit.device)
    return exponents.masked_fill(j < i, -math.inf).flatten().logsumexp(dim=0)


def _embeddings(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dim() != 2 or value.shape[0] == 0 or value.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, D), not empty, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating dtype, got {value.dtype}")
    return value


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def _unit(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # The largest entry first: squares of entries beyond 1e19 or below 1e-19 leave float32.
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    squares = x.square().sum(dim=1, keepdim=True)
    return x * torch.where(squares > 0, squares, 1.0).rsqrt()
