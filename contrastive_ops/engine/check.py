"""Argument checks. Each failure is one ``ValueError``: the argument, what came, what was expected.

Values of tensors are only read where that costs no synchronisation: on the CPU, in eager mode.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from . import tracing

TEMPERATURES = (1e-30, 1e30)
"""Beyond them a float32 holds no quotient of a similarity by the temperature."""

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
    return value


def matrix(name: str, value: Any, dims: tuple[int, ...] = (2,)) -> Tensor:
    """A floating-point tensor with one of the given numbers of dimensions."""
    x = tensor(name, value)
    if x.dim() not in dims:
        expected = " or ".join(f"{d}-D" for d in dims)
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected a {expected} tensor")
    if x.dtype not in FLOATING:
        raise ValueError(f"{name}: got {x.dtype}, expected float16, bfloat16, float32 or float64")
    return x


def same(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Width, dtype and device agree."""
    if x.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name}: got width {x.shape[-1]}, expected {other.shape[-1]} as in {other_name}"
        )
    if x.dtype != other.dtype:
        raise ValueError(f"{name}: got {x.dtype}, expected {other.dtype} as in {other_name}")
    if x.device != other.device:
        raise ValueError(f"{name}: got {x.device}, expected {other.device} as in {other_name}")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    if type(value) is float and low <= value <= high and -math.inf < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: got {_shown(value)}, expected a number")
    value = float(value)
    if not (low <= value <= high and -math.inf < value < math.inf):
        bounded = low > -math.inf or high < math.inf
        expected = f"a number in [{low:g}, {high:g}]" if bounded else "a finite number"
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return value


def positive_number(name: str, value: Any) -> float:
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"{name}: got {value!r}, expected a positive finite number")
    return result


def temperature(name: str, value: Any) -> float:
    """A number in :data:`TEMPERATURES`."""
    result = positive_number(name, value)
    low, high = TEMPERATURES
    if not low <= result <= high:
        raise ValueError(f"{name}: got {value!r}, expected a number in [{low:g}, {high:g}]")
    return result


def positive_scalar(name: str, value: Tensor, device: torch.device) -> Tensor:
    """A 0-dim floating tensor; positive and finite where its value can be read for nothing."""
    if value.dim() != 0 or not value.is_floating_point():
        raise ValueError(
            f"{name}: got a tensor of shape {tuple(value.shape)} and {value.dtype}, "
            "expected a number or a 0-dim floating-point tensor"
        )
    if value.device != device:
        raise ValueError(f"{name}: got {value.device}, expected {device} as in query")
    if readable(value):
        plain = value.item()
        if not 0 < plain < math.inf:
            raise ValueError(f"{name}: got {plain!r}, expected a positive finite number")
    return value


def integers(name: str, value: Any, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """An integer tensor of one of some shapes, as int64, on the device of ``like``."""
    x = tensor(name, value)
    if x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        raise ValueError(f"{name}: got {x.dtype}, expected int64")
    shaped(name, x, shapes, like)
    return x.to(torch.int64)


def shaped(name: str, x: Tensor, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> None:
    if x.shape not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {expected}")
    if x.device != like.device:
        raise ValueError(f"{name}: got {x.device}, expected {like.device} as in query")


def choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        expected = " or ".join(repr(option) for option in options)
        raise ValueError(f"{name}: got {_shown(value)}, expected {expected}")


def flag(name: str, value: Any) -> bool:
    """True or False: the truth of anything else, "no" say, would be a guess."""
    if value is not True and value is not False:
        raise ValueError(f"{name}: got {_shown(value)}, expected True or False")
    return value


def byte_count(name: str, value: Any) -> int:
    """A positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {_shown(value)}, expected a positive number of bytes")
    return value


def readable(x: Tensor) -> bool:
    """Whether reading values costs nothing and cannot break a graph."""
    return x.is_cpu and not tracing.is_traced() and not tracing.needs_reference((x,))


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)
