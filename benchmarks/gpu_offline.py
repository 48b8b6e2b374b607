"""Compiles every GPU kernel for every architecture, without a GPU, and reports what became of it.

    python -m contrastive_ops.benchmarks.gpu_offline [--arch sm_90] [--quick]

Registers, shared memory and spills come from Triton's own ptxas and cuobjdump (from the assembly's
notes for AMD); instructions are counted in the assembly. Exit code 1 if a kernel spills, does not
fit shared memory, or a tile kernel has no tensor-core instruction where it should.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contrastive_ops.engine.problem import Operands, SimilarityProblem
from contrastive_ops.training.atomic import write_json

from . import gpu_plan
from .gpu_plan import Launch, Plan

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


def problems(
    dtype: torch.dtype, precision: str, quick: bool = False
) -> Iterator[tuple[str, SimilarityProblem, Operands]]:
    """Problems that between them launch every kernel in every role."""

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    n, width = 65536, 768
    plain = Operands(empty(n, width), empty(n, width))
    number = SimilarityProblem(scale=20.0, precision=precision)
    learnt = plain._replace(temperature=empty(of=torch.float32))
    yield "one way, T a number", number, plain
    yield "two ways, T a number", number._replace(symmetric=True), plain
    if quick:
        return
    yield "one way, T a tensor", number, learnt
    yield "two ways, T a tensor", number._replace(symmetric=True), learnt
    yield "dot product", number._replace(normalize=False), plain
    ids = {
        "query_ids": empty(1, n, of=torch.int64),
        "key_ids": empty(1, n, of=torch.int64),
    }
    many = number._replace(label_smoothing=0.1, false_negative_margin=0.1)
    yield "two ways, ids, margin, smoothing", many._replace(symmetric=True), learnt._replace(**ids)
    whole = learnt._replace(
        **ids,
        negatives=empty(4096, width),
        own_negatives=empty(n, 4, width),
        positives=empty(n, 2, of=torch.int64),
        negative_ids=empty(1, 4096, of=torch.int64),
        negative_bias=empty(4096, of=torch.float32),
        own_bias=empty(n, 4, of=torch.float32),
        guide_query=empty(n, 384, of=torch.float32),
        guide_key=empty(n, 384, of=torch.float32),
        guide_negatives=empty(4096, 384, of=torch.float32),
        guide_threshold=empty(n, of=torch.float32),
    )
    yield "everything", many._replace(group=1, group_log_weight=0.5), whole


def compiled(launch: Launch, architecture: str) -> dict[str, Any]:
    """Compiles one launch and reads what it needs."""
    types, constants, aligned = launch.signature()
    source = ASTSource(launch.kernel, types, constants, aligned)
    result = triton.compile(source, target=TARGETS[architecture], options=launch.options)
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
    if launch.name in gpu_plan.OTHER_OPERATIONS:
        exact = _itemsize(launch) == 4 and plan.precision == "ieee"
        if not facts["matrix"] and not exact:
            found.append("no tensor-core instruction")
        if launch.arguments["BULK"] and not facts["bulk"]:
            found.append("no bulk copy")
    return found


def _itemsize(launch: Launch) -> int:
    x = launch.arguments["x"]
    return int((x if isinstance(x, torch.Tensor) else x.base).element_size())


def report(architecture: str, dtype: str, precision: str, quick: bool) -> list[dict[str, Any]]:
    """One entry a problem: its kernels, their resources, the model's times."""
    entries = []
    seen: dict[str, dict[str, Any]] = {}
    for title, problem, operands in problems(getattr(torch, dtype), precision, quick):
        plan = gpu_plan.record(problem, operands, architecture)
        kernels: dict[str, dict[str, Any]] = {}
        total = 0.0
        for step in plan.steps:
            if not isinstance(step, Launch):
                spent = gpu_plan.seconds(plan, step)
                entry = kernels.setdefault("library products", {"kernel": "library products"})
            else:
                key = step.key()
                if key not in seen:
                    facts = compiled(step, architecture)
                    seen[key] = facts | {"faults": faults(step, facts, plan)}
                spent = gpu_plan.seconds(plan, step, seen[key])
                entry = kernels.setdefault(
                    key, {"kernel": step.name, **_described(step, plan, seen[key])}
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
        flops = gpu_plan.useful_flops(problem, operands)
        bound = flops / gpu_plan.rate(plan.architecture, operands.query.element_size(), precision)
        entries.append(
            {
                "architecture": architecture,
                "dtype": dtype,
                "precision": precision,
                "problem": title,
                "shape": [*operands.query.shape],
                "predicted_seconds": total,
                "roofline_seconds": bound,
                "predicted_tflops": flops / total / 1e12,
                "kernels": list(kernels.values()),
            }
        )
    return entries


def _described(launch: Launch, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    told = {k: facts[k] for k in ("registers", "shared", "spills", "matrix", "bulk", "faults")}
    warps = launch.options.get("num_warps", 4)
    told["blocks per multiprocessor"] = gpu_plan.resident(
        plan.architecture, facts["registers"], facts["shared"], warps
    )
    if launch.name in gpu_plan.OTHER_OPERATIONS:
        a = launch.arguments
        told["tile"] = [
            a["BLOCK_M"],
            a["BLOCK_N"],
            a["BLOCK_K"],
            warps,
            launch.options["num_stages"],
        ]
        told["bounded"] = a["BOUNDED"]
    return told


def render(entries: list[dict[str, Any]]) -> str:
    """The report as text."""
    lines = []
    for entry in entries:
        lines.append(
            f"\n{entry['architecture']}  {entry['dtype']} {entry['precision']}  "
            f"{entry['problem']}, "
            f"{entry['shape'][0]} x {entry['shape'][1]}: {entry['predicted_seconds'] * 1e3:.1f} ms "
            f"predicted, {entry['roofline_seconds'] * 1e3:.1f} ms at the roofline, "
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
    kinds = KINDS[:1] if args.quick else KINDS
    jobs = [
        (arch, dtype, precision, args.quick)
        for arch in args.arch or TARGETS
        for dtype, precision in kinds
    ]
    entries: list[dict[str, Any]] = []
    with ProcessPoolExecutor() as pool:
        for found in pool.map(report, *zip(*jobs, strict=True)):
            entries += found
            print(render(found), flush=True)
    if args.output:
        write_json(args.output, {"versions": _versions(), "plans": entries})
    wrong = sum(len(k.get("faults", [])) for entry in entries for k in entry["kernels"])
    print(f"\n{len(entries)} plans, {wrong} faults")
    return 1 if wrong else 0


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "triton": triton.__version__}


if __name__ == "__main__":
    sys.exit(main())
