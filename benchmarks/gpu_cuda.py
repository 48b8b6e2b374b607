"""The CUDA C++ kernels for `make gpu`: built with this machine's nvcc for this machine's GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import torch

from contrastive_ops.engine.cuda import library

from . import cuda_offline


def build(root: Path) -> str:
    """Makes backend ``cuda`` use a fresh build of the checkout; says what became of it."""
    if os.environ.get(library.LIBRARY_VARIABLE):
        return f"as {library.LIBRARY_VARIABLE} has it: {library.load()[1]}"
    if not torch.version.cuda or not torch.cuda.is_available():
        return "not built: no NVIDIA GPU that torch can use"
    reason = cuda_offline.why_not()
    if reason is not None:
        packaged = library.load()[1]
        return "the package's" if packaged == "ok" else f"not built: {reason}"
    toolkit, driver = toolkit_major(), driver_major()
    if toolkit > driver:  # whose kernels no process here could start
        return f"not built: nvcc is of CUDA {toolkit}, the driver of {driver}"
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}" + ("a" if major == 9 else "")
    path = root / "build" / "cuda" / f"{architecture}.so"
    try:
        cuda_offline.build_library(architecture, path)
    except RuntimeError as error:
        return f"not built: {error}"
    os.environ[library.LIBRARY_VARIABLE] = str(path)
    status = library.load()[1]
    if status != "ok":
        del os.environ[library.LIBRARY_VARIABLE]
    return f"built for {architecture}: {status}"


def toolkit_major() -> int:
    """Of nvcc's CUDA version."""
    command = [str(cuda_offline.find_nvcc()), "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)", told)
    return int(found[1]) if found else 0


def driver_major() -> int:
    """Of the newest CUDA version that the driver serves; a newer minor one is no obstacle."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000
