"""What a kernel family tells the GPU tools: steps to plan offline, cases to measure on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., Tensor]
"""Of a case's leaves, 0-dim."""

Check = tuple[str, Callable[[], None]]


@dataclass(frozen=True)
class Planned:
    """A loss with all its gradients on tensors of the device "meta", for `gpu_plan.record`."""

    title: str
    shape: list[int]
    useful_flops: float
    step: Callable[[], object]
    quick: bool = False
    """Whether `make gpu-offline ARGS=--quick`, and so a test, compiles it."""


@dataclass(frozen=True)
class Case:
    """One measurement: variants of a loss take turns on the same leaves."""

    title: str
    settings: dict[str, Any]
    """n, width, dtype, ...: what the results file says about it."""
    useful_flops: float
    """Of loss and gradients by the bound that the family is measured by."""
    leaves: Callable[[str], list[Tensor]]
    """On the device of that name, with gradient."""
    variants: Callable[[], dict[str, Loss]]
    """Name to loss, of what is installed and fits memory. A name that starts with "ours" is ours.
    """
    exact: Loss | None = None
    """The dense formula, for errors against float64."""
    rounds: int = 12
    by_wall_clock: bool = False
    """Small ones: what the caller waits for, launches included."""


def no_checks(device: str) -> Iterator[Check]:
    return iter(())


@dataclass(frozen=True)
class Family:
    """One family of kernels."""

    name: str
    plans: Callable[[torch.dtype, str], Iterator[Planned]]
    """Problems, in a dtype and a precision, that between them launch every kernel in every role."""
    cases: Callable[[int], Iterator[Case]]
    """The most telling first, batches divided by a number (1: as they are measured)."""
    share: float
    """Of the benchmark's time; what a family does not use goes to those after it."""
    checks: Callable[[str], Iterator[Check]] = field(default=no_checks)
    """What only a GPU can check, beyond tests/triton."""


def empty(*shape: int, of: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def generator(device: str, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
