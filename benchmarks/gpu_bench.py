"""Times of losses with their gradients on a GPU, ours beside dense PyTorch and installed peers.

Variants take turns (A B C A B C ...), with a hot and a cold second-level cache; each case reports
medians, useful TFLOP/s over its bound, memory beyond operands and gradients, and the error of loss
and gradients against float64.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .gpu_cases import Case, Loss
from .gpu_families import FAMILIES

FLUSH_BYTES = 256 << 20


def peers_installed() -> dict[str, bool]:
    """Which packages with a comparable loss are there."""
    names = ("liger_kernel", "cut_cross_entropy", "siglip_kernel", "late_interaction_kernels")
    return {name: importlib.util.find_spec(name) is not None for name in names}


def schedule(shrink: int = 1) -> list[tuple[str, Case, float]]:
    """Every case with its family and the share of the benchmark's time after which it is late."""
    whole = sum(family.share for family in FAMILIES)
    found: list[tuple[str, Case, float]] = []
    used = 0.0
    for family in FAMILIES:
        used += family.share
        found += [(family.name, case, used / whole) for case in family.cases(shrink)]
    return found


def measure(family: str, case: Case, device: str, late: Callable[[], bool]) -> Iterator[Any]:
    """One entry a variant: (line to print, facts). Rounds end early when `late` says so."""
    leaves = case.leaves(device)
    exact = None if case.exact is None else _exact(case.exact, leaves)
    ready: dict[str, tuple[Loss, dict[str, Any]]] = {}
    about = {"family": family, "case": case.title, **case.settings}
    for name, loss in case.variants().items():
        if late() and ready:
            break
        try:
            ready[name] = loss, _facts(loss, leaves, exact, device)
        except Exception as error:
            if _broken(device):
                raise
            why = f"{type(error).__name__}: {error}"[:300]
            yield f"{case.title}: {name}: {why}", {**about, "variant": name, "failed": why}
        _release(leaves, device)
    times = _interleaved({name: loss for name, (loss, _) in ready.items()}, leaves, case, late)
    for name, (_, facts) in ready.items():
        hot, cold, rounds = times[name]
        tera = case.useful_flops / hot / 1e12
        line = f"{case.title}: {name}: {hot * 1e3:.3f} ms hot, {cold * 1e3:.3f} cold, "
        line += f"{tera:.0f} TFLOP/s"
        if facts["extra_bytes"] is not None:
            line += f", {facts['extra_bytes'] / 2**20:.0f} MiB"
        entry = {
            **about,
            "variant": name,
            **facts,
            "hot_seconds": hot,
            "cold_seconds": cold,
            "rounds": rounds,
            "useful_tflops": tera,
        }
        yield line, entry


def memory_table(entries: list[dict[str, Any]]) -> list[str]:
    """Memory beyond operands and gradients of every case, as lines."""
    lines = []
    cases = dict.fromkeys(e["case"] for e in entries if e.get("extra_bytes") is not None)
    for case in cases:
        cells = [
            f"{e['variant']} {e['extra_bytes'] / 2**20:.0f}"
            for e in entries
            if e["case"] == case and e.get("extra_bytes") is not None
        ]
        lines.append(f"MiB beyond operands and gradients, {case}: {', '.join(cells)}")
    return lines


def _broken(device: str) -> bool:
    """Whether this process's GPU context is lost, so that nothing after it means anything."""
    try:
        _synchronize(device)
    except Exception:
        return True
    return False


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _release(leaves: list[Tensor], device: str) -> None:
    for x in leaves:
        x.grad = None
    if device == "cuda":
        torch.cuda.empty_cache()


def _step(loss: Loss, leaves: list[Tensor]) -> Tensor:
    for x in leaves:
        x.grad = None
    value = loss(*leaves)
    if value.requires_grad:  # a selection has no gradient
        value.backward()
    return value


def _facts(
    loss: Loss, leaves: list[Tensor], exact: list[Tensor] | None, device: str
) -> dict[str, Any]:
    """Memory beyond operands and gradients, and errors against float64."""
    _step(loss, leaves)
    _synchronize(device)
    _release(leaves, device)
    extra = None
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    value = _step(loss, leaves)
    _synchronize(device)
    if device == "cuda":
        held = sum(x.numel() * x.element_size() for x in leaves if x.requires_grad)
        extra = torch.cuda.max_memory_allocated() - before - held
    facts: dict[str, Any] = {"extra_bytes": extra, "loss": value.item()}
    if exact is not None:
        found = [value.detach(), *(x.grad for x in leaves if x.grad is not None)]
        facts["errors"] = [
            ((a.double() - b).abs().max() / b.abs().max()).item()
            for a, b in zip(found, exact, strict=True)
        ]
    return facts


def _exact(formula: Loss, leaves: list[Tensor]) -> list[Tensor]:
    wide = [x.detach().double().requires_grad_() for x in leaves]
    loss = formula(*wide)
    loss.backward()
    return [loss.detach(), *(x.grad for x in wide if x.grad is not None)]


def _interleaved(
    losses: dict[str, Loss], leaves: list[Tensor], case: Case, late: Callable[[], bool]
) -> dict[str, tuple[float, float, int]]:
    """Median seconds hot and cold, and after how many rounds."""
    device = leaves[0].device.type
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if losses else None
    samples: dict[str, list[list[float]]] = {name: [[], []] for name in losses}
    for turn in range(case.rounds + 1):
        if turn > 1 and late():
            break
        for cold in (False, True):
            for name, loss in losses.items():
                if cold and flush is not None:
                    flush.zero_()
                spent = _timed(loss, leaves, case.by_wall_clock, device)
                if turn:  # the first one warms up
                    samples[name][cold].append(spent)
    return {
        name: (statistics.median(hot), statistics.median(cold), len(hot))
        for name, (hot, cold) in samples.items()
    }


def _timed(loss: Loss, leaves: list[Tensor], by_wall_clock: bool, device: str) -> float:
    _synchronize(device)
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if device == "cuda" and not by_wall_clock:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            stack.callback(end.record)
        _step(loss, leaves)
    _synchronize(device)
    if device == "cuda" and not by_wall_clock:
        return start.elapsed_time(end) / 1e3
    return time.perf_counter() - begun
