"""The checks that only a GPU can make: graphs, synchronisation, large indices, precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from contrastive_ops import info_nce


def device_checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """Checks that only a GPU can make."""
    for symmetric in (False, True):
        for learnt in (False, True):
            title = f"{'two' if symmetric else 'one'}-way, T a {'tensor' if learnt else 'number'}"
            yield (
                f"no synchronisation: {title}",
                partial(check_no_synchronisation, symmetric, learnt),
            )
            yield f"CUDA graph: {title}", partial(check_graph, symmetric, learnt)
        yield f"beyond 2**31: {symmetric}", partial(check_large, symmetric)
        for precision, tolerance in (("ieee", 2e-6), ("tf32x3", 4e-6), ("tf32", 5e-3)):
            yield (
                f"precision {precision}, {symmetric}",
                partial(check_precision, symmetric, precision, tolerance),
            )


def _rows(n: int, width: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(n)
    rows = torch.randn((2, n, width), generator=generator, device="cuda")
    rows[1] += rows[0]
    return [x.to(dtype).requires_grad_() for x in rows]


def _step(rows: list[Tensor], temperature: Tensor | float, symmetric: bool) -> Tensor:
    loss = info_nce(*rows, temperature=temperature, symmetric=symmetric, backend="triton")
    loss.backward()
    return loss.detach()


def _temperature(learnt: bool) -> Tensor | float:
    return torch.tensor(0.05, device="cuda", requires_grad=True) if learnt else 0.05


def check_no_synchronisation(symmetric: bool, learnt: bool) -> None:
    rows, temperature = _rows(2048, 256), _temperature(learnt)
    _step(rows, temperature, symmetric)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(rows, temperature, symmetric)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_graph(symmetric: bool, learnt: bool) -> None:
    """A replayed graph computes what eager calls do, of new rows in the same place."""
    rows, temperature = _rows(2048, 256), _temperature(learnt)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _step(rows, temperature, symmetric)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for x in rows:
        x.grad = None
    with torch.cuda.graph(graph):
        captured = _step(rows, temperature, symmetric)
    with torch.no_grad():
        for x in rows:
            x.copy_(x.flip(0))
    graph.replay()
    replayed = [captured.clone(), *(x.grad.clone() for x in rows if x.grad is not None)]
    for x in rows:
        x.grad = None
    loss = _step(rows, temperature, symmetric)
    again = [loss, *(x.grad for x in rows if x.grad is not None)]
    for a, b in zip(replayed, again, strict=True):
        assert torch.equal(a, b), "the graph's replay differs from the eager call"


def check_large(symmetric: bool) -> None:
    """More than 2**31 coefficients in one buffer: duplicate rows make the answer known."""
    n, distinct, width = 49152, 64, 64
    base = _rows(distinct, width, torch.bfloat16)
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


def check_precision(symmetric: bool, precision: str, tolerance: float) -> None:
    rows = _rows(1000, 200, torch.float32)
    wide = [x.detach().double().requires_grad_() for x in rows]
    options = {"temperature": 0.1, "symmetric": symmetric}
    info_nce(*wide, backend="reference", **options).backward()  # type: ignore[arg-type]
    info_nce(*rows, backend="triton", precision=precision, **options).backward()  # type: ignore[arg-type]
    for x, exact in zip(rows, wide, strict=True):
        assert x.grad is not None
        assert exact.grad is not None
        error = (x.grad - exact.grad).abs().max() / exact.grad.abs().max()
        assert error < tolerance, f"{precision}: error {error.item():.3g}"
