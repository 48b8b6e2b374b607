"""Compiles the CUDA kernels (csrc/cuda) with nvcc alone, and reports what became of each.

    python -m contrastive_ops.benchmarks.cuda_offline [--arch sm_90a]

Needs neither a GPU nor a torch with CUDA; registers, stack and spills are ptxas's own words,
instructions are counted where a cuobjdump is found (Triton brings one).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "csrc" / "cuda" / "selection.cu"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
COUNTED = {
    "matrix": re.compile(r"\b(HGMMA|HMMA)\."),
    "bulk": re.compile(r"\bUBLKCP\b"),
    "asynchronous": re.compile(r"\bLDGSTS\b"),
    "local": re.compile(r"\b(LDL|STL)\b"),
}
Kernel = dict[str, Any]


def find_nvcc() -> str | None:
    """CUDA_HOME's, the path's, or the one in the usual place."""
    home = os.environ.get("CUDA_HOME")
    named = [str(Path(home, "bin", "nvcc"))] if home else []
    for candidate in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate)
        if found:
            return found
    return None


def why_not() -> str | None:
    """None where the kernels can be compiled here."""
    if not SOURCE.is_file():
        return "csrc/cuda is not here: this needs a checkout"
    return None if find_nvcc() else "no nvcc was found"


def compiled(architecture: str) -> list[Kernel]:
    """Every kernel for one architecture: registers, stack, spills, instructions, faults.

    Raises ``RuntimeError`` with nvcc's words if it refuses.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc was found")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "selection.cubin")
        target = f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}"
        command = [nvcc, "-std=c++17", "-O3", target, "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(cubin)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"nvcc refused {architecture}: {done.stderr[-2000:]}")
        kernels = _resources(done.stderr)
        _count_instructions(cubin, kernels)
    for name, kernel in zip(_plain_names(list(kernels)), kernels.values(), strict=True):
        kernel |= {"architecture": architecture, "kernel": name}
        kernel["faults"] = _faults(kernel, done.stderr)
    return sorted(kernels.values(), key=lambda kernel: str(kernel["kernel"]))


def build_library(architecture: str, path: Path) -> None:
    """The kernels as a library for one architecture.

    Raises ``RuntimeError`` with nvcc's words if it refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}"
    command = [str(find_nvcc()), "-std=c++17", "-O3", target, "-cudart", "static", "-shared"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", str(SOURCE), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc refused {architecture}: {done.stderr[-2000:]}")


def _resources(told: str) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {}
    for part in told.split("Compiling entry function '")[1:]:
        symbol = part.split("'", 1)[0]
        stack, stores, loads = re.search(  # type: ignore[union-attr]
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        registers = re.search(r"Used (\d+) registers", part)
        assert registers is not None
        kernels[symbol] = {
            "registers": int(registers[1]),
            "stack": int(stack),
            "spills": int(stores) + int(loads),
        }
    return kernels


def _count_instructions(cubin: Path, kernels: dict[str, Kernel]) -> None:
    tool = _cuobjdump()
    if tool is None:
        return
    done = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    for part in done.stdout.split("Function : ")[1:]:
        symbol, text = part.split("\n", 1)
        for name, pattern in COUNTED.items():
            kernels[symbol.strip()][name] = len(pattern.findall(text))


def _cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.is_file() else None
    return found


def _plain_names(symbols: list[str]) -> list[str]:
    """ "Scan<Half>" of entry<Scan<Half>>(...), by the demangler that nvcc's compiler brings."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    names = done.stdout.replace("contrastive_ops::cuda::", "").splitlines()
    return [name.split("entry<", 1)[1].split(" >(")[0].split(">(")[0] for name in names]


def _faults(kernel: Kernel, told: str) -> list[str]:
    """What must not be."""
    faults = []
    if kernel["spills"] or kernel["stack"] or kernel.get("local"):
        faults.append(f"{kernel['spills']} bytes spilled, {kernel['stack']} of stack")
    here = kernel["architecture"] == "sm_90a" or not str(kernel["kernel"]).startswith("ScanHopper")
    if "matrix" in kernel and "Scan" in str(kernel["kernel"]) and here and not kernel["matrix"]:
        faults.append("no tensor-core instruction")
    if "wgmma" in told and "serialized" in told:
        faults.append("ptxas puts wgmma instructions one after another")
    if "setmaxnreg" in told and "ignored" in told:
        faults.append("ptxas ignores the warpgroups' registers")
    return faults


def render(kernels: list[Kernel]) -> str:
    """The report as text."""
    lines = []
    for kernel in kernels:
        line = f"  {kernel['architecture']:<7} {kernel['kernel']:<24} {kernel['registers']:>3}"
        line += f" registers, {kernel['spills']} spilled"
        if kernel.get("matrix"):
            line += f", {kernel['matrix']} matrix, {kernel['bulk']} bulk copies"
            line += f", {kernel['asynchronous']} asynchronous"
        lines.append(line + "".join(f"  FAULT: {fault}" for fault in kernel["faults"]))
    return "\n".join(lines)


def report_all(wanted: list[str] | None = None) -> list[Kernel]:
    """Compiles for all architectures, or those that start like the wanted ones, and prints it."""
    reason = why_not()
    if reason is not None:
        print(f"CUDA C++ kernels: not compiled: {reason}")
        return []
    found: list[Kernel] = []
    for architecture in ARCHITECTURES:
        if wanted and not any(architecture.startswith(name) for name in wanted):
            continue
        kernels = compiled(architecture)
        found += kernels
        print(render(kernels), flush=True)
    print(f"CUDA C++ kernels: {faults(found)} faults")
    return found


def faults(kernels: list[Kernel]) -> int:
    """How many."""
    return sum(len(kernel["faults"]) for kernel in kernels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: all")
    args = parser.parse_args(argv)
    return 1 if faults(report_all(args.arch)) else 0


if __name__ == "__main__":
    sys.exit(main())
