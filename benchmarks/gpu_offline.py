"""Compiles every GPU kernel for every architecture, without a GPU, and reports what became of it.

    python -m contrastive_ops.benchmarks.gpu_offline [--arch sm_90] [--quick] [--output FILE]

Registers, shared memory and spills come from Triton's own ptxas and cuobjdump (from the assembly's
notes for AMD); instructions are counted in the assembly. A kernel that several plans launch is
compiled once, and what Triton's cache on disk holds is not compiled again. Exit code 1 if a kernel
spills, does not fit shared memory, or a tile kernel has no tensor-core instruction where it should.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contrastive_ops.training.atomic import atomic_path

from . import cuda_offline, gpu_plan
from .gpu_cases import Planned
from .gpu_families import FAMILIES
from .gpu_plan import Launch, Plan
from .machine import commit

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma|v_mfma")
BULK = re.compile(r"cp\.async\.bulk\.tensor")

KINDS = (
    ("bfloat16", "ieee"),
    ("float16", "ieee"),
    ("float32", "ieee"),
    ("float32", "tf32x3"),
    ("float32", "tf32"),
)


@dataclass(frozen=True)
class Recorded:
    """A planned step and what it launches."""

    family: str
    planned: Planned
    dtype: str
    architecture: str
    plan: Plan


def recorded(architectures: list[str], quick: bool) -> Iterator[Recorded]:
    """Every plan of every family, dtype, precision and architecture."""
    for architecture in architectures:
        for dtype, precision in KINDS[:1] if quick else KINDS:
            for family in FAMILIES:
                for planned in family.plans(getattr(torch, dtype), precision):
                    if planned.quick or not quick:
                        plan = gpu_plan.record(planned.step, architecture, precision)
                        yield Recorded(family.name, planned, dtype, architecture, plan)


def compile_all(plans: list[Recorded]) -> dict[tuple[str, str], dict[str, Any]]:
    """What each kernel of the plans became, by architecture and `Launch.key`."""
    builds = {
        (found.architecture, launch.key()): launch
        for found in plans
        for launch in found.plan.launches
    }
    # Tiles first: they take longest, so that no process is left alone with one at the end.
    order = sorted(builds, key=lambda key: builds[key].name not in gpu_plan.TILE_KERNELS)
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    told = began = time.monotonic()
    with ProcessPoolExecutor() as pool:
        waiting = {pool.submit(compiled, *_plain(builds[key]), key[0]): key for key in order}
        for done in as_completed(waiting):
            facts[waiting[done]] = done.result()
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{len(facts)} of {len(order)} kernels, {told - began:.0f} s", flush=True)
    print(f"{len(facts)} kernels in {time.monotonic() - began:.0f} s", flush=True)
    return facts


def _plain(launch: Launch) -> tuple[str, str, tuple[Any, ...], dict[str, int]]:
    """A launch as another process can be told of it."""
    return launch.kernel.fn.__module__, launch.name, launch.signature(), launch.options


def compiled(
    module: str, name: str, signature: tuple[Any, ...], options: dict[str, int], architecture: str
) -> dict[str, Any]:
    """Compiles one kernel and reads what it needs."""
    source = ASTSource(getattr(importlib.import_module(module), name), *signature)
    result = triton.compile(source, target=TARGETS[architecture], options=options)
    facts: dict[str, Any] = {"shared": result.metadata.shared}
    if architecture.startswith("sm"):
        text = result.asm["ptx"]
        facts |= _cubin_resources(result.asm["cubin"])
    else:
        text = result.asm["amdgcn"]
        notes = {
            name: int(re.search(rf"\.{name}:\s*(\d+)", text)[1])  # type: ignore[index]
            for name in ("vgpr_count", "vgpr_spill_count")
        }
        facts |= {
            "registers": notes["vgpr_count"],
            # Scalar registers that do not fit go to lanes of vector registers, not to memory.
            "spills": notes["vgpr_spill_count"],
        }
    facts["matrix"] = len(MATRIX.findall(text))
    facts["bulk"] = len(BULK.findall(text))
    return facts


def _cubin_resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    usage = dict(re.findall(r"(\w+):(\d+)", done.stdout.split("Function", 1)[1]))
    return {
        "registers": int(usage["REG"]),
        "spills": int(usage.get("LOCAL", 0)) + int(usage.get("STACK", 0)),
    }


def faults(launch: Launch, facts: dict[str, Any], plan: Plan) -> list[str]:
    """What must not be."""
    found = []
    if facts["spills"]:
        found.append(f"spills {facts['spills']} bytes")
    if facts["shared"] > plan.architecture.shared_bytes:
        found.append(f"{facts['shared']} bytes of shared memory")
    if launch.name in gpu_plan.TILE_KERNELS:
        exact = gpu_plan.itemsize(launch.arguments["x"]) == 4 and plan.precision == "ieee"
        if not facts["matrix"] and not exact:
            found.append("no tensor-core instruction")
        if launch.arguments.get("BULK") and not facts["bulk"]:
            found.append("no bulk copy")
    return found


def report(found: Recorded, facts: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """A plan's kernels, their resources, the model's times."""
    plan, planned = found.plan, found.planned
    kernels: dict[str, dict[str, Any]] = {}
    total = 0.0
    for step in plan.steps:
        if not isinstance(step, Launch):
            spent = gpu_plan.seconds(plan, step)
            entry = kernels.setdefault("library products", {"kernel": "library products"})
        else:
            key = step.key()
            became = facts[found.architecture, key]
            spent = gpu_plan.seconds(plan, step, became)
            entry = kernels.setdefault(
                key, {"kernel": step.name, **_described(step, plan, found.dtype, became)}
            )
        entry["launches"] = entry.get("launches", 0) + 1
        entry["seconds"] = entry.get("seconds", 0.0) + spent
        # Of two variants that look at the temperature, one returns at once.
        unused = (
            isinstance(step, Launch)
            and step.arguments.get("CHECK")
            and not step.arguments.get("BOUNDED", True)
        )
        total += 0.0 if unused else spent
    size = getattr(torch, found.dtype).itemsize
    return {
        "architecture": found.architecture,
        "dtype": found.dtype,
        "precision": plan.precision,
        "family": found.family,
        "problem": planned.title,
        "shape": planned.shape,
        "predicted_seconds": total,
        "roofline_seconds": planned.useful_flops
        / gpu_plan.rate(plan.architecture, size, plan.precision),
        "predicted_tflops": planned.useful_flops / total / 1e12,
        "kernels": list(kernels.values()),
    }


def _described(launch: Launch, plan: Plan, dtype: str, facts: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"dtype": dtype, **facts}
    told["faults"] = faults(launch, facts, plan)
    warps = launch.options.get("num_warps", 4)
    told["blocks per multiprocessor"] = gpu_plan.resident(
        plan.architecture, facts["registers"], facts["shared"], warps
    )
    if launch.name in gpu_plan.TILE_KERNELS:
        blocks = [v for k, v in launch.arguments.items() if k.startswith("BLOCK_")]
        told["tile"] = [*blocks, warps, launch.options.get("num_stages", 3)]
        told["precision"] = plan.precision
        told["bounded"] = bool(launch.arguments.get("BOUNDED"))
    return told


def render(entries: list[dict[str, Any]]) -> str:
    """The report as text."""
    lines = []
    for entry in entries:
        lines.append(
            f"\n{entry['architecture']}  {entry['dtype']} {entry['precision']}  "
            f"{entry['family']}, {entry['problem']}, {entry['shape']}: "
            f"{entry['predicted_seconds'] * 1e3:.1f} ms predicted, "
            f"{entry['roofline_seconds'] * 1e3:.1f} ms at the roofline, "
            f"{entry['predicted_tflops']:.0f} TFLOP/s useful"
        )
        for kernel in entry["kernels"]:
            spent = kernel["seconds"] * 1e3
            text = f"  {kernel['kernel']:<20} x{kernel['launches']:<4} {spent:8.2f} ms"
            if "registers" in kernel:
                text += (
                    f"  {kernel['registers']:>3} registers, {kernel['shared']:>6} B shared, "
                    f"{kernel['spills']} spilled, {kernel['matrix']} matrix, "
                    f"{kernel['bulk']} bulk, "
                    f"{kernel['blocks per multiprocessor']} resident"
                )
            if "tile" in kernel:
                text += f"  {kernel['tile']}{' bounded' if kernel['bounded'] else ''}"
            for fault in kernel.get("faults", []):
                text += f"  FAULT: {fault}"
            lines.append(text)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--arch", choices=[*TARGETS], action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="bfloat16, the plain problems alone")
    parser.add_argument("--output", type=Path, help="also write the report as JSON")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("gpu-offline: TRITON_INTERPRET is set, which compiles nothing", file=sys.stderr)
        return 2
    plans = list(recorded(args.arch or list(TARGETS), args.quick))
    facts = compile_all(plans)
    entries = [report(found, facts) for found in plans]
    print(render(entries), flush=True)
    cuda = [] if args.quick else cuda_offline.report_all(args.arch)
    if args.output:
        write(args.output, entries, cuda)
    wrong = sum(len(k.get("faults", [])) for entry in entries for k in entry["kernels"])
    print(f"\n{len(entries)} plans, {wrong} faults")
    return 1 if wrong + cuda_offline.faults(cuda) else 0


def write(path: Path, entries: list[dict[str, Any]], cuda: list[cuda_offline.Kernel]) -> None:
    """The report as JSON: each kernel once, plans refer to them by number."""
    numbers: dict[str, int] = {}
    plans = []
    for entry in entries:
        launched = []
        for kernel in entry["kernels"]:
            what = {k: v for k, v in kernel.items() if k not in ("launches", "seconds")}
            text = json.dumps({"architecture": entry["architecture"], **what})
            number = numbers.setdefault(text, len(numbers))
            launched.append([number, kernel["launches"], float(f"{kernel['seconds']:.3g}")])
        plans.append(json.dumps(entry | {"kernels": launched}))
    about = {"commit": commit(), "torch": torch.__version__, "triton": triton.__version__}
    text = json.dumps({**about, "model": gpu_plan.__doc__}, indent=1)[:-2]
    in_cuda = [json.dumps(kernel) for kernel in cuda]
    for name, lines in (("kernels", [*numbers]), ("plans", plans), ("cuda", in_cuda)):
        text += f',\n "{name}": [\n  ' + ",\n  ".join(lines) + "\n ]"
    with atomic_path(path) as scratch:
        scratch.write_text(text + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
