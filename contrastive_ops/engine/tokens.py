"""``token_similarity``: MaxSim of token embeddings, without the N x M x Lq x Ld similarities.

What every backend keeps of a maximum is where it was, (N, M, Lq) int32: the document's token, the
first of equals, and -1 where there is none. So the backward is sparse, and the same everywhere: a
query's token pulls at one token of each document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, extension, tokens_torch, tracing
from .problem import DEFAULT_WORKSPACE_BYTES
from .reference import MAX_ELEMENTS
from .similarity import full_precision, unit_rows


class TokenProblem(NamedTuple):
    """What is asked besides the tensors.

    S_nm = sum_i max_j <q_ni, k_mj> over the tokens that the masks keep; ``mean``: over their count.
    """

    mean: bool = False
    normalize: bool = True
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES


class Tokens(NamedTuple):
    """(N, Lq, D) and (M, Ld, D) of one dtype; (N, Lq) and (M, Ld) bool, or None: all are there."""

    query: Tensor
    key: Tensor
    query_mask: Tensor | None = None
    key_mask: Tensor | None = None


def token_similarity(problem: TokenProblem, tokens: Tokens, backend: str | None = None) -> Tensor:
    """(N, M) scores: float32, float64 for float64 tokens; differentiable in query and key."""
    name = backends.choose(backend, tokens.query.device, tokens.query.dtype)
    if name == "reference" or tracing.needs_reference(tokens[:2]):
        return dense(problem, tokens)
    scores: Tensor = _MaxSim.apply(name, problem, *tokens)[0]
    return scores


def dense(problem: TokenProblem, tokens: Tokens) -> Tensor:
    """All token similarities in float64, by plain autograd."""
    query, key = _rows(problem, tokens, torch.float64)
    with full_precision(query.device):
        similarity = torch.einsum("nid,mjd->nmij", query, key)
    if tokens.key_mask is not None:
        similarity = similarity.masked_fill(~tokens.key_mask[None, :, None], -torch.inf)
    best = similarity.max(3).values
    if tokens.key_mask is not None:
        best = best.masked_fill(~tokens.key_mask.any(1)[:, None], 0.0)
    return _aggregated(problem, tokens, best).to(_accumulated(tokens.query))


def _rows(problem: TokenProblem, tokens: Tokens, dtype: torch.dtype) -> list[Tensor]:
    """Query and key as they are multiplied; zeros where the masks have no token."""
    rows = []
    for x, mask in zip(tokens[:2], tokens[2:], strict=True):
        row = x.to(dtype) if mask is None else torch.where(mask.unsqueeze(2), x.to(dtype), 0.0)
        rows.append(unit_rows(row) if problem.normalize else row)
    return rows


def _aggregated(problem: TokenProblem, tokens: Tokens, best: Tensor) -> Tensor:
    """(N, M) from the maxima (N, M, Lq)."""
    length = best.shape[2]
    if tokens.query_mask is None:
        return best.sum(2) / length if problem.mean else best.sum(2)
    # Selected, not multiplied: what is masked may be anything.
    total = torch.where(tokens.query_mask[:, None], best, 0.0).sum(2)
    if not problem.mean:
        return total
    return total / tokens.query_mask.sum(1).clamp(min=1).to(best.dtype).unsqueeze(1)


def _accumulated(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _at_kept_maxima(problem: TokenProblem, tokens: Tokens, where: Tensor) -> Tensor:
    """The scores as functions that can be differentiated again: a maximum stays where it is."""
    n, length, dim = tokens.query.shape
    m, width, _ = tokens.key.shape
    if n * m * length * dim > MAX_ELEMENTS:
        raise ValueError(
            f"query: second derivatives build a {n} x {m} x {length} x {dim} tensor, expected at "
            f"most {MAX_ELEMENTS} elements"
        )
    query, key = _rows(problem, tokens, _accumulated(tokens.query))
    first = torch.arange(m, device=key.device).view(1, m, 1) * width
    index = (where.clamp(min=0) + first).reshape(-1)
    at = key.reshape(-1, dim)[index].view(n, m, length, dim)
    best = torch.where(where >= 0, (query.unsqueeze(1) * at).sum(3), 0.0)
    return _aggregated(problem, tokens, best)


class _MaxSim(torch.autograd.Function):
    """Scores (N, M), and where each maximum was (N, M, Lq)."""

    @staticmethod
    def forward(name, problem, *tokens):  # type: ignore[no-untyped-def]
        return torch.ops.contrastive_ops.token_similarity(name, *tokens, *problem)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.name, ctx.problem, *tokens = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tokens, output[1])

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        *saved, where = ctx.saved_tensors
        tokens = Tokens(*saved)
        wanted = list(ctx.needs_input_grad[2:4])
        if torch.is_grad_enabled():
            # Aliases: a tensor that is query and key has a gradient in each of its roles.
            rows = [x.view_as(x) for x in tokens[:2]]
            again = tokens._replace(query=rows[0], key=rows[1])
            scores = _at_kept_maxima(ctx.problem, again, where)
            asked = [x for x, want in zip(rows, wanted, strict=True) if want]
            found = torch.autograd.grad(scores, asked, grad, create_graph=True)
        else:
            found = torch.ops.contrastive_ops.token_similarity_backward(
                ctx.name, *tokens, *ctx.problem, grad, where, wanted
            )
        rest = iter(found)
        return None, None, *[next(rest) if want else None for want in wanted], None, None


# As operators, which is how torch.compile sees them.
_ARGUMENTS = (
    "str backend, Tensor query, Tensor key, Tensor? query_mask, Tensor? key_mask, bool mean, "
    "bool normalize, int workspace_bytes"
)
_COUNT = 1 + len(Tokens._fields) + len(TokenProblem._fields)
_library = torch.library.Library("contrastive_ops", "FRAGMENT")
_library.define(f"token_similarity({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"token_similarity_backward({_ARGUMENTS}, Tensor grad, Tensor where, bool[] wanted) -> Tensor[]"
)


def _split(args: Sequence[Any]) -> tuple[str, TokenProblem, Tokens]:
    count = 1 + len(Tokens._fields)
    tokens = Tokens(*args[1:count])
    return args[0], TokenProblem(*args[count:_COUNT]), tokens


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    name, problem, tokens = _split(args)
    if name == "cpu":
        scores, where = _kernel().token_similarity_forward(*tokens, *problem)
        return scores, where
    return _module(name).forward(problem, tokens)


def _backward(*args: Any) -> list[Tensor]:
    name, problem, tokens = _split(args)
    grad, where, wanted = args[_COUNT:]
    if name == "cpu":
        found = _kernel().token_similarity_backward(
            grad, *tokens, problem.mean, problem.normalize, where, tuple(wanted)
        )
    else:
        found = _module(name).backward(problem, tokens, grad, where, tuple(wanted))
    return [x for x in found if x is not None]


def _module(name: str) -> Any:
    if name == "triton":
        from .gpu import tokens

        return tokens
    return tokens_torch


def _kernel() -> Any:
    kernel, reason = extension.load()
    if kernel is None:
        raise ValueError(f"backend 'cpu' cannot be used here: {reason}")
    return kernel


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor]:
    _, _, tokens = _split(args)
    n, length, _ = tokens.query.shape
    m = tokens.key.shape[0]
    return (
        tokens.query.new_empty((n, m), dtype=_accumulated(tokens.query)),
        tokens.query.new_empty((n, m, length), dtype=torch.int32),
    )


def _fake_backward(*args: Any) -> list[Tensor]:
    _, _, tokens = _split(args)
    wanted = args[-1]
    return [x.new_empty(x.shape) for x, want in zip(tokens[:2], wanted, strict=True) if want]


for _name, _implementation, _fake in (
    ("token_similarity", _forward, _fake_forward),
    ("token_similarity_backward", _backward, _fake_backward),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"contrastive_ops::{_name}", _fake, lib=_library)
