"""Distances as dot products of slightly wider rows, so that every kernel knows them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import wide


def squared_l2_factors(
    x: Tensor, y: Tensor, prefixes: Iterable[int] = ()
) -> tuple[Tensor, Tensor, dict[int, int]]:
    """(N, D + 2) and (M, D + 2) rows whose dot products are -||x_i - y_j||^2.

    In the accumulation dtype. Both sets are moved by the mean of ``y`` first, which changes no
    distance and takes the common part of the norms out of the difference of squares. On prefixes
    distances are sums over what each has beyond the one before, which gets two columns of its own:
    the last value says how wide each prefix has become.
    """
    x, y = wide(x), wide(y)
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    ends = sorted(set(prefixes)) or [x.shape[1]]
    left, right = [], []
    for begin, end in pairwise((0, *ends)):
        p, q = x[:, begin:end], y[:, begin:end]
        left += [p * 2, -p.square().sum(1, keepdim=True), torch.ones_like(p[:, :1])]
        right += [q, torch.ones_like(q[:, :1]), -q.square().sum(1, keepdim=True)]
    widths = {end: end + 2 * count for count, end in enumerate(ends, 1)}
    return torch.cat(left, 1), torch.cat(right, 1), widths


def with_key_bias(
    query: Tensor, key: Tensor, bias: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(N, 1 + D) and (M, 1 + D) rows with dot products / T = query . key / T + bias_j, and so
    have their prefixes."""
    query, key = wide(query), wide(key)
    column = (bias.to(key.dtype) * temperature).unsqueeze(1).to(key.dtype)
    return torch.cat([torch.ones_like(query[:, :1]), query], 1), torch.cat([column, key], 1)
