"""Uniform draws that depend on the seed, the query's and the candidate's number, and nothing else.

Every candidate of a query has a key, a hash of the three; the draw is the candidates with the
smallest keys among those that pass. Where a window holds them all, their keys are compared. Where
all of the corpus may pass, candidates are visited in the order of a keyed permutation of it, until
enough have passed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine.exclusions import Exclusions
from ..engine.scores import pair_scores, prepared_rows
from .corpus import Corpus, scoring
from .exclusions import contains

if TYPE_CHECKING:
    from .hard_negatives import Rules

_ROUNDS = 6
_ROWS_AT_ONCE = 1024
_PAIRS_AT_ONCE = 1 << 16


def draw(indices: Tensor, passed: Tensor, count: int, first_row: int, seed: int) -> Tensor:
    """(N, W) bool: at most ``count`` of those that passed, in each row uniformly drawn."""
    rows = torch.arange(first_row, first_row + len(indices), device=indices.device)
    keys = _mixed(_mixed(rows + _mixed(_whole(seed)))[:, None] + indices)
    # Hashes of 64 bits that agree send the draw to the better candidate.
    keys = torch.where(passed, keys >> 1, torch.iinfo(torch.int64).max)
    order = keys.argsort(dim=1, stable=True)[:, :count]
    chosen = torch.zeros_like(passed)
    return chosen.scatter(1, order, True) & passed


def draw_from_all(
    corpus: Corpus,
    count: int,
    out: Exclusions,
    upper: Tensor,
    lower: float,
    first_row: int,
    rules: Rules,
) -> tuple[Tensor, Tensor]:
    """(N, count) scores and indices drawn from all candidates in [lower, upper], best first."""
    x, norms = prepared_rows(corpus.query, scoring(corpus.query, rules.normalize)[0])
    n, m = len(x), len(corpus)
    scores = torch.full((n, count), -math.inf, dtype=x.dtype, device=x.device)
    indices = torch.full((n, count), -1, dtype=torch.int64, device=x.device)
    found = torch.zeros(n, dtype=torch.int64, device=x.device)
    for begin in range(0, n, _ROWS_AT_ONCE):
        open_rows = torch.arange(begin, min(n, begin + _ROWS_AT_ONCE), device=x.device)
        open_rows = open_rows[~norms[open_rows].isnan()]
        visited, step = 0, 2 * count
        while visited < m and len(open_rows):
            step = min(step, m - visited)
            places = torch.arange(visited, visited + step, device=x.device)
            for rows in open_rows.split(max(1, _PAIRS_AT_ONCE // step)):
                for part in places.split(_PAIRS_AT_ONCE):
                    _visit(
                        corpus,
                        x,
                        rows,
                        part,
                        m,
                        first_row,
                        rules,
                        out,
                        upper,
                        lower,
                        scores,
                        indices,
                        found,
                    )
            visited += step
            step *= 2
            open_rows = open_rows[found[open_rows] < count]
    order = torch.argsort(indices.masked_fill(indices < 0, m), dim=1, stable=True)
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, order), indices.gather(1, order)


def _visit(
    corpus: Corpus,
    x: Tensor,
    rows: Tensor,
    places: Tensor,
    m: int,
    first_row: int,
    rules: Rules,
    out: Exclusions,
    upper: Tensor,
    lower: float,
    scores: Tensor,
    indices: Tensor,
    found: Tensor,
) -> None:
    """Adds what passes at some places of the rows' permutations, in their order."""
    index = permuted(places[None], m, rows[:, None] + first_row, rules.seed)
    normalize, metric = scoring(corpus.query, rules.normalize)
    y = prepared_rows(corpus.rows(index), normalize)[0]
    value = pair_scores(x[rows][:, None], y, metric)
    wide = value.double()
    passed = (wide <= upper[rows][:, None]) & (wide >= lower)
    passed &= ~contains(out, rows[:, None].expand_as(index), index)
    rank = found[rows][:, None] + passed.cumsum(1) - 1
    passed &= rank < scores.shape[1]
    at = passed.nonzero(as_tuple=True)
    scores[rows[at[0]], rank[at]] = value[at]
    indices[rows[at[0]], rank[at]] = index[at]
    found[rows] += passed.sum(1)


def permuted(place: Tensor, count: int, row: Tensor, seed: int) -> Tensor:
    """The number at a place of the row's permutation of 0 .. count - 1.

    A Feistel network over the next power of four, walked until it lands inside.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = [_mixed(row * _ROUNDS + i + _mixed(_whole(seed))) for i in range(_ROUNDS)]
    value = place.expand(torch.broadcast_shapes(place.shape, row.shape)).clone()
    outside = torch.ones_like(value, dtype=torch.bool)
    keys = [key.expand_as(value) for key in keys]
    while bool(outside.any()):
        left, right = value[outside] >> half, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key[outside]) & mask)
        value[outside] = (left << half) | right
        outside = value >= count
    return value


def _whole(seed: int) -> Tensor:
    return torch.tensor(seed & ((1 << 62) - 1), dtype=torch.int64)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, on 64-bit integers that wrap."""
    x = x + (-7046029254386353131)
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)
