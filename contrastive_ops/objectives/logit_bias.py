"""InfoNCE whose logits carry a bias: of the key, of a query's own hard negative, of a distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.describe import describe as describe_info_nce
from ..engine.problem import Operands, SimilarityProblem, on_prefixes
from ..engine.reductions import row_lses, score_sum
from ..engine.reference import Logits, cross_entropy
from ..engine.similarity import positive_index, unit_rows
from ..engine.softmax_ce import softmax_ce
from .arguments import (
    Number,
    Reduction,
    describe,
    divisor,
    matrices,
    pairs,
    reduced,
    row_ids,
    shares,
    wide,
)
from .distance import with_key_bias
from .info_nce import info_nce
from .matryoshka import Dims, Weights, checked_prefixes, weighted_sum, widened, with_prefixes
from .statistics import Receiver


def sampled_softmax(
    query: Tensor,
    key: Tensor,
    key_log_probability: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""In-batch softmax with popularity correction: logits :math:`s_{ij}/T - \log p_j`.

    The bias rides along as one more column of the rows, so 3 matrix products of width D + 1. (On
    prefixes of unit rows, whose norms differ, it cannot: 4 of width D, and statistics from a scan
    of their own.)

    Args:
        query, key: (N, D) and (M, D).
        key_log_probability: (M,) log of the probability of key j being in the batch, floating,
            finite, not differentiated.
        temperature, positives, query_ids, key_ids, matryoshka_dims, matryoshka_weights, normalize,
        reduction, backend, workspace_bytes, statistics: as in :func:`contrastive_ops.info_nce`; the
            defaults are the raw dot product. Statistics are of the logits with their correction.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item
    recommendations" (RecSys)
    """
    query, key = matrices(query=query, key=key)
    check.matrix("key_log_probability", key_log_probability, (1,))
    check.shaped("key_log_probability", key_log_probability, ((key.shape[0],),), query)
    if check.readable(key_log_probability) and not bool(key_log_probability.isfinite().all()):
        raise ValueError("key_log_probability: got infinite numbers or NaN, expected finite ones")
    scale, tensor = divisor(temperature, query)
    check.flag("normalize", normalize)
    bias = -key_log_probability.detach()
    among: dict[str, Any] = {
        "temperature": temperature,
        "positives": positives,
        "query_ids": query_ids,
        "key_ids": key_ids,
        "reduction": reduction,
        "backend": backend,
        "workspace_bytes": workspace_bytes,
    }
    prefixes = None
    if matryoshka_dims is not None or matryoshka_weights is not None:
        prefixes = checked_prefixes(query.shape[1], matryoshka_dims, matryoshka_weights)
        if normalize:
            if statistics is not None:
                longest = max(prefixes)[0]
                with torch.no_grad():
                    sampled_softmax(
                        query[:, :longest],
                        key[:, :longest],
                        key_log_probability,
                        normalize=True,
                        statistics=statistics,
                        **among,
                    )
            return _sampled_softmax_of_unit_prefixes(query, key, bias, prefixes, **among)
    if normalize:
        query, key = unit_rows(wide(query)), unit_rows(wide(key))
    shortest = None if prefixes is None else min(prefixes)[0]
    return info_nce(
        *with_key_bias(query, key, bias, 1 / scale if tensor is None else tensor, shortest),
        normalize=False,
        matryoshka_dims=None if prefixes is None else [1 + dim for dim, _ in prefixes],
        matryoshka_weights=matryoshka_weights,
        statistics=statistics,
        **among,
    )


def _sampled_softmax_of_unit_prefixes(
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    prefixes: list[tuple[int, float]],
    *,
    reduction: Reduction,
    backend: str | None,
    **among: Any,
) -> Tensor:
    """The keys as explicit negatives, whose log-weights the kernels know, and positives by hand."""
    problem, operands = describe_info_nce(query, key, **among)
    problem, operands = on_prefixes(problem, operands, prefixes)
    index = positive_index(operands)
    bias = bias.to(operands.accumulation_dtype)
    # A query's positives are left out by ids: a row of them for each.
    ids = [index.T]
    candidate_ids = [row_ids(key.shape[0], key).expand(index.shape[1], -1)]
    if operands.query_ids is not None and operands.key_ids is not None:
        ids.append(operands.query_ids)
        candidate_ids.append(operands.key_ids)
    others = operands._replace(
        negatives=operands.key,
        negative_bias=bias,
        query_ids=torch.cat(ids),
        negative_ids=torch.cat(candidate_ids),
        key_ids=None,
    )

    def losses(p: SimilarityProblem, o: Operands, negatives: Tensor) -> Tensor:
        columns = [score_sum(p, o, column.unsqueeze(1)) for column in index.unbind(1)]
        logits = torch.stack(columns, 1) + bias[index.clamp(min=0)]
        logits = logits.masked_fill(index < 0, -torch.inf)
        return cross_entropy(Logits(logits, (negatives.unsqueeze(1),)), 0.0)

    negatives = row_lses(problem._replace(in_batch=False), others, backend)
    return reduced(weighted_sum(problem, operands, losses, negatives), reduction)


def squared_l2_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    symmetric: bool = False,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""InfoNCE over squared Euclidean distances: logits :math:`-\|q_i - k_j\|^2 / T`.

    T = 2 is a Gaussian of unit variance. Runs as dot products of width D + 2 (D + 2 L on L
    prefixes).

    Args:
        query, key: (N, D) and (M, D), M >= N, rows as they are; key i is the positive of query i.
        temperature, symmetric, matryoshka_dims, matryoshka_weights, reduction, backend,
        workspace_bytes, statistics: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Eysenbach et al. 2024, "Inference via Interpolation" (arXiv 2403.04082; T = 2,
    symmetric).
    """

    query, key = matrices(query=query, key=key)
    query, key, matryoshka_dims = widened(query, key, matryoshka_dims, matryoshka_weights)
    return info_nce(
        query,
        key,
        temperature=temperature,
        symmetric=symmetric,
        normalize=False,
        matryoshka_dims=matryoshka_dims,
        matryoshka_weights=matryoshka_weights,
        reduction=reduction,
        backend=backend,
        workspace_bytes=workspace_bytes,
        statistics=statistics,
    )


def brownian_bridge_nce(
    start: Tensor,
    middle: Tensor,
    end: Tensor,
    start_time: Tensor,
    middle_time: Tensor,
    end_time: Tensor,
    *,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""Time Control: each end point finds the triplet on whose bridge it lies.

    .. math:: \ell_{ib} = -\frac{\|z_b(t) - (1 - \alpha_b) z_b(0) - \alpha_b z_i(T)\|^2}
                                {2 \sigma_b^2}
              \qquad \alpha = t / T,\; \sigma^2 = t (T - t) / T

    with times counted from the start, and L the cross-entropy of i = b. Runs as dot products of
    width D + 2.

    Args:
        start, middle, end: (N, D) latent points z(0), z(t), z(T) of N stretches of text.
        start_time, middle_time, end_time: (N,) floating, start < middle < end.
        reduction, backend, workspace_bytes, statistics: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: times out of order, or as in :func:`info_nce`.

    Source: Wang et al. 2022, "Language modeling via stochastic processes" (arXiv 2203.11370), and
    the authors' code.
    """
    start, middle, end = (wide(x) for x in pairs(start=start, middle=middle, end=end))
    times = []
    for name, time in (
        ("start_time", start_time),
        ("middle_time", middle_time),
        ("end_time", end_time),
    ):
        check.matrix(name, time, (1,))
        check.shaped(name, time, ((start.shape[0],),), start)
        times.append(time.detach().to(start.dtype))
    t, length = (times[1] - times[0]).unsqueeze(1), (times[2] - times[0]).unsqueeze(1)
    if check.readable(t) and not bool(((t > 0) & (t < length)).all()):
        raise ValueError("middle_time: expected start_time < middle_time < end_time in every row")
    alpha, variance = t / length, t * (length - t) / length
    rest = middle - (1 - alpha) * start
    query = torch.cat([end, end.square().sum(1, keepdim=True), torch.ones_like(alpha)], 1)
    key = torch.cat(
        [
            alpha * rest / variance,
            -alpha.square() / (2 * variance),
            -rest.square().sum(1, keepdim=True) / (2 * variance),
        ],
        1,
    )
    return info_nce(
        query,
        key,
        temperature=1.0,
        normalize=False,
        reduction=reduction,
        backend=backend,
        workspace_bytes=workspace_bytes,
        statistics=statistics,
    )


def gaussian_decay_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    guide: Sequence[Tensor],
    *,
    decay_width: Number = 0.17,
    temperature: Number | Tensor = 0.05,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""InfoNCE with hard negatives, a query's own taken back where a base model disagrees (GCSE).

    The logit s of a query's own hard negative is raised by w = 0 if :math:`\Delta > 0`, else
    :math:`-s\,e^{-\Delta^2 / 2 \alpha^2}`, where :math:`\Delta = s - s^{base}` in logits; w is not
    differentiated. All queries see all negatives.

    Args:
        query, key, negatives: (N, D) each; key i and negative i belong to query i.
        guide: ``(guide_query, guide_negatives)``, (N, G) each, the base model's embeddings.
        decay_width: alpha > 0, in logits (the authors: 0.17 for BERT, 8.58 for RoBERTa).
        temperature, matryoshka_dims, matryoshka_weights, reduction, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`; the guide is whole.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Lai et al. 2024, "Enhancing Unsupervised Sentence Embeddings via Knowledge-Driven Data
    Augmentation and Gaussian-Decayed Contrastive Learning" (arXiv 2409.12887).
    """
    query, key, negatives = pairs(query=query, key=key, negatives=negatives)
    width = check.positive_number("decay_width", decay_width)
    if len(guide) != 2:
        raise ValueError("guide: expected (guide_query, guide_negatives)")
    base = pairs(**{"guide[0]": guide[0], "guide[1]": guide[1]})
    if base[0].shape[0] != query.shape[0]:
        raise ValueError(
            f"guide[0]: got {base[0].shape[0]} rows, expected {query.shape[0]} as in query"
        )
    ids = row_ids(query.shape[0], query)
    of_base = _cosines(*base)

    problem, operands = describe(
        query, key, temperature=temperature, ids=ids, workspace_bytes=workspace_bytes
    )
    operands = operands._replace(negatives=negatives, negative_ids=ids.view(1, -1))
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)

    def own_weight(p: SimilarityProblem, o: Operands) -> Tensor:
        assert o.negatives is not None
        scale: Tensor | float = p.scale
        if o.temperature is not None:
            scale = 1 / o.temperature.detach().to(o.accumulation_dtype)
        own = _cosines(o.query, o.negatives) * scale
        gap = own - of_base.to(own.dtype) * scale
        return torch.where(gap > 0, 0.0, -own * torch.exp(-gap.square() / (2 * width**2)))

    if not problem.prefixes:
        whole = operands._replace(
            own_negatives=negatives.unsqueeze(1),
            own_bias=own_weight(problem, operands).unsqueeze(1),
        )
        return softmax_ce(problem, whole, shares(reduction, query.shape[0]), backend)

    def losses(p: SimilarityProblem, o: Operands, others: Tensor) -> Tensor:
        positive = score_sum(p, o)
        own = score_sum(p, o._replace(key=o.negatives)) + own_weight(p, o)  # type: ignore[arg-type]
        parts = Logits(positive.unsqueeze(1), (others.unsqueeze(1), own.unsqueeze(1)))
        return cross_entropy(parts, 0.0)

    others = row_lses(problem, operands, backend)
    return reduced(weighted_sum(problem, operands, losses, others), reduction)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return (unit_rows(wide(x.detach())) * unit_rows(wide(y.detach()))).sum(1)
