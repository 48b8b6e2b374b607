"""Finds the library of CUDA kernels, or says why it cannot be used.

The kernels come behind plain C functions in a library of their own, which links neither torch nor
Python: it depends on the CUDA version of the torch that runs it, and on nothing else of it.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..extension import REBUILD

LIBRARY_VARIABLE = "CONTRASTIVE_OPS_CUDA_LIBRARY"
"""Names another build of csrc/cuda; the tests' runs on the CPU."""

_PACKAGE = Path(__file__).parents[2]
_FIELDS = """
    dtype normalize l2 dim slices x x_stride rows padded_rows y y_stride count first k
    exclude_begin exclude row_label column_label limit
    x_slices x_factor x_norm x_residual x_scale cap
    chunk_begin chunk y_slices y_factor y_scale y_bias y_norm y_residual
    maxima lost threshold list capacity list_size dense lost_total above
    pairs pair_row pair_group pair_order pair_scores row_begin scores indices
""".split()  # noqa: SIM905
_KERNELS = ("prepare_queries", "prepare_chunk", "scan", "fold", "finish", "score", "merge")


class Arguments(ctypes.Structure):
    """`Selection` of csrc/cuda/problem.h: numbers and addresses of 8 bytes each."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]

    def put(self, **values: Tensor | int | None) -> None:
        """Sets fields; a tensor by its address, None as null. Keeps tensors alive."""
        if not hasattr(self, "_kept"):
            self._kept: dict[str, Tensor] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                self._kept[name] = value
                value = value.data_ptr()
            setattr(self, name, value or 0)

    def tensor(self, name: str) -> Tensor:
        """The tensor that a field was set to."""
        return self._kept[name]


class Library:
    """The kernels; each call starts one on the current stream of its tensors' device."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.co_struct_bytes.restype = ctypes.c_int64
        if self._library.co_struct_bytes() != ctypes.sizeof(Arguments):
            raise OSError(f"{path} is of another version of contrastive-ops")
        self._library.co_describe_error.restype = ctypes.c_char_p
        self.on_gpu = bool(self._library.co_on_gpu())
        for name in _KERNELS:
            getattr(self._library, f"co_{name}").argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def run(self, kernel: str, arguments: Arguments, device: torch.device) -> None:
        """Starts a kernel. Raises ``RuntimeError`` with CUDA's words if it cannot be started."""
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        function: Any = getattr(self._library, f"co_{kernel}")
        status = function(ctypes.byref(arguments), stream)
        if status != 0:
            text = self._library.co_describe_error(status).decode()
            raise RuntimeError(f"contrastive-ops: CUDA kernel {kernel!r} did not start: {text}")


def load() -> tuple[Library | None, str]:
    """The library and ``"ok"``, or None and the reason."""
    return _load(os.environ.get(LIBRARY_VARIABLE) or None)


@functools.cache
def _load(named: str | None) -> tuple[Library | None, str]:
    path = named or str(_PACKAGE / "_cuda.so")
    if named is None:
        reason = why_not_built()
        if reason is not None:
            return None, reason
    try:
        library = Library(path)
    except OSError as error:
        return None, f"cannot be loaded ({error}); to rebuild it: {REBUILD}"
    if library.on_gpu and not (torch.version.cuda and torch.cuda.is_available()):
        return None, "no NVIDIA GPU that torch can use"
    return library, "ok"


def why_not_built() -> str | None:
    """None where the package has the library and it suits this torch; else what to do about it."""
    record = _PACKAGE / "_build.json"
    build = json.loads(record.read_text()) if record.exists() else {}
    cuda = build.get("cuda") or {}
    if not cuda.get("built"):
        return f"not built ({cuda.get('reason', 'no record')}); to add it: {REBUILD}"
    running = torch.version.cuda or "no CUDA"
    if _major(cuda.get("cuda")) != _major(running):
        return f"built for CUDA {cuda.get('cuda')}, torch has {running}; run: {REBUILD}"
    return None


def _major(version: str | None) -> str:
    return (version or "").split(".")[0]
