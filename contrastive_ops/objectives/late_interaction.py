"""Late interaction: similarities of token embeddings, a document at a time for each query token."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.reference import MAX_ELEMENTS
from ..engine.similarity import full_precision, unit_rows
from ..engine.stripes import STRIPE_BYTES
from .arguments import add_rows, take_rows, wide, workspace

COPIES = 4
"""Tiles of token similarities alive at once."""


def token_similarity(
    query: Tensor,
    key: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    aggregate: Literal["sum", "mean", "two_sided_mean"] = "sum",
    normalize: bool = True,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""MaxSim of every query with every document: :math:`S_{nm} = \sum_i \max_j q_{ni} k_{mj}`.

    Some queries at a time in plain PyTorch: the N x M x Lq x Ld similarities are never held
    together; what is kept for the backward is where each maximum was, N x M x Lq integers. One
    matrix product forward; the backward gathers and scatters the tokens at the maxima. The scores
    feed :func:`contrastive_ops.score_nce`, :func:`list_net` and the like.

    Args:
        query: (N, Lq, D) token embeddings.
        key: (M, Ld, D).
        query_mask, key_mask: (N, Lq) and (M, Ld), true or 1 where there is a token. A pair with no
            token on one side has score 0.
        aggregate: ``"sum"`` over the query's tokens (ColBERT), their ``"mean"`` (BGE-M3), or
            ``"two_sided_mean"``: the mean of both directions' means (CLRCMD), for two passes.
        normalize: cosines of tokens if True, dot products if False.
        workspace_bytes: 192 MiB by default.

    Returns:
        (N, M): float32, float64 for float64 inputs. Differentiable in both; one of several equal
        maxima gets the gradient.

    Raises:
        ValueError: shapes or dtypes that do not go together.

    Source: Khattab and Zaharia 2020, "ColBERT" (arXiv 2004.12832); Wang et al. 2022, "CLRCMD".
    """
    check.choice("aggregate", aggregate, ("sum", "mean", "two_sided_mean"))
    q_mask, k_mask = _checked("query", query, query_mask), _checked("key", key, key_mask)
    check.same("key", key, "query", query)
    query, key = wide(query), wide(key)
    if check.flag("normalize", normalize):
        query, key = unit_rows(query), unit_rows(key)
    room = workspace(workspace_bytes)
    forth = _aggregated(query, key, q_mask, k_mask, aggregate != "sum", room)
    if aggregate != "two_sided_mean":
        return forth
    return (forth + _aggregated(key, query, k_mask, q_mask, True, room).T) / 2


def _aggregated(
    query: Tensor, key: Tensor, q_mask: Tensor, k_mask: Tensor, mean: bool, room: int
) -> Tensor:
    weight = q_mask.to(query.dtype)
    if mean:
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    scores: Tensor = _MaxSim.apply(query, key, weight, k_mask, room)[0]
    return scores


class _MaxSim(torch.autograd.Function):
    """sum_i weight_ni max_j q_ni k_mj, and where the maxima were."""

    @staticmethod
    def forward(query, key, weight, mask, room):  # type: ignore[no-untyped-def]
        n, length, dim = query.shape
        m, width, _ = key.shape
        scores = query.new_empty(n, m)
        where = torch.empty(n, m, length, dtype=torch.int32, device=query.device)
        flat = key.reshape(-1, dim)
        absent = (~mask).reshape(-1) if not bool(mask.all()) else None
        empty = ~mask.any(1)
        with full_precision(query.device):
            for part in _stripes(n, length * m * width * query.element_size(), room):
                tile = query[part].reshape(-1, dim) @ flat.T
                if absent is not None:
                    tile.masked_fill_(absent, -torch.inf)
                tile = tile.view(-1, length, m, width)
                index = tile.argmax(3, keepdim=True)
                best = tile.gather(3, index).squeeze(3).masked_fill(empty, 0.0)
                scores[part] = (best * weight[part].unsqueeze(2)).sum(1)
                where[part] = index.squeeze(3).transpose(1, 2)
        return scores, where

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        query, key, weight, mask, ctx.room = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, key, weight, mask, output[1])

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        query, key, weight, mask, where = ctx.saved_tensors
        n, length, dim = query.shape
        m, width, _ = key.shape
        grad = grad * mask.any(1).to(grad.dtype)
        if torch.is_grad_enabled():
            return *_differentiable_gradients(query, key, weight, where, grad), None, None, None
        flat = key.reshape(-1, dim)
        query_grad, key_grad = torch.zeros_like(query), torch.zeros_like(flat)
        first = torch.arange(m, device=key.device).view(1, m, 1) * width
        for part in _stripes(n, length * m * dim * query.element_size(), ctx.room):
            # (R, M, Lq) how much each maximum counts, and which token of all documents it was.
            share = grad[part].unsqueeze(2) * weight[part].unsqueeze(1)
            index = (where[part] + first).reshape(-1)
            tokens = take_rows(flat, index).view(-1, m, length, dim)
            query_grad[part] = torch.einsum("rml,rmld->rld", share, tokens)
            pulled = (share.unsqueeze(3) * query[part].unsqueeze(1)).reshape(-1, dim)
            add_rows(key_grad, index, pulled)
        return query_grad, key_grad.view_as(key), None, None, None


def _differentiable_gradients(
    query: Tensor, key: Tensor, weight: Tensor, where: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in one go, differentiable again: a maximum stays where it is."""
    n, length, dim = query.shape
    m, width, _ = key.shape
    if n * m * length * dim > MAX_ELEMENTS:
        raise ValueError(
            f"query: second derivatives build a {n} x {m} x {length} x {dim} tensor, expected at "
            f"most {MAX_ELEMENTS} elements"
        )
    share = grad.unsqueeze(2) * weight.unsqueeze(1)
    index = (where + torch.arange(m, device=key.device).view(1, m, 1) * width).reshape(-1)
    tokens = key.reshape(-1, dim)[index].view(n, m, length, dim)
    query_grad = (share.unsqueeze(3) * tokens).sum(1)
    pulled = (share.unsqueeze(3) * query.unsqueeze(1)).reshape(-1, dim)
    key_grad = torch.zeros_like(key.reshape(-1, dim)).index_put((index,), pulled, accumulate=True)
    return query_grad, key_grad.view_as(key)


def _stripes(n: int, row_bytes: int, room: int) -> list[slice]:
    step = max(1, min(room // COPIES, 4 * STRIPE_BYTES) // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _checked(name: str, tokens: Any, mask: Any) -> Tensor:
    check.matrix(name, tokens, (3,))
    if 0 in tokens.shape:
        raise ValueError(f"{name}: got shape {tuple(tokens.shape)}, expected no empty dimension")
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    check.shaped(f"{name}_mask", check.tensor(f"{name}_mask", mask), (tokens.shape[:2],), tokens)
    return mask.to(torch.bool)
