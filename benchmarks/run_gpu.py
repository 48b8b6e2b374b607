"""Checks and measures the GPU backend from a checkout, with whatever python has torch and Triton.

    python benchmarks/run_gpu.py [--checks | --bench | --tune FILE] [--output FILE]

Nothing is installed or downloaded; pytest is not needed. The checks of tests/triton and those that
only a GPU can make run in a few processes at once, since most of their time is compiling; then the
benchmark runs alone. Stops measuring in time to end within nine minutes. The JSON is written after
the checks and after the benchmark. Exit code 1 if a check fails or is not reached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECK_SECONDS = 240
TOTAL_SECONDS = 500
WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))


def use_checkout() -> None:
    """Makes the checkout importable as it installs: kernels and benchmarks inside the package."""
    for entry in (ROOT, ROOT / "tests", ROOT / "tests" / "triton"):
        if str(entry) not in sys.path:
            sys.path.insert(0, str(entry))
    import contrastive_ops

    if str(ROOT) not in contrastive_ops.__path__:
        contrastive_ops.__path__.append(str(ROOT))


def check_some(part: int, parts: int, deadline: float) -> list[dict[str, Any]]:
    """Every `parts`-th check, from number `part` on."""
    use_checkout()
    import checks  # type: ignore[import-not-found]

    from contrastive_ops.benchmarks.gpu_checks import device_checks

    results = []
    for number, (name, check) in enumerate([*device_checks(), *checks.all_checks("cuda")]):
        if number % parts != part:
            continue
        entry: dict[str, Any] = {"check": name}
        began = time.monotonic()
        if time.time() > deadline:
            results.append(entry | {"outcome": "not run"})
            continue
        try:
            check()
            entry["outcome"] = "passed"
        except Exception:
            entry |= {"outcome": "failed", "why": traceback.format_exc()[-1500:]}
        results.append(entry | {"seconds": round(time.monotonic() - began, 2)})
    return results


def run_checks() -> list[dict[str, Any]]:
    deadline = time.time() + CHECK_SECONDS
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        jobs = [pool.submit(check_some, part, WORKERS, deadline) for part in range(WORKERS)]
        results = []
        for part, job in enumerate(jobs):
            try:
                results += job.result(timeout=max(1.0, deadline + 60 - time.time()))
            except Exception as error:  # a worker that died or hangs takes its share with it
                why = f"{type(error).__name__}: {error}"
                results.append({"check": f"worker {part}", "outcome": "failed", "why": why})
        if any(not job.done() for job in jobs):
            for process in multiprocessing.active_children():
                process.kill()
        return results


def machine() -> dict[str, Any]:
    import torch
    import triton

    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": head.stdout.strip() or "unknown",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks and measures the GPU backend.")
    parser.add_argument("--checks", action="store_true", help="the checks alone")
    parser.add_argument("--bench", action="store_true", help="the benchmark alone")
    parser.add_argument("--tune", type=Path, help="only find this GPU's best tiles, into a file")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-<name>.json")
    args = parser.parse_args()
    began = time.monotonic()
    import torch

    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here", file=sys.stderr)
        return 2
    os.environ.pop("TRITON_INTERPRET", None)
    use_checkout()
    from contrastive_ops.benchmarks import gpu_bench

    if args.tune:
        from contrastive_ops.benchmarks import gpu_tune

        gpu_tune.run(args.tune, lambda line: print(line, flush=True))
        return 0
    report: dict[str, Any] = {"machine": machine(), "peers": gpu_bench.peers_installed()}
    name = report["machine"]["gpu"].lower().replace(" ", "-")
    output = args.output or ROOT / "benchmarks" / "results" / f"gpu-{name}.json"
    bad = False
    if not args.bench:
        report["checks"] = run_checks()
        write(output, report)  # whatever becomes of the benchmark
        failed = [entry for entry in report["checks"] if entry["outcome"] == "failed"]
        passed = sum(entry["outcome"] == "passed" for entry in report["checks"])
        missed = len(report["checks"]) - passed - len(failed)
        print(f"checks: {passed} passed, {len(failed)} failed, {missed} not run", flush=True)
        for entry in failed:
            print(f"--- {entry['check']}\n{entry['why']}", flush=True)
        bad = bool(failed) or missed > 0
    if not args.checks:
        try:
            report["bench"] = gpu_bench.run(
                began + TOTAL_SECONDS, lambda line: print(line, flush=True)
            )
        except Exception:
            report["bench_error"] = traceback.format_exc()
            print(report["bench_error"], file=sys.stderr)
            bad = True
        write(output, report)
    print(f"{output}, {time.monotonic() - began:.0f} s")
    return int(bad)


def write(output: Path, report: dict[str, Any]) -> None:
    """Atomically."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, output)


if __name__ == "__main__":
    sys.exit(main())
