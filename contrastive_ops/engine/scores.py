"""The score of a query and a candidate, defined to the bit.

A row is read as float32 (float64 where it is given so) and, for cosines, multiplied by the
reciprocal of its norm in float64 and rounded back. A score is a sum in float64, rounded once to the
row's type. Sums run in eight lanes, element i in lane i % 8, in order, and the lanes are added in
halves: every backend has this order, so that equal rows have equal scores wherever they are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Metric = Literal["dot", "l2"]
_LANES = 8


def score_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 rows, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def lane_sum(terms: Tensor) -> Tensor:
    """Float64 sums over the last dimension, in the order that defines a score."""
    short = -terms.shape[-1] % _LANES
    if short:
        terms = torch.nn.functional.pad(terms, (0, short))
    lanes = terms.unflatten(-1, (-1, _LANES))
    total = torch.zeros_like(lanes[..., 0, :])
    for step in lanes.unbind(-2):
        total = total + step
    halves = total[..., :4] + total[..., 4:]
    quarters = halves[..., :2] + halves[..., 2:]
    return quarters[..., 0] + quarters[..., 1]


def prepared_rows(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """The rows whose products are scores, and their norms; NaN for rows that have no direction.

    A zero row stays zero. A row with a NaN, or for cosines with an infinity, has the norm NaN.
    """
    rows = unpacked(x) if x.dtype == torch.uint8 else x.to(score_dtype(x))
    wide = rows.double()
    factor, norm = row_measures(lane_sum(wide * wide), normalize)
    if normalize:
        rows = (wide * factor.unsqueeze(-1)).to(rows.dtype)
    return rows, norm


def row_measures(square: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """From float64 squared norms of rows: what prepares a row, and the norm that it then has."""
    norm = _square_root(square)
    if not normalize:
        return torch.where(norm.isnan(), torch.nan, 1.0), norm
    reciprocal = 1 / norm
    usable = (reciprocal > 0) & (reciprocal < torch.inf)
    otherwise = torch.where(norm == 0, norm, torch.nan)
    return torch.where(usable, reciprocal, otherwise), torch.where(usable, 1.0, otherwise)


def unpacked(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed bits (..., D), the highest of a byte first, as zeros and ones (..., 8 D)."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=x.device)
    return ((x.unsqueeze(-1) >> shifts) & 1).flatten(-2).to(dtype)


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded, which on the CPU torch's own is not: it may be a vector library's."""
    if x.is_cpu:
        return torch.from_numpy(np.sqrt(x.numpy()))
    return x.sqrt()


def pair_scores(x: Tensor, y: Tensor, metric: Metric) -> Tensor:
    """Scores of prepared rows, (..., D) and (..., D) broadcast: <x, y>, or -|x - y|^2."""
    left, right = x.double(), y.double()
    if metric == "l2":
        difference = left - right
        return -lane_sum(difference * difference).to(x.dtype)
    return lane_sum(left * right).to(x.dtype)
