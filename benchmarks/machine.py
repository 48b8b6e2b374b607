"""Where a measurement was made: machine, versions, commit, and the machine's arithmetic limit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

_SOURCES = Path(__file__).resolve().parent.parent
_CODE = ("contrastive_ops", "csrc", "kernels", "benchmarks/*.py", "setup.py")
_PACKAGES = ("torch", "numpy", "sentence-transformers", "transformers")


def describe() -> dict[str, Any]:
    """Machine, versions, commit and date, as JSON."""
    from contrastive_ops import __version__, backends
    from contrastive_ops.info import cpu_name, describe_build, instruction_sets

    versions = {"contrastive-ops": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "instruction_sets": instruction_sets(),
            "logical_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": total_memory(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": versions,
        "kernels": describe_build(),
        "backends": dict(backends()),
    }


def commit() -> str:
    """The commit of the sources, with "+changes" if the code differs from it; or "unknown"."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return head + ("+changes" if _git("status", "--porcelain", "--", *_CODE) else "")


def total_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that can be taken without swapping, as far as the system tells."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return total_memory() // 2


class Peak:
    """The machine's limit for a kind of arithmetic, sampled while the variants take turns."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.samples: list[float] = []
        from contrastive_ops.engine import extension

        module, _ = extension.load()
        self._measure = getattr(module, "measure_peak", None)

    def sample(self) -> None:
        """Measures once, for a tenth of a second; does nothing without the compiled library."""
        if self._measure is not None:
            rate = float(self._measure(self.kind, torch.get_num_threads(), 0.1))
            if rate > 0:
                self.samples.append(rate)

    def gflops(self) -> float | None:
        """Median of the samples in GF/s; None where the machine cannot do it or tell."""
        return statistics.median(self.samples) if self.samples else None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_SOURCES), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
