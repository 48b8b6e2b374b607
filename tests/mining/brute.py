"""Brute force in float64, independent of the engine: numpy, a plain sort."""

import math

import numpy as np
import torch


def scores(queries, corpus, normalize=True, metric="dot"):
    """(N, M) float64; NaN where a row has no direction."""
    x, y = (rows.double().numpy() for rows in (queries, corpus))
    if normalize:
        with np.errstate(all="ignore"):
            x, y = (
                np.where(norm == 0, 0, rows / norm)
                for rows in (x, y)
                for norm in [np.sqrt((rows**2).sum(1, keepdims=True))]
            )
    with np.errstate(all="ignore"):
        if metric == "l2":
            return -((x[:, None] - y[None]) ** 2).sum(2)
        return x @ y.T


def check(found_scores, found_indices, all_scores, excluded=(), upper=None, tolerance=1e-6):
    """The answer is one of a float64 sort's, up to ties within the tolerance."""
    n = len(all_scores)
    for row in range(n):
        allowed = ~np.isnan(all_scores[row])
        for i, j in excluded:
            if i == row:
                allowed[j] = False
        if upper is not None:
            allowed &= all_scores[row] <= upper[row] + tolerance
        index = [j for j in found_indices[row].tolist() if j >= 0]
        value = found_scores[row].tolist()
        k = len(value)
        assert len(set(index)) == len(index)
        assert all(allowed[j] for j in index)
        certain = allowed.copy()
        if upper is not None:
            certain &= all_scores[row] <= upper[row] - tolerance
        assert len(index) >= min(k, certain.sum())
        assert value[len(index) :] == [-math.inf] * (k - len(index))
        for j, s in zip(index, value, strict=False):
            expected = all_scores[row, j]
            assert abs(s - expected) <= tolerance * max(1.0, abs(expected))
        assert value == sorted(value, reverse=True)
        for (s, i), (t, j) in zip(
            zip(value, index, strict=False), list(zip(value, index, strict=False))[1:], strict=False
        ):
            assert s > t or i < j
        left_out = certain.copy()
        left_out[index] = False
        if len(index) == k and left_out.any():
            bound = value[-1] + tolerance * max(1.0, abs(value[-1]))
            assert all_scores[row][left_out].max() <= bound


def clustered(n, m, dim, seed=0):
    """Queries near some candidates, as trained embeddings are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(2, m // 20), dim, generator=generator)
    y = centers[torch.randint(0, len(centers), (m,), generator=generator)]
    y = y + 0.3 * torch.randn(m, dim, generator=generator)
    x = y[torch.randint(0, m, (n,), generator=generator)]
    return x + 0.3 * torch.randn(n, dim, generator=generator), y
