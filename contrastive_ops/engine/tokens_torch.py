"""``token_similarity`` in plain PyTorch: some queries at a time, bounded memory, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .similarity import full_precision
from .stripes import STRIPE_BYTES

if TYPE_CHECKING:
    from .tokens import TokenProblem, Tokens

COPIES = 4
"""Tiles of token similarities alive at once."""


@torch.no_grad()
def forward(problem: TokenProblem, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Scores (N, M), and where each maximum was, (N, M, Lq)."""
    query, key = (_unit(x, problem.normalize)[0] for x in tokens[:2])
    n, length, dim = query.shape
    m, width, _ = key.shape
    weight = _weight(problem, tokens, query.dtype)
    scores = query.new_empty(n, m)
    where = torch.empty(n, m, length, dtype=torch.int32, device=query.device)
    flat = key.reshape(-1, dim)
    for part in _stripes(n, length * m * width * query.element_size(), problem):
        with full_precision(query.device):
            tile = query[part].reshape(-1, dim) @ flat.T
        if tokens.key_mask is not None:
            tile.masked_fill_(~tokens.key_mask.reshape(-1), -torch.inf)
        tile = tile.view(-1, length, m, width)
        index = tile.argmax(3, keepdim=True)
        best, at = tile.gather(3, index).squeeze(3), index.squeeze(3)
        if tokens.key_mask is not None:
            empty = ~tokens.key_mask.any(1)
            best, at = best.masked_fill_(empty, 0.0), at.masked_fill_(empty, -1)
        best, at = best.transpose(1, 2), at.transpose(1, 2)
        if tokens.query_mask is not None:
            gone = ~tokens.query_mask[part].unsqueeze(1)
            best, at = best.masked_fill(gone, 0.0), at.masked_fill(gone, -1)
        scores[part] = best.sum(2) * weight[part].unsqueeze(1)
        where[part] = at
    return scores, where


@torch.no_grad()
def backward(
    problem: TokenProblem, tokens: Tokens, grad: Tensor, where: Tensor, wanted: tuple[bool, bool]
) -> list[Tensor | None]:
    """Gradients of query and key."""
    (query, query_inverse), (key, key_inverse) = (_unit(x, problem.normalize) for x in tokens[:2])
    n, length, dim = query.shape
    m, width, _ = key.shape
    weight = _weight(problem, tokens, query.dtype)
    flat = key.reshape(-1, dim)
    query_grad, key_grad = torch.zeros_like(query), torch.zeros_like(flat)
    first = torch.arange(m, device=key.device).view(1, m, 1) * width
    for part in _stripes(n, length * m * dim * query.element_size(), problem):
        # (R, M, Lq) how much each maximum counts, and which token of all documents it was.
        share = (grad[part] * weight[part].unsqueeze(1)).unsqueeze(2) * (where[part] >= 0)
        index = (where[part].clamp(min=0) + first).reshape(-1)
        if wanted[0]:
            pulling = flat.index_select(0, index).view(-1, m, length, dim)
            # Selected, not multiplied: a token that is not there may be anything.
            pulling = torch.where((where[part] >= 0).unsqueeze(3), pulling, 0.0)
            query_grad[part] = torch.einsum("rml,rmld->rld", share, pulling)
        if wanted[1]:
            pulled = share.unsqueeze(3) * query[part].unsqueeze(1)
            pulled = torch.where((where[part] >= 0).unsqueeze(3), pulled, 0.0).reshape(-1, dim)
            if key_grad.is_cpu:
                key_grad.index_add_(0, index, pulled)
            else:  # index_add_ has atomics there
                key_grad.index_put_((index,), pulled, accumulate=True)
    return [
        _of_input(query_grad, query, query_inverse, tokens.query) if wanted[0] else None,
        _of_input(key_grad.view_as(key), key, key_inverse, tokens.key) if wanted[1] else None,
    ]


def _unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Rows in the accumulation dtype, of length one if asked, and one over their lengths."""
    x = x if x.dtype == torch.float64 else x.float()
    if not normalize:
        return x, None
    largest = x.abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = x / largest.masked_fill(zero, 1.0)
    length = scaled.square().sum(-1, keepdim=True).sqrt().masked_fill(zero, 1.0)
    return scaled / length, (1 / (length * largest)).masked_fill(zero, 0.0)


def _of_input(grad: Tensor, unit: Tensor, inverse: Tensor | None, like: Tensor) -> Tensor:
    """From gradients of unit rows to those of the rows: what points along a row drops out."""
    if inverse is not None:
        # Rows that nothing pulls at keep 0, whatever is in them.
        along = (grad * unit).sum(-1, keepdim=True) * unit
        untouched = (grad == 0).all(-1, keepdim=True)
        grad = torch.where(untouched, 0.0, (grad - along) * inverse)
    return grad.to(like.dtype)


def _weight(problem: TokenProblem, tokens: Tokens, dtype: torch.dtype) -> Tensor:
    """(N,) what a maximum counts."""
    n, length, _ = tokens.query.shape
    if not problem.mean:
        return torch.ones(n, dtype=dtype, device=tokens.query.device)
    if tokens.query_mask is None:
        return torch.full((n,), 1 / length, dtype=dtype, device=tokens.query.device)
    return 1 / tokens.query_mask.sum(1).clamp(min=1).to(dtype)


def _stripes(n: int, row_bytes: int, problem: TokenProblem) -> list[slice]:
    room = min(problem.workspace_bytes // COPIES, 4 * STRIPE_BYTES)
    step = max(1, room // max(row_bytes, 1))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
