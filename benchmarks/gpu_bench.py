"""Times of loss and gradients on a GPU, ours beside the dense loss and peers that are installed.

Variants take turns (A B C A B C ...), with a hot and a cold second-level cache; each case reports
medians, useful TFLOP/s over 3G (one way) or 4G (two ways), memory beyond operands and gradients,
and the error of loss and gradients against float64.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_ops import info_nce

TEMPERATURE = 0.05
ERROR_ROWS = 8192
DENSE_ROWS = 65536
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Case:
    n: int
    width: int
    symmetric: bool
    dtype: str = "bfloat16"
    inputs: str = "gaussian"

    @property
    def useful_flops(self) -> float:
        return (4 if self.symmetric else 3) * 2.0 * self.n * self.n * self.width


def cases() -> Iterator[Case]:
    """The most telling first, in case time runs out."""
    for symmetric in (True, False):
        for n in (65536, 16384, 4096, 1024, 256, 64):
            yield Case(n, 768, symmetric)
    for symmetric in (True, False):
        for width in (256, 512, 1024, 2048, 4096):
            yield Case(16384, width, symmetric)
        yield Case(16384, 768, symmetric, inputs="clustered")
        yield Case(16384, 768, symmetric, dtype="float16")
        yield Case(8192, 768, symmetric, dtype="float32")
        yield Case(262144, 768, symmetric)


def rows_of(case: Case) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(case.n + case.width)

    def normal(n: int) -> Tensor:
        return torch.randn((n, case.width), generator=generator, device="cuda")

    if case.inputs == "clustered":
        centres = normal(max(8, case.n // 64))
        query = centres[torch.arange(case.n, device="cuda") % len(centres)] + 0.5 * normal(case.n)
        key = query + 0.3 * normal(case.n)
    else:
        query = F.normalize(normal(case.n), dim=1)
        key = F.normalize(query + F.normalize(normal(case.n), dim=1), dim=1)
    dtype = getattr(torch, case.dtype)
    return [x.to(dtype).requires_grad_() for x in (query, key)]


def _dense(query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    x, y = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = x @ y.T / TEMPERATURE
    target = torch.arange(len(query), device=query.device)
    loss = F.cross_entropy(logits, target)
    return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss


def _linear(query: Tensor, key: Tensor, symmetric: bool, loss: Callable[..., Tensor]) -> Tensor:
    """Losses of the form (input, weight, target) serve one direction at a time."""
    x, y = F.normalize(query, dim=1), F.normalize(key, dim=1)
    target = torch.arange(len(query), device=query.device)
    forth = loss(x / TEMPERATURE, y, target)
    return (forth + loss(y / TEMPERATURE, x, target)) / 2 if symmetric else forth


def variants(case: Case) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name to loss, of what is installed and fits memory."""
    symmetric = case.symmetric
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": lambda q, k: info_nce(q, k, temperature=TEMPERATURE, symmetric=symmetric)
    }
    if case.n <= 8192 and case.dtype == "bfloat16":
        graphed = torch.tensor(TEMPERATURE, device="cuda", requires_grad=True)
        found["ours, T learnt"] = lambda q, k: info_nce(
            q, k, temperature=graphed, symmetric=symmetric
        )
    if case.n <= DENSE_ROWS:
        found["dense"] = lambda q, k: _dense(q, k, symmetric)
    if case.n in (1024, 16384) and case.width == 768 and case.inputs == "gaussian":
        compiled = torch.compile(_dense)
        found["torch.compile"] = lambda q, k: compiled(q, k, symmetric)
    peer = getattr(F, "linear_cross_entropy", None)
    if peer is not None:
        found["F.linear_cross_entropy"] = lambda q, k: _linear(q, k, symmetric, peer)
    for name, module, make in _PEERS:
        try:
            theirs = make(importlib.import_module(module))
        except Exception:
            continue
        found[name] = lambda q, k, theirs=theirs: _linear(q, k, symmetric, theirs)  # type: ignore[misc]
    return found


def _liger(module: Any) -> Callable[..., Tensor]:
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, target: loss(weight, x, target)


_PEERS: tuple[tuple[str, str, Callable[[Any], Callable[..., Tensor]]], ...] = (
    ("Liger-Kernel", "liger_kernel.transformers", _liger),
    ("cut-cross-entropy", "cut_cross_entropy", lambda module: module.linear_cross_entropy),
)


def peers_installed() -> dict[str, bool]:
    """Which packages with a comparable loss are there."""
    spec = importlib.util.find_spec
    names = ("liger_kernel", "cut_cross_entropy", "siglip_kernel", "late_interaction_kernels")
    return {name: spec(name) is not None for name in names}


def run(deadline: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry a case and variant, until the deadline (time.monotonic)."""
    entries: list[dict[str, Any]] = []
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for case in cases():
        if time.monotonic() > deadline:
            say(f"out of time before {case}")
            break
        rows = rows_of(case)
        exact = _exact(case, rows) if case.n <= ERROR_ROWS else None
        ready = {}
        for name, loss in variants(case).items():
            try:
                ready[name] = loss, _facts(loss, rows, exact)
            except Exception as error:
                entries.append(
                    _entry(case, name) | {"failed": f"{type(error).__name__}: {error}"[:300]}
                )
            torch.cuda.empty_cache()
        times = _interleaved({name: loss for name, (loss, _) in ready.items()}, rows, flush, case)
        for name, (_, facts) in ready.items():
            hot, cold = times[name]
            tera = case.useful_flops / hot / 1e12
            entries.append(
                _entry(case, name)
                | facts
                | {"hot_seconds": hot, "cold_seconds": cold, "useful_tflops": tera}
            )
            extra = facts["extra_bytes"] / 2**20
            say(
                f"{case}: {name}: {hot * 1e3:.3f} ms hot, {cold * 1e3:.3f} cold, "
                f"{tera:.0f} TFLOP/s, {extra:.0f} MiB"
            )
    return entries


def _entry(case: Case, name: str) -> dict[str, Any]:
    return {**case.__dict__, "variant": name}


def _step(loss: Callable[..., Tensor], rows: list[Tensor]) -> Tensor:
    for x in rows:
        x.grad = None
    value = loss(*rows)
    value.backward()
    return value


def _facts(
    loss: Callable[..., Tensor], rows: list[Tensor], exact: list[Tensor] | None
) -> dict[str, Any]:
    """Memory beyond operands and gradients, and errors against float64."""
    _step(loss, rows)
    torch.cuda.synchronize()
    for x in rows:
        x.grad = None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    value = _step(loss, rows)
    torch.cuda.synchronize()
    held = sum(x.numel() * x.element_size() for x in rows)
    facts: dict[str, Any] = {
        "extra_bytes": torch.cuda.max_memory_allocated() - before - held,
        "loss": value.item(),
    }
    if exact is not None:
        found = [value.detach(), *(x.grad for x in rows if x.grad is not None)]
        facts["errors"] = [
            ((a.double() - b).abs().max() / b.abs().max()).item()
            for a, b in zip(found, exact, strict=True)
        ]
    return facts


def _exact(case: Case, rows: list[Tensor]) -> list[Tensor]:
    wide = [x.detach().double().requires_grad_() for x in rows]
    loss = _dense(wide[0], wide[1], case.symmetric)
    loss.backward()
    return [loss.detach(), *(x.grad for x in wide if x.grad is not None)]


def _interleaved(
    losses: dict[str, Callable[..., Tensor]], rows: list[Tensor], flush: Tensor, case: Case
) -> dict[str, tuple[float, float]]:
    rounds = 3 if case.n >= 65536 else 12
    samples: dict[str, list[list[float]]] = {name: [[], []] for name in losses}
    for turn in range(rounds + 1):
        for cold in (False, True):
            for name, loss in losses.items():
                if cold:
                    flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                # Small cases: what the caller waits for, launches included.
                begun = time.perf_counter()
                start.record()
                _step(loss, rows)
                end.record()
                torch.cuda.synchronize()
                waited = time.perf_counter() - begun
                spent = waited if case.n <= 1024 else start.elapsed_time(end) / 1e3
                if turn:  # the first one warms up
                    samples[name][cold].append(spent)
    return {
        name: (statistics.median(hot), statistics.median(cold))
        for name, (hot, cold) in samples.items()
    }
