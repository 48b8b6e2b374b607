"""Softmax losses whose targets are weights: graded positives, neighbours, several positives."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, scale_of
from ..engine.reductions import row_lse, score_sum
from ..engine.similarity import full_precision, prepared
from ..engine.softmax_ce import softmax_ce
from .arguments import (
    Number,
    Reduction,
    describe,
    labels,
    matrices,
    pairs,
    reduced,
    row_ids,
    shares,
)
from .classes import few
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes


def soft_target_nce(
    query: Tensor,
    key: Tensor,
    targets: Tensor,
    *,
    index: Tensor | None = None,
    temperature: Number | Tensor = 0.05,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Cross-entropy with soft targets: :math:`L_i = -\sum_j t_{ij} \log p_{ij}`.

    Rows of t need not sum to 1. Costs 4 matrix products for sparse targets, 7 for a dense matrix;
    no logits are held.

    Args:
        query, key: (N, D) and (M, D).
        targets: (N, M), or (N, P) with ``index``: floating, not differentiated.
        index: int64 (N, P) indices into ``key``, -1 pads.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        query_ids, key_ids: int64 (N,) and (M,), both or neither: keys with the query's id are no
            candidates. Their targets must be 0.
        matryoshka_dims, matryoshka_weights, normalize, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: targets of another shape, indices out of range, or as in :func:`info_nce`.
    """
    query, key = matrices(query=query, key=key)
    n, m = query.shape[0], key.shape[0]
    if (query_ids is None) != (key_ids is None):
        raise ValueError("query_ids, key_ids: got one of them, expected both or neither")
    problem, operands = describe(
        query,
        key,
        temperature=temperature,
        normalize=normalize,
        ids=None if query_ids is None else labels("query_ids", query_ids, query),
        key_ids=None if key_ids is None else labels("key_ids", key_ids, key),
        workspace_bytes=workspace_bytes,
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    check.matrix("targets", targets)
    weight = targets.detach().to(operands.accumulation_dtype)
    if index is None:
        check.shaped("targets", targets, ((n, m),), query)
        scores = weighted_sum(problem, operands, lambda p, o: _dense_score_sum(p, o, weight))
    else:
        index = check.integers("index", index, (tuple(targets.shape),), query)
        check.shaped("targets", targets, ((n, targets.shape[1]),), query)
        if (
            check.readable(index)
            and index.numel()
            and not -1 <= int(index.min()) <= int(index.max()) < m
        ):
            raise ValueError(f"index: got values outside [-1, {m}), expected indices into key")
        weight = torch.where(index >= 0, weight, 0.0)
        if index.shape[1] == 1 and check.readable(index) and bool((index >= 0).all()):
            # A graded positive: that the cross-entropy of one does not cancel.
            listed = operands._replace(positives=index)
            return reduced(weight[:, 0] * softmax_ce(problem, listed, None, backend), reduction)
        scores = weighted_sum(problem, operands, lambda p, o: score_sum(p, o, index, weight))
    share = weight.sum(1)
    # A row without a candidate has the log-sum-exp -inf, and no target either.
    lse = torch.where(share == 0, 0.0, row_lse(problem, operands, backend))
    return reduced(share * lse - scores, reduction)


def ai_feedback_nce(
    query: Tensor,
    key: Tensor,
    quality: Tensor,
    *,
    smoothing: Literal["positive", "all"] = "all",
    temperature: Number | Tensor = 0.05,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""InfoNCE with graded positives (CLHAIF).

    ``"positive"``: :math:`-y_i \log p_{ii}`; ``"all"`` adds the rest of the target evenly,
    :math:`-\frac{1 - y_i}{M - 1} \sum_{j \ne i} \log p_{ij}`, whose scores are linear in the sum of
    the keys: O(M D).

    Args:
        query, key: (N, D) and (M, D), M >= N; key i is the graded positive of query i.
        quality: y, (N,) floating in [0, 1], not differentiated.
        smoothing: see above.
        temperature, matryoshka_dims, matryoshka_weights, reduction, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Cheng et al. 2023, "Improving Contrastive Learning of Sentence Embeddings from AI
    Feedback" (arXiv 2305.01918).
    """
    query, key = matrices(query=query, key=key)
    check.choice("smoothing", smoothing, ("positive", "all"))
    n, m = query.shape[0], key.shape[0]
    if m < n:
        raise ValueError(f"key: got {m} rows, expected at least {n} as in query")
    check.matrix("quality", quality, (1,))
    check.shaped("quality", quality, ((n,),), query)
    problem, operands = describe(
        query, key, temperature=temperature, workspace_bytes=workspace_bytes
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    y = quality.detach().to(operands.accumulation_dtype)
    losses = softmax_ce(problem, operands, None, backend)
    if smoothing == "positive":
        losses = y * losses
    elif m > 1:  # log p_ij = log p_ii + l_ij - l_ii

        def others(p: SimilarityProblem, o: Operands) -> Tensor:
            q, k = (prepared(x, p, o.accumulation_dtype) for x in (o.query, o.key))
            return ((k.sum(0) - k[:n]) * q).sum(1) * scale_of(p, o) / (m - 1)

        own = weighted_sum(problem, operands, score_sum)
        losses = losses + (1 - y) * (own - weighted_sum(problem, operands, others))
    return reduced(losses, reduction)


def quick_thought(
    sentences: Tensor,
    contexts: Tensor,
    *,
    window: int = 1,
    excluded_logit: Number | None = 0.0,
    temperature: Number | Tensor = 1.0,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Quick-Thought: each sentence finds its neighbours among a batch of consecutive sentences.

    :math:`L_i = -\frac{1}{|C_i|} \sum_{j \in C_i} \log p_{ij}` with :math:`C_i` the rows within
    ``window`` of i, itself excepted.

    Args:
        sentences, contexts: (N, D), N >= 2, the two encoders' embeddings of N sentences in their
            order in the text.
        window: how many sentences on either side count as neighbours.
        excluded_logit: what a sentence's own logit is set to. The authors' code sets it to 0, so
            that it remains a candidate with weight e^0; None leaves it out.
        temperature, matryoshka_dims, matryoshka_weights, normalize, reduction, backend,
        workspace_bytes: as in :func:`contrastive_ops.info_nce`; the defaults are the raw dot
            product.

    Raises:
        ValueError: fewer than two sentences, or as in :func:`info_nce`.

    Source: Logeswaran and Lee 2018, "An efficient framework for learning sentence representations"
    (arXiv 1803.02893), and the authors' code.
    """
    sentences, contexts = pairs(sentences=sentences, contexts=contexts)
    n = sentences.shape[0]
    if n < 2:
        raise ValueError("sentences: got 1 row, expected at least 2: one has no neighbour")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window: got {window!r}, expected an integer >= 1")
    ids = row_ids(n, sentences)
    problem, operands = describe(
        sentences,
        contexts,
        temperature=temperature,
        normalize=normalize,
        ids=ids,
        workspace_bytes=workspace_bytes,
    )
    if excluded_logit is not None:
        operands = with_constant_logit(operands, check.number("excluded_logit", excluded_logit))
    steps = [step for step in range(-window, window + 1) if step]
    index = ids.unsqueeze(1) + torch.tensor(steps, device=sentences.device)
    index = torch.where((index >= 0) & (index < n), index, -1)
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    listed = operands._replace(positives=index)
    return softmax_ce(problem, listed, shares(reduction, n), backend)


def uni_cl(
    query: Tensor,
    key: Tensor,
    query_labels: Tensor,
    key_labels: Tensor,
    *,
    temperature: Number | Tensor = 0.05,
    symmetric: bool = True,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""UniCL: two labelled sets; every key of a query's label is its positive.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}/T}}{\sum_j e^{s_{ij}/T}}

    The positives' mean logit is linear in the sums of keys of a label: O(N D), no index of pairs,
    unless each row has one and few of them. Each direction costs 4 matrix products, or then 3.

    Args:
        query, key: (N, D) and (M, D), images and texts, say.
        query_labels, key_labels: int64 (N,) and (M,). Rows without a positive count 0 and are left
            out of the mean.
        symmetric: the mean of both directions' means (sums with ``"sum"``); ``"none"`` needs False.
        temperature, matryoshka_dims, matryoshka_weights, normalize, reduction, backend,
        workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: labels that are no integers of the right shape, or as in :func:`info_nce`.

    Source: Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space"
    (arXiv 2204.03610) (which add the directions; this is their mean).
    """
    query, key = matrices(query=query, key=key)
    of_query = labels("query_labels", query_labels, query)
    of_key = labels("key_labels", key_labels, key)
    if check.flag("symmetric", symmetric) and reduction == "none":
        raise ValueError("reduction: got 'none' with symmetric=True, expected 'mean' or 'sum'")
    sides = [(query, key, of_query, of_key)]
    if symmetric:
        sides.append((key, query, of_key, of_query))
    losses = []
    for anchors, candidates, anchor_labels, candidate_labels in sides:
        problem, operands = describe(
            anchors,
            candidates,
            temperature=temperature,
            normalize=normalize,
            workspace_bytes=workspace_bytes,
        )
        problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
        groups = _groups(anchor_labels, candidate_labels)
        if few(groups.size):
            listed = operands._replace(positives=_members(groups))
            weight = shares(reduction, anchors.shape[0])
            losses.append(softmax_ce(problem, listed, weight, backend))
            continue
        means = weighted_sum(problem, operands, functools.partial(_mean_logit, groups=groups))
        rows = row_lse(problem, operands, backend) - means
        losses.append(reduced(rows, reduction, groups.size > 0))
    return losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2


def with_constant_logit(operands: Operands, logit: float | Tensor) -> Operands:
    """One more candidate, whose logit is a constant: a zero row, similar to nothing.

    ``logit`` is a number for all rows, or (N,) with -inf where a row has no such candidate.
    """
    query = operands.query
    if isinstance(logit, Tensor):
        return operands._replace(
            own_negatives=query.new_zeros(query.shape[0], 1, query.shape[1]),
            own_bias=logit.unsqueeze(1).to(operands.accumulation_dtype),
        )
    bias = query.new_full((1,), logit, dtype=operands.accumulation_dtype)
    zeros = query.new_zeros(1, query.shape[1])
    return operands._replace(
        negatives=zeros,
        negative_bias=bias,
        negative_ids=None
        if operands.query_ids is None
        else torch.full((operands.query_ids.shape[0], 1), -1, device=query.device),
    )


def _dense_score_sum(problem: SimilarityProblem, o: Operands, targets: Tensor) -> Tensor:
    """(N,) sum_j t_ij l_ij for dense t: the targets' mixture of keys first."""
    with full_precision(o.query.device):
        query = prepared(o.query, problem, o.accumulation_dtype)
        key = prepared(o.key, problem, o.accumulation_dtype)
        return (query * (targets @ key)).sum(1) * scale_of(problem, o)


class _Groups(NamedTuple):
    """The keys of each query's label."""

    segment: Tensor  # (M,) which sum each key is part of
    place: Tensor  # (N,) where the sum of a query's label is, and where in `order` its keys begin
    size: Tensor  # (N,) how many keys it has
    order: Tensor  # (M,) keys by label


def _groups(query_labels: Tensor, key_labels: Tensor) -> _Groups:
    order = key_labels.argsort(stable=True)
    ordered = key_labels[order]
    segment = torch.empty_like(order)
    segment[order] = torch.searchsorted(ordered, ordered)
    first = torch.searchsorted(ordered, query_labels)
    count = torch.searchsorted(ordered, query_labels, right=True) - first
    return _Groups(segment, first.clamp(max=key_labels.shape[0] - 1), count, order)


def _members(groups: _Groups) -> Tensor:
    """(N, P) the keys of each query's label, -1 where there are fewer."""
    slot = torch.arange(int(groups.size.max()), device=groups.order.device)
    place = (groups.place.unsqueeze(1) + slot).clamp(max=groups.order.shape[0] - 1)
    return torch.where(slot < groups.size.unsqueeze(1), groups.order[place], -1)


def _mean_logit(problem: SimilarityProblem, o: Operands, groups: _Groups) -> Tensor:
    """(N,) mean logit of the keys of each query's label; 0 where there is none."""
    query = prepared(o.query, problem, o.accumulation_dtype)
    key = prepared(o.key, problem, o.accumulation_dtype)
    sums = torch.zeros_like(key).index_put((groups.segment,), key, accumulate=True)
    mean = sums[groups.place] / groups.size.clamp(min=1).unsqueeze(1).to(key.dtype)
    means = (query * mean).sum(1) * scale_of(problem, o)
    return torch.where(groups.size > 0, means, 0.0)
