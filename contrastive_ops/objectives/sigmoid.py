"""Pairwise logistic losses: each pair is a yes or a no of its own, nothing is normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.similarity import full_precision, unit_rows
from ..engine.softmax_ce import softmax_ce
from ..engine.stripes import Tensors, row_loss, stripe_losses
from .arguments import (
    Number,
    Reduction,
    describe,
    inverse_temperature,
    labels,
    matrices,
    pairs,
    reduced,
    shares,
    softplus,
    temperature_or,
    wide,
)


def sigmoid_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: Number | Tensor = 0.1,
    scale: Number | Tensor | None = None,
    bias: Number | Tensor = -10.0,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""SigLIP: every pair is classified on its own.

    .. math:: L_i = \sum_j \log(1 + e^{-z_{ij} (s_{ij}/T + b)}) \qquad z_{ii} = 1,\; z_{ij} = -1

    Loss and gradients cost 3 matrix products: nothing is normalised, so a stripe of rows is
    finished, gradient and all, while it is at hand. The N x M logits are never held.

    Args:
        query, key: (N, D) and (M, D), M >= N; key i is the positive of query i.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        scale: 1 / T instead of ``temperature``; giving both is an error.
        bias: b, a number or a 0-dim tensor, then with gradient.
        query_ids, key_ids: int64 (N,) and (M,), both or neither: a key with the query's id that is
            not its positive is left out.
        normalize: cosine similarity if True, dot products if False.
        reduction: ``"mean"`` over the N rows (not over pairs), ``"sum"`` or ``"none"``, (N,).
        backend, workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: fewer keys than queries, or as in :func:`contrastive_ops.info_nce`.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343),
    eq. 1 and algorithm 1.
    """
    temperature = temperature_or(scale, temperature, 0.1)
    query, key = matrices(query=query, key=key)
    n, m = query.shape[0], key.shape[0]
    if m < n:
        raise ValueError(f"key: got {m} rows, expected at least {n} as in query")
    if (query_ids is None) != (key_ids is None):
        raise ValueError("query_ids, key_ids: got one of them, expected both or neither")
    if query_ids is not None:
        query_ids = labels("query_ids", query_ids, query)
        key_ids = labels("key_ids", key_ids, key)
    problem, operands = describe(
        query,
        key,
        temperature=temperature,
        normalize=normalize,
        ids=query_ids,
        key_ids=key_ids,
        workspace_bytes=workspace_bytes,
    )
    if isinstance(bias, Tensor):
        operands = operands._replace(bias=_scalar("bias", bias, query))
    else:
        problem = problem._replace(offset=check.number("bias", bias))
    problem = problem._replace(tile_map="softplus")
    return softmax_ce(problem, operands, shares(reduction, n), backend)


def nce(
    query: Tensor,
    positive: Tensor,
    noise: Tensor,
    *,
    positive_log_probability: Tensor | None = None,
    noise_log_probability: Tensor | None = None,
    temperature: Number | Tensor = 1.0,
    normalize: bool = False,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Noise-contrastive estimation; without log-probabilities, skip-gram with negative sampling.

    .. math:: L_i = -\log \sigma(s_{ip} - \log K p_p)
                    - \sum_{n=1}^{K} \log \sigma(\log K p_n - s_{in})

    Args:
        query, positive: (N, D); positive i belongs to query i.
        noise: (N, K, D), each query's own samples, or (K, D), shared by all: then a stripe of rows
            at a time.
        positive_log_probability: (N,) log p under the noise distribution, not differentiated.
        noise_log_probability: (N, K) or (K,), likewise. Both or neither; without them nothing is
            taken off the scores (SGNS, sent2vec).
        temperature, normalize: s is the raw dot product by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).
        backend, workspace_bytes: as in :func:`sigmoid_loss`.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Gutmann and Hyvärinen 2010, "Noise-contrastive estimation" (AISTATS); Mikolov et
    al. 2013 (arXiv 1310.4546).
    """
    check.matrix("noise", noise, (2, 3))
    query, positive = pairs(query=query, positive=positive)
    flat = noise.reshape(-1, noise.shape[-1])
    query, flat = matrices(query=query, noise=flat)
    n = query.shape[0]
    if noise.dim() == 3 and noise.shape[0] != n:
        raise ValueError(f"noise: got {noise.shape[0]} groups, expected {n} as in query")
    query, positive, flat = wide(query), wide(positive), wide(flat)
    if normalize:
        query, positive, flat = unit_rows(query), unit_rows(positive), unit_rows(flat)
    query = query * inverse_temperature(temperature, query)
    count = noise.shape[-2]
    of_positive, of_noise = _offsets(
        positive_log_probability, noise_log_probability, noise, count, query
    )
    score = (query * positive).sum(1)
    losses = softplus(-(score if of_positive is None else score - of_positive))
    if noise.dim() == 3:
        with full_precision(query.device):
            own = torch.einsum("nd,nkd->nk", query, flat.view(n, count, -1))
        losses = losses + softplus(own if of_noise is None else own - of_noise).sum(1)
        return reduced(losses, reduction)
    share = shares(reduction, n)
    shared = stripe_losses(
        _noise_rows,
        (query,),
        (flat, of_noise),
        share,
        backend=backend,
        workspace_bytes=workspace_bytes,
    )
    return reduced(losses, reduction) + shared


def pair_bce(
    query: Tensor,
    key: Tensor,
    targets: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    bias: Number | Tensor = 0.0,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Binary cross-entropy of N given pairs: does query i go with key i?

    .. math:: L_i = \log(1 + e^{\ell_i}) - y_i \ell_i \qquad \ell_i = s_{ii}/T + b

    Args:
        query, key: (N, D).
        targets: y, (N,) floating in [0, 1], not differentiated.
        temperature, bias: as in :func:`sigmoid_loss`.
        normalize, reduction: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.
    """
    query, key = (wide(x) for x in pairs(query=query, key=key))
    check.matrix("targets", targets, (1,))
    check.shaped("targets", targets, ((query.shape[0],),), query)
    if normalize:
        query, key = unit_rows(query), unit_rows(key)
    logits = (query * key).sum(1) * inverse_temperature(temperature, query)
    logits = logits + _scalar("bias", bias, query)
    y = targets.detach().to(logits.dtype)
    return reduced(y * softplus(-logits) + (1 - y) * softplus(logits), reduction)


@row_loss
def _noise_rows(rows: Tensors, shared: Tensors, start: int, **_: Any) -> Tensor:
    (query,) = rows
    noise, offset = shared
    assert query is not None
    assert noise is not None
    scores = query @ noise.T
    return softplus(scores if offset is None else scores - offset).sum(1)


def _offsets(
    of_positive: Tensor | None, of_noise: Tensor | None, noise: Tensor, count: int, query: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """log(K p) of the positives and of the noise, or nothing."""
    if of_positive is None and of_noise is None:
        return None, None
    if of_positive is None or of_noise is None:
        raise ValueError(
            "positive_log_probability, noise_log_probability: got one of them, expected both or "
            "neither"
        )
    check.matrix("positive_log_probability", of_positive, (1,))
    check.shaped("positive_log_probability", of_positive, ((query.shape[0],),), query)
    check.matrix("noise_log_probability", of_noise, (1, 2))
    check.shaped("noise_log_probability", of_noise, (tuple(noise.shape[:-1]),), query)
    log_count = torch.tensor(float(count), dtype=query.dtype, device=query.device).log()
    return (
        of_positive.detach().to(query.dtype) + log_count,
        of_noise.detach().to(query.dtype) + log_count,
    )


def _scalar(name: str, value: Any, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point() or value.device != like.device:
            raise ValueError(
                f"{name}: got a tensor of shape {tuple(value.shape)}, {value.dtype} on "
                f"{value.device}, expected a number or a 0-dim floating tensor as query's device"
            )
        return value.to(like.dtype)
    return torch.full((), check.number(name, value), dtype=like.dtype, device=like.device)
