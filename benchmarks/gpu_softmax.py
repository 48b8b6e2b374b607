"""`info_nce` for the GPU tools: the problems that are planned offline, the cases that are timed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_ops import info_nce
from contrastive_ops.engine import gpu
from contrastive_ops.engine.problem import Operands, SimilarityProblem
from contrastive_ops.engine.summary import empty_summary

from .gpu_cases import Case, Loss, Planned, empty, generator

TEMPERATURE = 0.05
ERROR_ROWS = 16384
"""Largest batch whose float64 oracle is the dense formula."""
PREFIXES = (768, 384, 192, 96, 48)
DENSE_ROWS = 65536
"""Largest batch that others' losses are tried at."""


def step(problem: SimilarityProblem, operands: Operands, summarized: bool = False) -> object:
    """Loss and all gradients of a problem; with statistics of the batch, too."""
    wanted = (
        True,
        not problem.one_set,
        operands.negatives is not None,
        operands.own_negatives is not None,
        operands.temperature is not None,
        operands.bias is not None,
    )
    summary = empty_summary(operands) if summarized else None
    return gpu.total(problem, operands, 1.0 / operands.query.shape[0], wanted, summary)


def useful_flops(problem: SimilarityProblem, operands: Operands) -> float:
    """3G one way, 4G two ways: the bounds that a step is measured by."""
    candidates = operands.key.shape[0]
    if operands.negatives is not None:
        candidates += operands.negatives.shape[0]
    product = 2.0 * operands.query.shape[0] * candidates * operands.query.shape[1]
    return (4 if problem.symmetric else 3) * product


def plans(dtype: torch.dtype, precision: str) -> Iterator[Planned]:
    """Problems that between them launch every kernel in every role."""
    for title, problem, operands in _problems(dtype, precision):
        yield Planned(
            title,
            [*operands.query.shape],
            useful_flops(problem, operands),
            partial(step, problem, operands, "statistics" in title),
            quick=title.endswith("T a number"),
        )


def _problems(
    dtype: torch.dtype, precision: str
) -> Iterator[tuple[str, SimilarityProblem, Operands]]:
    n, width = 65536, 768
    plain = Operands(empty(n, width, of=dtype), empty(n, width, of=dtype))
    number = SimilarityProblem(scale=20.0, precision=precision)
    learnt = plain._replace(temperature=empty(of=torch.float32))
    yield "one way, T a number", number, plain
    yield "two ways, T a number", number._replace(symmetric=True), plain
    yield "one way, T a tensor", number, learnt
    yield "two ways, T a tensor", number._replace(symmetric=True), learnt
    yield "one way, statistics", number, plain
    yield "two ways, statistics", number._replace(symmetric=True), learnt
    yield "dot product", number._replace(normalize=False), plain
    ids = {
        "query_ids": empty(1, n, of=torch.int64),
        "key_ids": empty(1, n, of=torch.int64),
    }
    many = number._replace(label_smoothing=0.1, false_negative_margin=0.1)
    for title in (
        "two ways, ids, margin, smoothing",
        "two ways, ids, margin, smoothing, statistics",
    ):
        yield title, many._replace(symmetric=True), learnt._replace(**ids)
    whole = learnt._replace(
        **ids,
        negatives=empty(4096, width, of=dtype),
        own_negatives=empty(n, 4, width, of=dtype),
        positives=empty(n, 2, of=torch.int64),
        negative_ids=empty(1, 4096, of=torch.int64),
        negative_bias=empty(4096, of=torch.float32),
        own_bias=empty(n, 4, of=torch.float32),
        guide_query=empty(n, 384, of=torch.float32),
        guide_key=empty(n, 384, of=torch.float32),
        guide_negatives=empty(4096, 384, of=torch.float32),
        guide_threshold=empty(n, of=torch.float32),
    )
    many = many._replace(group=1, group_log_weight=0.5)
    yield "everything", many, whole
    yield "everything, statistics", many, whole


def cases(shrink: int = 1) -> Iterator[Case]:
    """The most telling first, in case time runs out."""
    for symmetric in (True, False):
        for n in (65536, 16384, 4096, 1024, 256, 64):
            yield _case(n, 768, symmetric, shrink=shrink)
    yield _prefixes_case(16384, shrink)
    for symmetric in (True, False):
        yield _case(16384, 768, symmetric, inputs="clustered", shrink=shrink)
        yield _case(262144, 768, symmetric, shrink=shrink)
        for width in (256, 1024, 4096, 512, 2048):
            yield _case(16384, width, symmetric, shrink=shrink)
        yield _case(16384, 768, symmetric, dtype="float16", shrink=shrink)
        yield _case(8192, 768, symmetric, dtype="float32", shrink=shrink)


def _case(
    n: int,
    width: int,
    symmetric: bool,
    dtype: str = "bfloat16",
    inputs: str = "gaussian",
    shrink: int = 1,
) -> Case:
    settings = {"n": n, "width": width, "symmetric": symmetric, "dtype": dtype, "inputs": inputs}
    rehearsed = shrink > 1
    here = (max(n // shrink, 33), 24) if rehearsed else (n, width)
    return Case(
        f"{'two ways' if symmetric else 'one way'}, {n} x {width}, {dtype}, {inputs}",
        settings,
        (4 if symmetric else 3) * 2.0 * n * n * width,
        partial(pair_rows, *here, dtype, inputs),
        partial(_variants, n, width, symmetric, dtype, inputs),
        _exact(n, symmetric),
        rounds=1 if rehearsed else 3 if n >= 65536 else 12,
        by_wall_clock=n <= 1024,
    )


def _exact(n: int, symmetric: bool) -> Loss | None:
    """The dense formula; beyond what it fits, the plain PyTorch backend's stripes, up to what a
    GPU's float64 does in a few seconds."""
    if n <= ERROR_ROWS:
        return partial(dense, symmetric=symmetric)
    options = {
        "temperature": TEMPERATURE,
        "symmetric": symmetric,
        "backend": "torch",
        "workspace_bytes": 4 << 30,
    }
    return partial(info_nce, **options) if n <= DENSE_ROWS else None  # type: ignore[arg-type]


def _prefixes_case(n: int, shrink: int) -> Case:
    """Matryoshka; its time over that of the same batch on whole rows alone is what counts."""
    rehearsed = shrink > 1
    dims = (24, 8) if rehearsed else PREFIXES

    def ours(query: Tensor, key: Tensor) -> Tensor:
        options = {"temperature": TEMPERATURE, "backend": "triton"}
        return info_nce(query, key, matryoshka_dims=dims, **options)  # type: ignore[arg-type]

    def theirs(query: Tensor, key: Tensor) -> Tensor:
        losses = [dense(query[:, :dim], key[:, :dim], symmetric=False) for dim in dims]
        return torch.stack(losses).sum()

    return Case(
        f"one way, {n} x 768, bfloat16, prefixes of {', '.join(map(str, PREFIXES))}",
        {"n": n, "width": 768, "dtype": "bfloat16", "prefixes": list(PREFIXES)},
        3 * 2.0 * n * n * 768,
        partial(pair_rows, *((33, 24) if rehearsed else (n, 768)), "bfloat16", "gaussian"),
        lambda: {"ours": ours, "dense": theirs},
        theirs,
        rounds=1 if rehearsed else 12,
    )


def pair_rows(n: int, width: int, dtype: str, inputs: str, device: str) -> list[Tensor]:
    """Queries, and keys that resemble them: independent directions, or clusters."""
    source = generator(device, n + width)

    def normal(count: int) -> Tensor:
        return torch.randn((count, width), generator=source, device=device)

    if inputs == "clustered":
        centres = normal(max(8, n // 64))
        query = centres[torch.arange(n, device=device) % len(centres)] + 0.5 * normal(n)
        key = query + 0.3 * normal(n)
    else:
        query = F.normalize(normal(n), dim=1)
        key = F.normalize(query + F.normalize(normal(n), dim=1), dim=1)
    return [x.to(getattr(torch, dtype)).requires_grad_() for x in (query, key)]


def dense(query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    """What a user writes without a library."""
    x, y = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = x @ y.T / TEMPERATURE
    target = torch.arange(len(query), device=query.device)
    loss = F.cross_entropy(logits, target)
    return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss


def _linear(query: Tensor, key: Tensor, symmetric: bool, loss: Loss) -> Tensor:
    """Losses of the form (input, weight, target) serve one direction at a time."""
    x, y = F.normalize(query, dim=1), F.normalize(key, dim=1)
    target = torch.arange(len(query), device=query.device)
    forth = loss(x / TEMPERATURE, y, target)
    return (forth + loss(y / TEMPERATURE, x, target)) / 2 if symmetric else forth


def _variants(n: int, width: int, symmetric: bool, dtype: str, inputs: str) -> dict[str, Loss]:
    def ours(query: Tensor, key: Tensor, **more: Any) -> Tensor:
        given = {"temperature": TEMPERATURE, "symmetric": symmetric, "backend": "triton"}
        return info_nce(query, key, **{**given, **more})

    found: dict[str, Loss] = {"ours": ours}
    if n <= 16384 and dtype == "bfloat16":

        def learnt(query: Tensor, key: Tensor) -> Tensor:
            return ours(query, key, temperature=_learnt(query.device))

        found["ours, T learnt"] = learnt
    if symmetric and n == 65536:
        # All exponentials kept: 3G for 8 GiB.
        found["ours, 9 GiB"] = partial(ours, workspace_bytes=9 << 30)
    if n > DENSE_ROWS:
        return found
    found["dense"] = partial(dense, symmetric=symmetric)
    if n in (1024, 16384) and width == 768 and inputs == "gaussian" and dtype == "bfloat16":
        found["torch.compile"] = torch.compile(partial(dense, symmetric=symmetric), dynamic=False)
    peer = getattr(F, "linear_cross_entropy", None)
    if peer is not None:
        found["F.linear_cross_entropy"] = partial(_linear, symmetric=symmetric, loss=peer)
    for name, module, make in _PEERS:
        try:
            theirs = make(importlib.import_module(module))
        except Exception:
            continue
        found[name] = partial(_linear, symmetric=symmetric, loss=theirs)
    return found


@functools.cache
def _learnt(device: torch.device) -> Tensor:
    return torch.tensor(TEMPERATURE, device=device, requires_grad=True)


def _liger(module: Any) -> Loss:
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, target: loss(weight, x, target)


_PEERS: tuple[tuple[str, str, Callable[[Any], Loss]], ...] = (
    ("Liger-Kernel", "liger_kernel.transformers", _liger),
    ("cut-cross-entropy", "cut_cross_entropy", lambda module: module.linear_cross_entropy),
)
