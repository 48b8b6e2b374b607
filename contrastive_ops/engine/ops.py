"""The kernels as ``torch.library`` operators, which is how ``torch.compile`` sees them.

``contrastive_ops::softmax_ce`` is the differentiable operator; its autograd is the one that eager
calls use, over three raw operators with fake kernels. Eager calls go straight to the kernels: at a
batch of 64 the dispatcher's way through Python would be most of the time.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import torch
from torch import Tensor

from .autograd import differentiable
from .lowering import Kernels
from .problem import Gradients, Operands, SimilarityProblem, Wanted, Weight

_STATIC = get_type_hints(SimilarityProblem)
_SCHEMA = {tuple[int, ...]: "int[]", tuple[float, ...]: "float[]"}
_PROBLEM = ", ".join(
    ["str backend"]
    + [
        f"Tensor{'?' if name in Operands._field_defaults else ''} {name}"
        for name in Operands._fields
    ]
    + [f"{_SCHEMA.get(kind, kind.__name__)} {name}" for name, kind in _STATIC.items()]
)
_WEIGHT = "Tensor? weight, float weight_all"
_COUNT = 1 + len(Operands._fields) + len(_STATIC)

_library = torch.library.Library("contrastive_ops", "DEF")
_library.define(f"softmax_ce({_PROBLEM}, {_WEIGHT}, bool reduce) -> Tensor")
_library.define(f"softmax_ce_forward({_PROBLEM}) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"softmax_ce_backward({_PROBLEM}, Tensor row_stats, Tensor column_stats, {_WEIGHT}, "
    "bool[] wanted) -> Tensor[]"
)
_library.define(f"softmax_ce_total({_PROBLEM}, {_WEIGHT}, bool[] wanted) -> Tensor[]")


def softmax_ce(
    backend: str, problem: SimilarityProblem, operands: Operands, weight: Weight | None
) -> Tensor:
    """:func:`.softmax_ce.softmax_ce` through the dispatcher."""
    return torch.ops.contrastive_ops.softmax_ce(
        *_flat(backend, problem, operands), *_flat_weight(weight), weight is not None
    )


class DispatchedKernels:
    """:class:`.lowering.Kernels` behind the raw operators."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.takes_half = Kernels(backend).takes_half

    def forward(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[Tensor, Tensor, Tensor]:
        args = _flat(self.backend, problem, operands)
        losses, row, column = torch.ops.contrastive_ops.softmax_ce_forward(*args)
        return losses, row, column

    def backward(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        row_stats: Tensor,
        column_stats: Tensor,
        weight: Weight,
        wanted: Wanted,
    ) -> Gradients:
        args = _flat(self.backend, problem, operands)
        grads = torch.ops.contrastive_ops.softmax_ce_backward(
            *args, row_stats, column_stats, *_flat_weight(weight), wanted
        )
        return _at_wanted(grads, wanted)

    def total(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]:
        args = _flat(self.backend, problem, operands)
        loss, *grads = torch.ops.contrastive_ops.softmax_ce_total(
            *args, *_flat_weight(weight), wanted
        )
        return loss, _at_wanted(grads, wanted)


def _flat(backend: str, problem: SimilarityProblem, operands: Operands) -> list[Any]:
    return [backend, *operands, *problem]


def _problem(args: tuple[Any, ...]) -> tuple[str, SimilarityProblem, Operands, tuple[Any, ...]]:
    backend, rest = args[0], args[1:_COUNT]
    operands = Operands(*rest[: len(Operands._fields)])
    static = (tuple(x) if isinstance(x, list) else x for x in rest[len(operands) :])
    return backend, SimilarityProblem._make(static), operands, args[_COUNT:]


def _flat_weight(weight: Weight | None) -> tuple[Tensor | None, float]:
    if weight is None:
        return None, 1.0
    return (weight, 1.0) if isinstance(weight, Tensor) else (None, weight)


def _at_wanted(grads: list[Tensor], wanted: Wanted) -> Gradients:
    rest = iter(grads)
    return Gradients(*[next(rest) if want else None for want in wanted])


def _packed(grads: Gradients) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _differentiable(*args: Any) -> Tensor:
    backend, problem, operands, (weight, weight_all, reduce) = _problem(args)
    known = (weight_all if weight is None else weight) if reduce else None
    return differentiable(DispatchedKernels(backend), problem, operands, known)


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, problem, operands, _ = _problem(args)
    return Kernels(backend).forward(problem, operands)


def _backward(*args: Any) -> list[Tensor]:
    backend, problem, operands, rest = _problem(args)
    row, column, weight, weight_all, wanted = rest
    known = weight_all if weight is None else weight
    return _packed(Kernels(backend).backward(problem, operands, row, column, known, tuple(wanted)))


def _total(*args: Any) -> list[Tensor]:
    backend, problem, operands, (weight, weight_all, wanted) = _problem(args)
    known = weight_all if weight is None else weight
    loss, grads = Kernels(backend).total(problem, operands, known, tuple(wanted))
    return [loss, *_packed(grads)]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, problem, o, _ = _problem(args)
    shape: tuple[int, ...] = (o.query.shape[0],)
    if problem.prefixes and not problem.prefix_weights:
        shape = (len(problem.prefixes), *shape)
    losses = o.query.new_empty(shape, dtype=o.accumulation_dtype)
    row, column = Kernels(backend).stats_shapes(problem, o)
    wide = torch.float64
    return losses, losses.new_empty(row, dtype=wide), losses.new_empty(column, dtype=wide)


def _fake_backward(*args: Any) -> list[Tensor]:
    _, _, operands, rest = _problem(args)
    return _fake_gradients(operands, rest[-1])


def _fake_total(*args: Any) -> list[Tensor]:
    _, _, operands, rest = _problem(args)
    loss = operands.query.new_empty((), dtype=operands.accumulation_dtype)
    # Backends that do not take float16 never see it here; the others return float32.
    wide = torch.float32 if operands.query.dtype == torch.float16 else None
    return [loss, *_fake_gradients(operands, rest[-1], wide)]


def _fake_gradients(
    operands: Operands, wanted: list[bool], dtype: torch.dtype | None = None
) -> list[Tensor]:
    return [
        t.new_empty(t.shape, dtype=dtype if t.dim() else t.dtype)
        for t, want in zip(operands, wanted, strict=False)
        if want and t is not None
    ]


_library.impl("softmax_ce", _differentiable, "CompositeImplicitAutograd")
for _name, _kernel, _fake in (
    ("softmax_ce_forward", _forward, _fake_forward),
    ("softmax_ce_backward", _backward, _fake_backward),
    ("softmax_ce_total", _total, _fake_total),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"contrastive_ops::{_name}", _fake, lib=_library)
