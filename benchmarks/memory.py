"""Peak memory of one step, beyond inputs and gradients, measured in a process of its own.

Method: the child draws the inputs, runs a small step so that libraries and threads are there,
returns free memory to the system, notes its resident memory, resets the kernel's high-water mark
(Linux: /proc/self/clear_refs), runs one step, and reads the mark. The result is mark - before -
bytes of the gradients. What a library keeps from the first step on is counted, since the step is
the first of its size; only a compiled variant runs one before, for the compiler's memory is not the
loss's. Elsewhere than on Linux a thread samples the resident memory every millisecond.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .cases import Case, make_inputs
from .timing import Runner
from .variants import COMPILED, VARIANTS, Variant

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def measure_memory(variant: Variant, case: Case, threads: int, timeout: float = 900.0) -> int:
    """Bytes that one step of the variant needs beyond inputs and gradients."""
    order = {
        "variant": variant.name,
        "case": dataclasses.asdict(case),
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", "contrastive_ops.benchmarks.memory", json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"measuring the memory of {variant.name!r} failed: {reason[-1]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def measure_here(variant: Variant, case: Case) -> int:
    """The same in this process, which should be a fresh one."""
    query, key = make_inputs(case)
    small = dataclasses.replace(case, n=min(case.n, 64))
    Runner(variant, small, query[: small.n], key[: small.n])()
    runner = Runner(variant, case, query, key)
    if variant.name == COMPILED.name:
        runner()
        runner.query.grad = runner.key.grad = runner.temperature.grad = None
    del query, key
    gc.collect()
    _trim()
    rise = _peak_rise(runner)
    leaves = (runner.query, runner.key, runner.temperature)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return max(0, rise - sum(grad.numel() * grad.element_size() for grad in gradients))


def _peak_rise(call: Callable[[], object]) -> int:
    """How far the resident memory rises above its present state while `call` runs, in bytes."""
    if _STATUS.is_file() and _RESET.exists():
        _RESET.write_text("5")
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before

    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    highest = before
    finished = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not finished.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        finished.set()
        watcher.join()
    return max(highest, process.memory_info().rss) - before


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _trim() -> None:
    """Hands free heap memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main() -> None:
    """Entry of the child: an order as JSON in, ``{"bytes": ...}`` out."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    peak = measure_here(VARIANTS[order["variant"]], Case(**order["case"]))
    print(json.dumps({"bytes": peak}))


if __name__ == "__main__":
    main()
