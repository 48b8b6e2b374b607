"""``contrastive-ops info``: versions, the CPU, and which backends work or why they do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

HELP = (
    "Shows the versions in use, the CPU's instruction sets, how the C++ kernels were built, and "
    "for each backend whether it works here or what is missing."
)

# In the order in which they came; the kernels choose the last that the CPU has.
_X86_SETS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "f16c": "F16C",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
}
_ARM_SETS = {
    "asimd": "NEON",
    "asimdhp": "NEON-FP16",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}
_PACKAGES = ("torch", "triton", "numpy", "sentence-transformers", "transformers")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    report = collect()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(render(report))
    return 0


def collect() -> dict[str, dict[str, str]]:
    """The report as nested dictionaries of text: versions, machine, kernels, backends."""
    from . import __version__, backends

    versions = {"contrastive-ops": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "machine": describe_machine(),
        "kernels": describe_build(),
        "backends": dict(backends()),
    }


def render(report: dict[str, dict[str, str]]) -> str:
    """The report as text, a section for each entry."""
    lines: list[str] = []
    for title, entries in report.items():
        width = max(len(key) for key in entries)
        lines += ["", title] if lines else [title]
        lines += [f"  {key:<{width}}  {value}" for key, value in entries.items()]
    return "\n".join(lines)


def describe_machine() -> dict[str, str]:
    """System, processor, threads that torch uses, and the GPUs it sees."""
    import torch

    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "instruction sets": ", ".join(instruction_sets()) or "unknown",
        "threads": str(torch.get_num_threads()),
    }
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(gpus)]
    machine["gpu"] = ", ".join(names) if names else "none that torch can use"
    return machine


def cpu_name() -> str:
    """The processor's name, as its maker writes it."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The instruction sets that matter to the kernels and that this CPU has."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            known = _X86_SETS if key.strip() == "flags" else _ARM_SETS
            return [name for flag, name in known.items() if flag in present]
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ["NEON"]
    return []


def describe_build() -> dict[str, str]:
    """What the record of the build says about the C++ kernels."""
    record = Path(__file__).parent / "_build.json"
    if not record.is_file():
        return {"built": "no"}
    build = json.loads(record.read_text())
    if not build.get("built"):
        return {"built": "no", "reason": str(build.get("reason") or "unknown")}
    facts = {"built": "yes", "for torch": build.get("torch"), "with": build.get("compiler")}
    cuda = build.get("cuda") or {}
    if cuda.get("built"):
        facts["cuda"] = f"CUDA {cuda['cuda']}, for GPUs {cuda['architectures']}"
    if build.get("sanitize"):
        facts["sanitizers"] = build["sanitize"]
    return {key: str(value) for key, value in facts.items()} | _kernel_choice()


def _kernel_choice() -> dict[str, str]:
    """Which of the kernels the next call runs."""
    from .engine import extension

    module, _ = extension.load()
    if module is None:
        return {}
    return {"runs": module.current_isa(), "among": ", ".join(module.available_isas())}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _sysctl(name: str) -> str:
    answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
