"""The checks that only a GPU can make: graphs, synchronisation, large indices, precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contrastive_ops import info_nce

from .gpu_cases import Check, generator

SITUATIONS = (
    "plain",
    "T a tensor",
    "positives",
    "guide",
    "own negatives",
    "ids, margin",
    "apart",
    "statistics",
)
"""What changes which kernels and which library calls run."""
LARGE_BYTES = 70 << 30
"""Of memory that a GPU has to have for checks beyond 2**31, several of which run at once."""


def device_checks(device: str) -> Iterator[Check]:
    """Checks that only a GPU can make; on the CPU, in the interpreter, those that can run there."""
    graphs = device == "cuda"
    large = not graphs or torch.cuda.get_device_properties(0).total_memory > LARGE_BYTES
    for symmetric in (False, True):
        way = "two-way" if symmetric else "one-way"
        for situation in SITUATIONS if graphs else ():
            title = f"{way}, {situation}"
            yield (
                f"no synchronisation: {title}",
                partial(check_no_synchronisation, symmetric, situation),
            )
            yield f"CUDA graph: {title}", partial(check_graph, symmetric, situation)
        n = 49152 if graphs else 128
        for dtype in (torch.bfloat16, torch.float16) if large else ():
            title = f"coefficients beyond 2**31: {way}, {str(dtype)[6:]}"
            yield title, partial(check_large, symmetric, n, dtype, device)
        for precision, tolerance in (("ieee", 2e-6), ("tf32x3", 4e-6), ("tf32", 5e-3)):
            yield (
                f"precision {precision}, {way}",
                partial(check_precision, symmetric, precision, tolerance, device),
            )

    shape = (600_000, 4096) if graphs else (640, 64)
    if large:
        yield "entries beyond 2**31", partial(check_wide, *shape, device)
    if graphs and torch.cuda.device_count() > 1:
        yield "not the current device", check_other_device


def _rows(
    n: int, width: int, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> list[Tensor]:
    rows = torch.randn((2, n, width), generator=generator(device, n), device=device)
    rows[1] += rows[0]
    return [x.to(dtype).requires_grad_() for x in rows]


def _situation(name: str, symmetric: bool, n: int, width: int) -> tuple[list[Tensor], Any]:
    """Leaves, and a step that gives their gradients and returns the loss."""
    leaves = _rows(n, width)
    source = generator("cuda", 5)
    options: dict[str, Any] = {"temperature": 0.05, "symmetric": symmetric, "backend": "triton"}
    index = torch.arange(n, device="cuda")
    if name == "T a tensor":
        options["temperature"] = torch.tensor(0.05, device="cuda", requires_grad=True)
        leaves.append(options["temperature"])
    elif name == "positives":
        options["positives"] = torch.stack([index, (index + 7) % n], 1)
    elif name == "guide":
        options["guide"] = tuple(
            torch.randn((n, 48), generator=source, device="cuda") for _ in range(2)
        )
    elif name == "own negatives":
        own = torch.randn((n, 3, width), generator=source, device="cuda").to(torch.bfloat16)
        leaves.append(own.requires_grad_())
        options |= {"negatives": own, "negatives_scope": "own"}
    elif name == "ids, margin":
        options |= {"query_ids": index // 2, "key_ids": index // 2, "false_negative_margin": 0.1}
    elif name == "apart":
        options["reduction"] = "none"
    elif name == "statistics":
        options["statistics"] = [].append

    def step() -> Tensor:
        for x in leaves:
            x.grad = None
        loss = info_nce(leaves[0], leaves[1], **options).sum()
        loss.backward()
        return loss.detach()

    return leaves, step


def check_no_synchronisation(symmetric: bool, situation: str) -> None:
    _, step = _situation(situation, symmetric, 2048, 256)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_graph(symmetric: bool, situation: str) -> None:
    """A replayed graph computes what eager calls do, of new rows in the same place."""
    leaves, step = _situation(situation, symmetric, 2048, 256)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    for x in leaves:
        x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in leaves[:2]:
            x.copy_(x.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [captured.clone(), *(x.grad.clone() for x in leaves if x.grad is not None)]
    again = [step(), *(x.grad for x in leaves if x.grad is not None)]
    assert len(replayed) == len(leaves) + 1
    for a, b in zip(replayed, again, strict=True):
        assert torch.equal(a, b), "the graph's replay differs from the eager call"


def check_large(symmetric: bool, n: int, dtype: torch.dtype, device: str) -> None:
    """More than 2**31 coefficients in one buffer (bfloat16: kept exponentials; float16: computed
    again): duplicate rows make the answer known."""
    distinct, width = 64, 64
    base = _rows(distinct, width, dtype, device)
    rows = [x.detach().repeat(n // distinct, 1).requires_grad_() for x in base]
    options = {"temperature": 0.5, "symmetric": symmetric, "backend": "triton", "reduction": "sum"}
    info_nce(*rows, workspace_bytes=6 << 30, **options).backward()  # type: ignore[arg-type]
    wide = [x.detach().double() for x in base]
    x, y = (v / v.norm(dim=1, keepdim=True) for v in wide)
    logits = x @ y.T / 0.5
    # Row i: its own positive once, and n / distinct copies of every key, less that one.
    copies = n // distinct
    weight = torch.full_like(logits, math.log(copies))
    lse = torch.logsumexp(logits + weight, 1)
    p = torch.exp(logits + weight - lse[:, None])
    grad = (p @ y - y) / 0.5
    if symmetric:
        back = torch.logsumexp(logits + weight, 0)
        q = torch.exp(logits + math.log(copies) - back[None, :]) / copies
        # Column j's probability of a copy of row i; there are `copies` columns of each kind.
        grad = (grad + ((q * copies) @ y - y) / 0.5) / 2
    grad = grad - (grad * x).sum(1, keepdim=True) * x
    expected = grad / wide[0].norm(dim=1, keepdim=True)
    for place in (0, n // 2 // distinct * distinct, n - distinct):
        assert rows[0].grad is not None
        found = rows[0].grad[place : place + distinct].double()
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 2e-2, f"rows from {place}: error {error.item():.3g}"


def check_wide(m: int, width: int, device: str) -> None:
    """Keys of more than 2**31 entries, copies of 64 of them."""
    distinct = 64
    base = [x.detach() for x in _rows(distinct, width, torch.bfloat16, device)]
    query, key = base[0].requires_grad_(), base[1].repeat(m // distinct, 1).requires_grad_()
    options = {"temperature": 0.5, "backend": "triton", "reduction": "sum"}
    info_nce(query, key, **options).backward()  # type: ignore[arg-type]
    wide = [x.detach().double() for x in base]
    norms = [v.norm(dim=1, keepdim=True) for v in wide]
    x, y = (v / norm for v, norm in zip(wide, norms, strict=True))
    p = torch.softmax(x @ y.T / 0.5, 1)
    assert query.grad is not None
    assert key.grad is not None
    by_query = (p @ y - y) / 0.5
    by_copy = p.T @ x * (distinct / m) / 0.5
    for found, grad, unit, norm in (
        (query.grad, by_query, x, norms[0]),
        (key.grad[-distinct:], by_copy, y, norms[1]),
    ):
        expected = (grad - (grad * unit).sum(1, keepdim=True) * unit) / norm
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < 2e-2, error.item()


def check_other_device() -> None:
    """Rows that are not where new tensors and kernels go by default."""
    results = []
    for device in ("cuda:0", "cuda:1"):
        leaves = [x.detach().to(device).requires_grad_() for x in _rows(300, 96)]
        loss = info_nce(*leaves, temperature=0.1, symmetric=True, backend="triton")
        loss.backward()
        results.append([loss.detach().cpu(), *(x.grad.cpu() for x in leaves if x.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-6)


def check_precision(symmetric: bool, precision: str, tolerance: float, device: str) -> None:
    rows = _rows(1000 if device == "cuda" else 60, 200, torch.float32, device)
    wide = [x.detach().double().requires_grad_() for x in rows]
    options = {"temperature": 0.1, "symmetric": symmetric}
    info_nce(*wide, backend="reference", **options).backward()  # type: ignore[arg-type]
    info_nce(*rows, backend="triton", precision=precision, **options).backward()  # type: ignore[arg-type]
    for x, exact in zip(rows, wide, strict=True):
        assert x.grad is not None
        assert exact.grad is not None
        error = (x.grad - exact.grad).abs().max() / exact.grad.abs().max()
        assert error < tolerance, f"{precision}: error {error.item():.3g}"
