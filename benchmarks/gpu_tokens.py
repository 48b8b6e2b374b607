"""`token_similarity` for the GPU tools: the steps planned offline, the cases timed, the checks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_ops import token_similarity
from contrastive_ops.engine.gpu import tokens as gpu_tokens
from contrastive_ops.engine.tokens import TokenProblem, Tokens

from .gpu_cases import Case, Check, Loss, Planned, empty, generator

TEMPERATURE = 0.02
DENSE_ELEMENTS = 1 << 32
"""Similarities of tokens up to which the dense formula is tried."""


def _flops(n: int, m: int, length: int, width: int, dim: int) -> float:
    """1G: the maxima's product; what the gradients gather is a D-th of it."""
    return 2.0 * n * length * m * width * dim


def plans(dtype: torch.dtype, precision: str) -> Iterator[Planned]:
    """Scores and gradients, with masks and without."""
    if precision != "ieee":
        return
    shape = n, m, length, width, dim = 1024, 1024, 32, 256, 128
    rows = empty(n, length, dim, of=dtype), empty(m, width, dim, of=dtype)
    masks = empty(n, length, of=torch.bool), empty(m, width, of=torch.bool)
    for title, given, problem in (
        ("sum", Tokens(*rows), TokenProblem()),
        ("mean, masks, dot product", Tokens(*rows, *masks), TokenProblem(True, False)),
    ):
        yield Planned(
            title, [*shape], _flops(*shape), partial(_step, problem, given), title == "sum"
        )


def _step(problem: TokenProblem, tokens: Tokens) -> object:
    scores, where = gpu_tokens.forward(problem, tokens)
    return gpu_tokens.backward(problem, tokens, scores, where, (True, True))


def cases(shrink: int = 1) -> Iterator[Case]:
    """The most telling first, in case time runs out."""
    for n, length, width, dtype in (
        (128, 32, 128, "bfloat16"),
        (512, 32, 256, "bfloat16"),
        (1024, 32, 512, "bfloat16"),
        (128, 32, 128, "float32"),
    ):
        here = (max(n // shrink, 3), length, width if shrink == 1 else 40, 128)
        small = n * n * length * width <= DENSE_ELEMENTS
        yield Case(
            f"{n} queries x {n} documents, {length} x {width} tokens x 128, {dtype}",
            {"n": n, "query_tokens": length, "tokens": width, "width": 128, "dtype": dtype},
            _flops(n, n, length, width, 128),
            partial(_leaves, *here, dtype),
            partial(_variants, small),
            _dense if n <= 128 else None,
            rounds=1 if shrink > 1 else 12,
        )


def _leaves(n: int, length: int, width: int, dim: int, dtype: str, device: str) -> list[Tensor]:
    source = generator(device, n)
    return [
        torch.randn((n, count, dim), generator=source, device=device)
        .to(getattr(torch, dtype))
        .requires_grad_()
        for count in (length, width)
    ]


def _nce(scores: Tensor) -> Tensor:
    target = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores * TEMPERATURE, target)


def _ours(query: Tensor, key: Tensor) -> Tensor:
    return _nce(token_similarity(query, key, backend="triton"))


def _dense(query: Tensor, key: Tensor) -> Tensor:
    x, y = F.normalize(query, dim=2), F.normalize(key, dim=2)
    return _nce(torch.einsum("nid,mjd->nmij", x, y).max(3).values.sum(2))


def _variants(dense: bool) -> dict[str, Loss]:
    found: dict[str, Loss] = {"ours": _ours}
    if dense:
        found["einsum"] = _dense
    try:
        module: Any = importlib.import_module("late_interaction_kernels")
        peer = module.maxsim
    except (ImportError, AttributeError):
        return found

    def theirs(query: Tensor, key: Tensor) -> Tensor:
        return _nce(peer(query, key, normalize=True))

    found["late-interaction-kernels"] = theirs
    return found


def device_checks(device: str) -> Iterator[Check]:
    """What only a GPU can check."""
    if device == "cuda":
        yield "tokens: no synchronisation, CUDA graph", _check_graph


def _check_graph() -> None:
    leaves = _leaves(16, 32, 128, 128, "bfloat16", "cuda")

    def step() -> list[Tensor]:
        scores = token_similarity(*leaves, backend="triton")
        return [scores.detach(), *torch.autograd.grad(scores.square().sum(), leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in leaves:
            x.copy_(x.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    for replayed, eager in zip([x.clone() for x in captured], step(), strict=True):
        assert torch.equal(replayed, eager), "the graph's replay differs from the eager call"
