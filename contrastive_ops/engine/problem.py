"""The similarity problem: which candidates each query is scored against, and how.

Row ``i`` of ``query`` sees up to three blocks of candidates: the rows of ``key`` (in-batch), the
shared rows of ``negatives``, and its own rows of ``own_negatives``. With ``s_ij`` the similarity
(cosine if ``normalize``, else the dot product) and ``T`` the temperature, its logits are

    l_ij = s_ij / T + log-weight of j          l_ip = (s_ip - margin) / T for a positive p.

A row's loss is their softmax cross-entropy, or a sum of its own for each pair (``tile_map``); on
several prefixes of the rows, the weighted sum of the prefixes' losses. Nothing here is N x M:
exclusions are stated by O(N + M) descriptors and evaluated where the similarity is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MiB = 1 << 20
DEFAULT_WORKSPACE_BYTES = 192 * MiB
"""What a backend may keep besides inputs, gradients and O(N + M) statistics, unless told."""

PRECISIONS = ("ieee", "tf32x3", "tf32")
"""How exact products of float32 rows have to be at least, in falling order."""

TILE_MAPS = ("", "softplus")

SLACK_ULPS = 16
"""Thresholds compare strictly, after this many ulps: equal similarities are equal whatever the
order in which a backend sums their products."""


class SimilarityProblem(NamedTuple):
    """Everything about a problem that is no tensor: frozen, hashable, read by every backend."""

    normalize: bool = True
    """Cosine similarity, normalisation fused; else the dot product of the rows as given."""
    in_batch: bool = True
    """Whether a query sees the other queries' keys; if not, ``key`` only holds positives."""
    symmetric: bool = False
    """Average with the loss of each positive key finding its query among the queries."""
    scale: float = 20.0
    """1 / temperature; not read where ``Operands.temperature`` is a tensor."""
    margin: float = 0.0
    """Taken off the positive's similarity."""
    false_negative_margin: float = math.inf
    """In-batch keys more similar than the weakest positive + this are left out; inf: off."""
    group: int = 0
    """Shared negatives ``[i * group, (i + 1) * group)`` belong to query i; 0: to nobody."""
    group_log_weight: float = 0.0
    """Added to the logits of a query's own group."""
    first_row: int = 0
    """Which row of the whole problem row 0 is, where a stripe of rows stands for itself."""
    label_smoothing: float = 0.0
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    one_set: bool = False
    """The candidates are the queries themselves, each row itself left out. ``key`` is an empty
    (0, D) stand-in; ``positives`` point to queries and are mutual; ``query_ids`` are compared with
    themselves; the whole gradient is the query's. Only thresholds and ids exclude."""
    prefixes: tuple[int, ...] = ()
    """The loss is a weighted sum of the losses on the first d entries of all rows, for each d:
    ascending, the last is D. Empty: on whole rows alone. Norms, similarities, margins
    and thresholds are each prefix's own, ids and guide are not."""
    prefix_weights: tuple[float, ...] = ()
    """One weight a prefix. None: not summed, the losses are (prefixes, N) and so are the weights of
    rows; in one direction."""
    tile_map: str = TILE_MAPS[0]
    """``"softplus"``: a row's loss is the sum of softplus(-l_ip) over its positives and of
    softplus(l_ij) over the others that are not left out. Empty: softmax cross-entropy."""
    offset: float = 0.0
    """Added to every logit of a ``tile_map``; not read where ``Operands.bias`` is a tensor."""
    precision: str = PRECISIONS[0]
    """Read where the hardware offers several: the `triton` backend on float32 rows."""


class Operands(NamedTuple):
    """The tensors of a problem. Only the first six are differentiated; the rest is detached.

    Shapes: N queries, M keys, K shared negatives, H own negatives a query, P positives a query,
    R pairs of id arrays, G the guide's width.
    """

    query: Tensor  # (N, D)
    key: Tensor  # (M, D)
    negatives: Tensor | None = None  # (K, D)
    own_negatives: Tensor | None = None  # (N, H, D)
    temperature: Tensor | None = None  # ()
    bias: Tensor | None = None  # (): of a tile_map
    positives: Tensor | None = None  # (N, P) int64, -1 pads; None: key i is query i's;
    # P = 0: none at all, and a row's loss is its log-sum-exp
    query_ids: Tensor | None = None  # (R, N) int64: a candidate is left out where any of its R
    key_ids: Tensor | None = None  # (R, M)          ids equals the query's
    negative_ids: Tensor | None = None  # (R, K)
    negative_bias: Tensor | None = None  # (K,) log-weights; -inf leaves the negative out
    own_bias: Tensor | None = None  # (N, H)
    guide_query: Tensor | None = None  # (N, G) float32 unit rows
    guide_key: Tensor | None = None  # (M, G)
    guide_negatives: Tensor | None = None  # (K, G)
    guide_threshold: Tensor | None = None  # (N,) candidates above it are left out

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """Logits, sums and the loss: float64 for float64 inputs, float32 for all others."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32


class Gradients(NamedTuple):
    """One gradient for each differentiable operand, None where it was not wanted."""

    query: Tensor | None = None
    key: Tensor | None = None
    negatives: Tensor | None = None
    own_negatives: Tensor | None = None
    temperature: Tensor | None = None
    bias: Tensor | None = None


DIFFERENTIABLE = len(Gradients._fields)

Weight = Tensor | float
"""How much each row's loss counts: (N,), or the same number for all. Of the losses of several
prefixes that are not summed: (prefixes, N)."""

Wanted = tuple[bool, bool, bool, bool, bool, bool]
"""Which of the :class:`Gradients` somebody asked for."""

NOTHING: Wanted = (False, False, False, False, False, False)


class NotServedError(Exception):
    """A backend found values for which the problem has to come in parts after all."""


def scale_of(problem: SimilarityProblem, operands: Operands) -> Tensor | float:
    """1 / temperature, in the accumulation dtype where it is a tensor."""
    if operands.temperature is None:
        return problem.scale
    return operands.temperature.to(operands.accumulation_dtype).reciprocal()


def bias_of(problem: SimilarityProblem, operands: Operands) -> Tensor | float:
    """What a tile_map adds to every logit, in the accumulation dtype where it is a tensor."""
    if operands.bias is None:
        return problem.offset
    return operands.bias.to(operands.accumulation_dtype)


def prefix(operands: Operands, dim: int) -> Operands:
    """The operands' first ``dim`` entries; exclusions and weights stay what they are."""
    query = operands.query[:, :dim]
    return operands._replace(
        query=query,
        key=query if operands.key is operands.query else operands.key[:, :dim],
        negatives=None if operands.negatives is None else operands.negatives[:, :dim],
        own_negatives=(
            None if operands.own_negatives is None else operands.own_negatives[..., :dim]
        ),
    )


def on_prefixes(
    problem: SimilarityProblem, operands: Operands, weights: Iterable[tuple[int, float]]
) -> tuple[SimilarityProblem, Operands]:
    """The problem on several prefixes, given as (dim, weight) in any order, also repeatedly."""
    total: dict[int, float] = {}
    for dim, weight in weights:
        total[dim] = total.get(dim, 0.0) + weight
    dims = tuple(sorted(total))
    found = problem._replace(prefixes=dims, prefix_weights=tuple(total[dim] for dim in dims))
    return found, prefix(operands, dims[-1])


def each_prefix(
    problem: SimilarityProblem, operands: Operands
) -> Iterator[tuple[int, float, SimilarityProblem, Operands]]:
    """A problem on prefixes as one problem on whole rows for each: (dim, weight, problem, rows),
    the longest first. The weight is 1 where the losses are not summed."""
    alone = problem._replace(prefixes=(), prefix_weights=())
    weights = problem.prefix_weights or (1.0,) * len(problem.prefixes)
    for dim, weight in reversed([*zip(problem.prefixes, weights, strict=True)]):
        yield dim, weight, alone, prefix(operands, dim)


def of_prefixes(problem: SimilarityProblem, losses: Sequence[Tensor]) -> Tensor:
    """The problem's losses from those of :func:`each_prefix`, weighted, in its order."""
    every = torch.stack([*reversed(losses)])
    return every.sum(0) if problem.prefix_weights else every


def one_set(
    problem: SimilarityProblem, operands: Operands, ids: Tensor | None = None
) -> tuple[SimilarityProblem, Operands]:
    """The queries against themselves. ``ids`` (N,): rows with a row's id are left out with it."""
    return problem._replace(one_set=True), operands._replace(
        key=operands.query[:0].detach(),
        query_ids=None if ids is None else ids.view(1, -1),
        key_ids=None,
    )


def two_sets(problem: SimilarityProblem, operands: Operands) -> tuple[SimilarityProblem, Operands]:
    """A problem of one set as one of two that are equal, where equal row numbers are equal ids."""
    row = torch.arange(operands.query.shape[0], device=operands.query.device).unsqueeze(0)
    ids = row if operands.query_ids is None else torch.cat([row, operands.query_ids])
    return problem._replace(one_set=False), operands._replace(
        key=operands.query, query_ids=ids, key_ids=ids
    )


def two_directions_fused(problem: SimilarityProblem, operands: Operands) -> bool:
    """Whether one pass over the matrix serves both directions.

    It does when pair i is (query i, key i): then a column has one positive and one threshold. With
    positives by index a column may be several pairs' key, each with its own threshold, and a
    guide's threshold would need the guide's product a second time.
    """
    return problem.symmetric and operands.positives is None and operands.guide_query is None


def reversed_problem(
    problem: SimilarityProblem, operands: Operands
) -> tuple[SimilarityProblem, Operands]:
    """The direction key -> query as a one-direction problem of its own.

    Its N * P anchors are the queries' positive keys, its candidates the N queries. Queries that
    share an anchor's key are left out by comparing key indices as one more id. The gather is
    differentiable, so the gradient finds its way back to ``key``.
    """
    query, key, positives = operands.query, operands.key, operands.positives
    n = query.shape[0]
    if positives is None:
        positives = torch.arange(n, device=query.device).unsqueeze(1)
    width = positives.shape[1]
    anchor_key = positives.clamp(min=0).reshape(-1)
    owner = torch.arange(n, device=query.device).repeat_interleave(width)
    # A query with several positives has several key indices: each is an id of its own.
    anchor_ids = [anchor_key.expand(width, -1)]
    candidate_ids = [positives.T]
    guide = operands.guide_query
    guide_threshold = None
    if operands.query_ids is not None and operands.key_ids is not None:
        anchor_ids.append(operands.key_ids[:, anchor_key])
        candidate_ids.append(operands.query_ids)
    if guide is not None:
        assert operands.guide_key is not None
        assert operands.guide_threshold is not None
        # `guide_threshold` is the weakest positive's; each anchor pair has its own here.
        scores = (operands.guide_key[anchor_key] * guide[owner]).sum(1).view(n, width)
        weakest = torch.where(positives >= 0, scores, math.inf).amin(1)
        guide_threshold = (scores + (operands.guide_threshold - weakest).unsqueeze(1)).view(-1)
    turned = Operands(
        query=key[anchor_key],
        key=query,
        temperature=operands.temperature,
        positives=owner.unsqueeze(1),
        query_ids=torch.cat(anchor_ids),
        key_ids=torch.cat(candidate_ids),
        guide_query=None if guide is None else operands.guide_key[anchor_key],  # type: ignore[index]
        guide_key=guide,
        guide_threshold=guide_threshold,
    )
    return problem._replace(symmetric=False, group=0, group_log_weight=0.0), turned
