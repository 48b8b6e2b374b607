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
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    temperature: float | Tensor,
    at: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(N, D + 1) and (M, D + 1) rows with dot products / T = query . key / T + bias_j.

    The bias is column ``at``, which prefixes longer than that have: by default the last, and never
    sooner than need be, as every product that is added to a large bias is rounded to its size.
    """
    query, key = wide(query), wide(key)
    at = query.shape[1] if at is None else at
    column = (bias.to(key.dtype) * temperature).unsqueeze(1).to(key.dtype)
    ones = torch.ones_like(query[:, :1])
    return (
        torch.cat([query[:, :at], ones, query[:, at:]], 1),
        torch.cat([key[:, :at], column, key[:, at:]], 1),
    )
