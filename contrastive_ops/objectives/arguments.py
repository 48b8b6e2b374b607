"""What the objectives have in common: checked arguments, one-set problems, reductions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import DEFAULT_WORKSPACE_BYTES, Operands, SimilarityProblem, Weight

Number = float | int
Reduction = Literal["none", "mean", "sum"]


def matrices(**named: Any) -> list[Tensor]:
    """Matrices of one width, dtype and device, each with a row at least.

    Under autocast they are promoted to the widest dtype among them.
    """
    first_name = next(iter(named))
    for name, value in named.items():
        check.matrix(name, value)
    first = named[first_name]
    if torch.is_autocast_enabled(first.device.type):
        for value in named.values():
            first = first.to(torch.promote_types(first.dtype, value.dtype))
        named = {name: value.to(first.dtype) for name, value in named.items()}
    for name, value in named.items():
        if 0 in value.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected at least 1 x 1")
        check.same(name, value, first_name, first)
    return list(named.values())


def pairs(**named: Any) -> list[Tensor]:
    """:func:`matrices` of one shape."""
    found = matrices(**named)
    names = list(named)
    for name, value in zip(names, found, strict=True):
        if value.shape != found[0].shape:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, expected {tuple(found[0].shape)} as "
                f"in {names[0]}"
            )
    return found


def wide(x: Tensor) -> Tensor:
    """In the accumulation dtype: float64 stays, all others become float32."""
    return x if x.dtype == torch.float64 else x.float()


def vectors(**named: Any) -> list[Tensor]:
    """1-D floating tensors of one length and device, in the accumulation dtype."""
    names = list(named)
    found = [check.matrix(name, value, (1,)) for name, value in named.items()]
    for name, value in zip(names, found, strict=True):
        if value.numel() == 0:
            raise ValueError(f"{name}: got no elements, expected at least 1")
        check.shaped(name, value, (tuple(found[0].shape),), found[0])
    return [wide(x) for x in found]


def labels(name: str, value: Any, like: Tensor) -> Tensor:
    """(N,) int64 for the N rows of ``like``."""
    return check.integers(name, value, ((like.shape[0],),), like).contiguous()


def describe(
    query: Tensor,
    key: Tensor,
    *,
    temperature: Number | Tensor,
    normalize: bool = True,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    workspace_bytes: int | None = None,
) -> tuple[SimilarityProblem, Operands]:
    """Each query against every key whose id is not its own; nothing is a positive yet.

    With ``ids`` alone both sides have them: one set against itself, say.
    """
    scale, tensor = divisor(temperature, query)
    problem = SimilarityProblem(
        normalize=check.flag("normalize", normalize),
        scale=scale,
        workspace_bytes=workspace(workspace_bytes),
    )
    key_ids = ids if key_ids is None else key_ids
    return problem, Operands(
        query,
        key,
        temperature=tensor,
        query_ids=None if ids is None else ids.view(1, -1),
        key_ids=None if key_ids is None else key_ids.view(1, -1),
    )


def divisor(
    temperature: Any, like: Tensor, name: str = "temperature"
) -> tuple[float, Tensor | None]:
    """1 / temperature for a number, or 1 and the checked 0-dim tensor."""
    if isinstance(temperature, Tensor):
        return 1.0, check.positive_scalar(name, temperature, like.device)
    return 1.0 / check.temperature(name, temperature), None


def inverse_temperature(
    temperature: Any, like: Tensor, name: str = "temperature"
) -> Tensor | float:
    """1 / temperature, with gradient if it is a tensor; in the accumulation dtype."""
    scale, tensor = divisor(temperature, like, name)
    return scale if tensor is None else tensor.to(wide(like[:0]).dtype).reciprocal()


def over_temperature(scores: Tensor, temperature: Any, name: str = "temperature") -> Tensor:
    """scores / T; an entry of -inf stays that, and has no part in the gradient of T."""
    there = scores != -torch.inf
    logits = scores.masked_fill(~there, 0.0) * inverse_temperature(temperature, scores, name)
    return logits.masked_fill(~there, -torch.inf)


def temperature_or(scale: Any, temperature: Number | Tensor, default: float) -> Number | Tensor:
    """The temperature, or 1 / scale where that is given instead."""
    if scale is None:
        return temperature
    if isinstance(temperature, Tensor) or temperature != default:
        raise ValueError(f"scale: got {scale!r} besides temperature={temperature!r}, expected one")
    if isinstance(scale, Tensor):
        # Widened first: 1 / scale rounded to 16 bits would be another temperature.
        return check.positive_scalar("scale", scale, scale.device).double().reciprocal()
    return 1 / check.positive_number("scale", scale)


def workspace(value: int | None) -> int:
    if value is None:
        return DEFAULT_WORKSPACE_BYTES
    return check.byte_count("workspace_bytes", value)


def row_ids(n: int, like: Tensor) -> Tensor:
    """0 .. n - 1 as ids: a row is left out of its own candidates."""
    return torch.arange(n, device=like.device)


def shares(reduction: str, n: int, counted: Tensor | None = None) -> Weight | None:
    """Each row's weight in a reduction over the ``counted`` rows ((N,) bool; all if None)."""
    check.choice("reduction", reduction, ("none", "mean", "sum"))
    if reduction == "none":
        return None
    if counted is None:
        return 1.0 / n if reduction == "mean" else 1.0
    weight = counted.to(torch.float64)
    return weight / weight.sum().clamp(min=1) if reduction == "mean" else weight


def reduced(losses: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
    """Row losses as the reduction wants them; rows that do not count are 0."""
    if counted is not None:
        losses = torch.where(counted, losses, 0.0)
    weight = shares(reduction, losses.shape[0], counted)
    return losses if weight is None else (losses * weight).sum().to(losses.dtype)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], whose gradient has the same bits on every run.

    On the CPU the backward of ``index_select`` adds in order, and is quicker than that of an
    index; on a GPU it is the one with atomics.
    """
    return x.index_select(0, index) if x.device.type == "cpu" else x[index]


def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """x with ``rows`` added in place at ``index``; the same bits on every run."""
    if x.device.type == "cpu":
        return x.index_add_(0, index, rows)
    return x.index_put_((index,), rows, accumulate=True)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64 too."""
    return torch.nn.functional.softplus(x, threshold=40.0)
