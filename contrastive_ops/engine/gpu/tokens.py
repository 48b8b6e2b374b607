"""MaxSim on the GPU: one tiled product that only keeps maxima, and gathers for the gradients.

Nothing is read back from the device, and every sum has one order: the pairs that pull at a
document's token are brought together by a stable sort of the maxima's places.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ...kernels import config
from ...kernels import tokens as kernels
from ..problem import SimilarityProblem
from ..tokens import TokenProblem, Tokens
from . import prepared
from .prepared import Rows, cdiv, interpreted, power_of_two
from .prepared import _rows as prepared_rows

SORTED_BYTES = 40
"""Of the sort for each maximum: keys, order, copies of both."""


@torch.no_grad()
def forward(problem: TokenProblem, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Scores (N, M), and where each maximum was, (N, M, Lq)."""
    n, length, _ = tokens.query.shape
    m, width, _ = tokens.key.shape
    with _on(tokens):
        x, y = _prepared(problem, tokens)
        best = tokens.query.new_empty((n, m, length), dtype=torch.float32)
        where = torch.empty_like(best, dtype=torch.int32)
        tile = config.tile_for(
            prepared.architecture(tokens.query.device),
            "screened",
            x.data.element_size(),
            "ieee",
            interpreted(),
        )
        kernels.token_maxima[(cdiv(n * length, tile.block_m) * m,)](
            x.data,
            y.data,
            x.inverse,
            y.inverse,
            _bytes(tokens.query_mask),
            _bytes(tokens.key_mask),
            best,
            where,
            n * length,
            m,
            length,
            width,
            x.padded,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            PRECISION="interpreted" if interpreted() else "ieee",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return best.sum(2) * _weight(problem, tokens), where


@torch.no_grad()
def backward(
    problem: TokenProblem, tokens: Tokens, grad: Tensor, where: Tensor, wanted: tuple[bool, bool]
) -> list[Tensor | None]:
    """Gradients of query and key."""
    n, length, dim = tokens.query.shape
    m, width, _ = tokens.key.shape
    with _on(tokens):
        x, y = _prepared(problem, tokens)
        share = (grad.float() * _weight(problem, tokens)).contiguous()
        block = min(128, power_of_two(dim))
        across = cdiv(dim, block)
        found: list[Tensor | None] = [None, None]
        if wanted[0]:
            pulled = share.new_empty((n * length, dim))
            kernels.pull_queries[(n * length, across)](
                y.data,
                y.inverse,
                share,
                where,
                pulled,
                m,
                length,
                width,
                dim,
                y.padded,
                BLOCK=block,
            )
            found[0] = _of_input(pulled, x, problem, tokens.query)
        if wanted[1]:
            pulled = share.new_empty((m, width, dim))
            step = max(1, problem.workspace_bytes // (SORTED_BYTES * n * length))
            for first in range(0, m, step):
                count = min(step, m - first)
                some = where[:, first : first + count]
                document = torch.arange(count, device=where.device).view(1, count, 1)
                key = torch.where(some >= 0, some + document * width, -1).reshape(-1)
                ordered, order = key.sort(stable=True)
                bounds = torch.arange(count * width + 1, device=where.device)
                kernels.pull_documents[(count * width, across)](
                    x.data,
                    x.inverse,
                    share,
                    order,
                    torch.searchsorted(ordered, bounds),
                    pulled[first : first + count],
                    first,
                    count,
                    m,
                    length,
                    dim,
                    x.padded,
                    BLOCK=block,
                )
            found[1] = _of_input(pulled.view(-1, dim), y, problem, tokens.key)
        return found


def _prepared(problem: TokenProblem, tokens: Tokens) -> tuple[Rows, Rows]:
    """All tokens as rows; zeros where the masks have none."""
    found = []
    for x, mask in zip(tokens[:2], tokens[2:], strict=True):
        rows = x if mask is None else x.masked_fill(~mask.unsqueeze(2), 0.0)
        found.append(prepared_rows(rows.flatten(0, 1), SimilarityProblem(problem.normalize)))
    return found[0], found[1]


def _weight(problem: TokenProblem, tokens: Tokens) -> Tensor:
    """(N, 1) what a maximum counts."""
    n, length, _ = tokens.query.shape
    like = tokens.query.new_empty(0, dtype=torch.float32)
    if not problem.mean:
        return like.new_ones((n, 1))
    if tokens.query_mask is None:
        return like.new_full((n, 1), 1 / length)
    return 1 / tokens.query_mask.sum(1, keepdim=True).clamp(min=1).float()


def _of_input(pulled: Tensor, rows: Rows, problem: TokenProblem, like: Tensor) -> Tensor:
    """From gradients of unit rows to those of the rows: what points along a row drops out."""
    if problem.normalize:
        unit = rows.data[:, : pulled.shape[1]].float() * rows.inverse.unsqueeze(1)
        along = (pulled * unit).sum(1, keepdim=True)
        pulled = (pulled - along * unit) * (rows.inverse * rows.rescale).unsqueeze(1)
    return pulled.view(like.shape).to(like.dtype)


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.to(torch.int8).contiguous()


def _on(tokens: Tokens) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    if tokens.query.is_cuda:
        return torch.cuda.device(tokens.query.device)
    return contextlib.nullcontext()
