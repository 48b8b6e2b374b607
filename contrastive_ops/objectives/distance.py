"""Distances as dot products of slightly wider rows, so that every kernel knows them."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import wide


def squared_l2_factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D + 2) and (M, D + 2) rows whose dot products are -||x_i - y_j||^2.

    In the accumulation dtype. Both sets are moved by the mean of ``y`` first, which changes no
    distance and takes the common part of the norms out of the difference of squares.
    """
    x, y = wide(x), wide(y)
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    return (
        torch.cat([x * 2, -x.square().sum(1, keepdim=True), torch.ones_like(x[:, :1])], 1),
        torch.cat([y, torch.ones_like(y[:, :1]), -y.square().sum(1, keepdim=True)], 1),
    )


def with_key_bias(
    query: Tensor, key: Tensor, bias: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(N, D + 1) and (M, D + 1) rows with dot products / T = query . key / T + bias_j."""
    query, key = wide(query), wide(key)
    column = (bias.to(key.dtype) * temperature).unsqueeze(1).to(key.dtype)
    return torch.cat([query, torch.ones_like(query[:, :1])], 1), torch.cat([key, column], 1)
