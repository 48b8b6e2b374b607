"""Which backends there are, whether they work here, and which one serves a problem."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Protocol, cast

import torch
from torch import Tensor

from . import extension
from .cuda import library
from .problem import Gradients, Operands, SimilarityProblem, Wanted

ENVIRONMENT_VARIABLE = "CONTRASTIVE_OPS_BACKEND"
NAMES = ("reference", "torch", "cpu", "triton", "cuda")
_CPU = torch.device("cpu")


class Backend(Protocol):
    """What a backend module offers. L is the (N,) vector of row losses.

    A ``summary`` (see `.summary`) is filled in the same scan.
    """

    TAKES_HALF: bool
    """Whether `total` takes float16 operands as they are and returns float32 gradients for them;
    else they come as float32."""

    def serves(self, problem: SimilarityProblem, operands: Operands) -> bool:
        """Whether the problem is served as it stands; else it comes in parts (see `lowering`)."""

    def forward(
        self, problem: SimilarityProblem, operands: Operands, summary: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L, and the float64 row and column statistics that `backward` wants back."""

    def stats_shapes(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of those statistics."""

    def backward(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        row_stats: Tensor,
        column_stats: Tensor,
        weight: Tensor | float,
        wanted: Wanted,
    ) -> Gradients:
        """Gradients of sum_i weight_i L_i."""

    def total(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        weight: Tensor | float,
        wanted: Wanted,
        summary: Tensor | None = None,
    ) -> tuple[Tensor, Gradients]:
        """sum_i weight_i L_i with its gradients, in one go."""


def backends() -> dict[str, str]:
    """Every backend by name: ``"ok"``, or why it cannot be used here and what would change that."""
    return {
        "reference": "ok",
        "torch": "ok",
        "cpu": extension.load()[1],
        "triton": _triton_status(),
        "cuda": library.load()[1],
    }


@torch.compiler.assume_constant_result
def choose(name: str | None, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend for tensors on ``device``: by name, by environment variable, or the fastest.

    `triton` has no float64 products: `torch` stands in for it there. `cuda` has selection alone:
    the fastest of the others stands in for it.

    Raises ``ValueError`` when a backend that was asked for does not exist or cannot run here.
    """
    name = _asked_for(name, device)
    if name is None or name == "cuda":
        return _fastest(device, dtype)
    return "torch" if name == "triton" and dtype == torch.float64 else name


LARGEST_SELECTION = 2048
"""The k up to which `cuda` selects."""


def choose_selection(name: str | None, device: torch.device, dtype: torch.dtype, k: int) -> str:
    """The same for :func:`.select.row_select`, which `cuda` has, up to 2048 a row.

    By default it is taken on Ampere to Hopper, whose matrix instructions it has.
    """
    asked = _asked_for(name, device)
    if k > LARGEST_SELECTION or asked not in (None, "cuda"):
        return choose(name, device, dtype)
    if asked == "cuda":
        return asked
    suits = device.type == "cuda" and library.load()[0] is not None
    if suits and torch.cuda.get_device_capability(device)[0] in (8, 9):
        return "cuda"
    return choose(None, device, dtype)


def _asked_for(name: str | None, device: torch.device) -> str | None:
    """The backend that the caller or the environment names, which can run here; None for none."""
    origin = "backend"
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or None
        origin = ENVIRONMENT_VARIABLE
    if name is None:
        return None
    if name not in NAMES:
        raise ValueError(f"{origin}: got {name!r}, expected one of {', '.join(NAMES)}")
    status = backends()[name]
    if status != "ok":
        raise ValueError(f"{origin}: {name!r} cannot be used here: {status}")
    if name == "cpu" and device.type != "cpu":
        raise ValueError(f"{origin}: 'cpu' needs tensors on the CPU, got tensors on {device}")
    if name == "triton" and (device.type == "cpu") != interpreting():
        expected = (
            "on the CPU, as TRITON_INTERPRET is set"
            if interpreting()
            else ("on a GPU, or TRITON_INTERPRET=1 in the environment before Triton is imported")
        )
        raise ValueError(f"{origin}: 'triton' got tensors on {device}, expected them {expected}")
    if name == "cuda":
        kernels, _ = library.load()
        expected = "on an NVIDIA GPU" if kernels is None or kernels.on_gpu else "on the CPU"
        if (device.type == "cuda") != (expected == "on an NVIDIA GPU"):
            raise ValueError(f"{origin}: 'cuda' got tensors on {device}, expected them {expected}")
    return name


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    if device == _CPU:
        return "torch" if extension.load()[0] is None else "cpu"
    if (
        dtype != torch.float64
        and device.type == "cuda"
        and not interpreting()
        and _triton_status() == "ok"
    ):
        return "triton"
    return "torch"


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_status() -> str:
    if not _has_triton():
        return "the package triton is missing; `pip install triton` where it has wheels"
    if interpreting() or torch.cuda.is_available():
        return "ok"
    return "no GPU that torch can use; TRITON_INTERPRET=1 runs it on CPU tensors, for tests"


def module(name: str) -> Backend:
    """The kernels of a backend. `reference` has none: it is plain autograd."""
    if name == "triton":
        from . import gpu

        return cast(Backend, gpu)
    if name == "cpu":
        from . import cpu

        return cast(Backend, cpu)
    from . import chunked

    return cast(Backend, chunked)
