"""Losses that need a whole row of similarities, evaluated on a stripe of rows at a time.

A *row loss* is a function ``f(rows, shared, start, **options) -> (R,)``: ``rows`` are R rows of
some tensors, beginning at row ``start``; ``shared`` is what every row is compared with. It is
written in plain differentiable PyTorch as if R were all rows. One stripe's matrices exist at a
time, and where the rows' weights are known beforehand its gradient is finished while they do, so
that nothing is computed twice. Memory beyond inputs and gradients: ``workspace_bytes``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, check
from .problem import DEFAULT_WORKSPACE_BYTES, Weight
from .reference import MAX_ELEMENTS
from .similarity import full_precision

Tensors = tuple[Tensor | None, ...]

COPIES = 16
"""Stripe-sized tensors alive at once, with what autograd keeps of them."""
STRIPE_BYTES = 8 << 20
"""One copy of a stripe is no larger than this, so that it stays in cache between operations."""


class RowLoss(NamedTuple):
    """A row loss and the name by which a custom operator finds it."""

    name: str
    function: Callable[..., Any]


_known: dict[str, Callable[..., Any]] = {}


def row_loss(function: Callable[..., Any]) -> RowLoss:
    """Decorator of the functions that :func:`stripe_losses` evaluates."""
    name = f"{function.__module__}.{function.__qualname__}"
    _known[name] = function
    return RowLoss(name, function)


class Plan(NamedTuple):
    """What a custom operator can be told about a row loss: names and numbers."""

    function: str
    texts: list[str]  # name, value, name, value ... of the options that are strings
    number_names: list[str]
    numbers: list[float]
    row_tensors: int  # how many of the tensors are cut into stripes
    workspace_bytes: int
    counts: int  # how many things the function counts in each row
    width: int  # columns of the loss's matrices; 0: rows of the longest shared tensor


def stripe_losses(
    function: RowLoss,
    rows: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
    weight: Weight | None,
    *,
    backend: str | None = None,
    workspace_bytes: int | None = None,
    width: int = 0,
    **options: Any,
) -> Tensor:
    """:func:`counted_stripe_losses` of a function that counts nothing."""
    return counted_stripe_losses(
        function,
        rows,
        shared,
        weight,
        backend=backend,
        workspace_bytes=workspace_bytes,
        counts=0,
        width=width,
        **options,
    )[0]


def counted_stripe_losses(
    function: RowLoss,
    rows: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
    weight: Weight | None,
    *,
    backend: str | None = None,
    workspace_bytes: int | None = None,
    counts: int = 1,
    width: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The row losses (N,) where ``weight`` is None, else sum_i weight_i L_i (0-dim); and counts.

    Args:
        function: what :func:`row_loss` made of a function.
        rows: tensors with N rows each, or None; the first is a tensor.
        shared: tensors that every row sees, or None. The longest has as many rows as a row of the
            loss's matrices has columns.
        weight: (N,) or a number, not differentiated.
        backend: ``"reference"`` evaluates all rows at once, in float64.
        counts: C > 0 if the function returns ``(losses, counts)``, (R,) and (R, C); the counts come
            back as (N, C) float64, without gradient.
        width: columns of the loss's matrices, where that is not the longest shared tensor.
        options: strings and numbers, handed to the function; all numbers as floats.

    Differentiable in every floating tensor. With ``create_graph=True`` all rows are evaluated at
    once, up to 2**26 elements a matrix.
    """
    first = rows[0]
    assert first is not None
    tensors = (*rows, *shared)
    room = DEFAULT_WORKSPACE_BYTES
    if workspace_bytes is not None:
        room = check.byte_count("workspace_bytes", workspace_bytes)
    name = backends.choose(backend, first.device)
    if name == "reference":
        wide = [t.double() if _floating(t) else t for t in tensors]  # type: ignore[union-attr]
        losses = function.function(tuple(wide[: len(rows)]), tuple(wide[len(rows) :]), 0, **options)
        losses, found = losses if counts else (losses, first.new_empty(0))
        result = losses if weight is None else (losses * weight).sum()
        return result.to(_accumulated(first)), found
    texts = {k: v for k, v in options.items() if isinstance(v, str)}
    numbers = {k: float(v) for k, v in options.items() if not isinstance(v, str)}
    plan = Plan(
        function.name,
        [part for item in texts.items() for part in item],
        list(numbers),
        list(numbers.values()),
        len(rows),
        room,
        counts,
        width,
    )
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    run = _evaluate
    if torch.compiler.is_compiling():
        run = _dispatched
        tensors = _distinct(tensors)
    if weight is None:
        if not any(wanted):
            losses, found = run(plan, None, 1.0, wanted, tensors)
            return losses, found
        losses, found = _Losses.apply(run, plan, wanted, *tensors)
        return losses, found
    tensor_weight, number = (weight, 1.0) if isinstance(weight, Tensor) else (None, weight)
    factor = 1.0
    if run is _dispatched:  # a number such as 1 / N would make a graph of its own for each N
        number, factor = 1.0, number
    if tensor_weight is None:
        tensor_weight = torch.ones(first.shape[0], dtype=_accumulated(first), device=first.device)
    if any(wanted):
        loss, found, *_ = _Total.apply(run, plan, wanted, number, tensor_weight, *tensors)
    else:
        loss, found, *_ = run(plan, tensor_weight, number, wanted, tensors)
    return loss * factor, found


class _Total(torch.autograd.Function):
    """sum_i weight_i L_i; its gradients are computed with it and wait for the backward."""

    @staticmethod
    def forward(run, plan, wanted, number, weight, *tensors):  # type: ignore[no-untyped-def]
        return tuple(run(plan, weight, number, wanted, tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, ctx.plan, ctx.wanted, ctx.number, weight, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *tensors, *output[2:])

    @staticmethod
    def backward(ctx, grad_loss, *_):  # type: ignore[no-untyped-def]
        weight, *saved = ctx.saved_tensors
        count = len(ctx.wanted)
        tensors, grads = saved[:count], saved[count:]
        if grad_loss is None:
            return (None,) * (5 + count)
        if torch.is_grad_enabled():
            seed = grad_loss * weight * ctx.number
            grads = _dense_gradients(ctx.plan, tensors, ctx.wanted, seed)
        else:
            grads = [grad * grad_loss for grad in grads]
        return (None,) * 5 + _at_wanted(grads, ctx.wanted)


class _Losses(torch.autograd.Function):
    """The (N,) losses; the backward evaluates each stripe once more."""

    @staticmethod
    def forward(run, plan, wanted, *tensors):  # type: ignore[no-untyped-def]
        return tuple(run(plan, None, 1.0, (False,) * len(wanted), tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.run, ctx.plan, ctx.wanted, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_losses, _):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = _dense_gradients(ctx.plan, tensors, ctx.wanted, grad_losses)
        else:
            grads = ctx.run(ctx.plan, grad_losses.contiguous(), 1.0, ctx.wanted, tensors)[2:]
        return (None,) * 3 + _at_wanted(grads, ctx.wanted)


def _distinct(tensors: Tensors) -> Tensors:
    """The same tensors, second mentions as views: a compiled graph takes no tensor twice."""
    found: list[Tensor | None] = []
    for i, t in enumerate(tensors):
        again = t is not None and any(t is earlier for earlier in tensors[:i])
        found.append(t.view_as(t) if again else t)  # type: ignore[union-attr, arg-type]
    return tuple(found)


def _evaluate(
    plan: Plan,
    weight: Tensor | None,
    number: float,
    wanted: Sequence[bool],
    tensors: Sequence[Tensor | None],
) -> list[Tensor]:
    """The loss (row losses without ``weight``), counts, wanted gradients: stripe by stripe."""
    first = tensors[0]
    assert first is not None
    function, options = _known[plan.function], _options(plan)
    plain = [None if t is None else t.detach() for t in tensors]
    n = first.shape[0]
    # What outlives a stripe is there before the first: small results left between the stripes'
    # matrices would keep the heap from using that room again.
    counts = first.new_empty(n, plan.counts, dtype=torch.float64)
    row_losses = first.new_empty(n if weight is None else 0)

    def losses_of(rows: Tensors, shared: Tensors, start: int) -> Tensor:
        found = function(rows, shared, start, **options)
        if not plan.counts:
            return found
        counts[start : start + len(found[1])] = found[1].detach()
        return found[0]

    with full_precision(first.device):
        if weight is None:
            with torch.no_grad():
                for rows in _stripes(plan, plain):
                    row_losses[rows] = losses_of(*_cut(plan, plain, rows), rows.start)
            return [row_losses, counts]
        grads = [
            torch.zeros_like(t) if t is not None and w else None
            for t, w in zip(plain, wanted, strict=True)
        ]
        loss = torch.zeros((), dtype=torch.float64, device=first.device)
        for rows in _stripes(plan, plain):
            with torch.enable_grad():
                leaves = [
                    None
                    if t is None
                    else (t[rows] if i < plan.row_tensors else t).detach().requires_grad_(w)
                    for i, (t, w) in enumerate(zip(plain, wanted, strict=True))
                ]
                of_rows = tuple(leaves[: plan.row_tensors])
                losses = losses_of(of_rows, tuple(leaves[plan.row_tensors :]), rows.start)
                part = (losses * weight[rows]).sum() * number
            loss += part.detach()
            if not any(wanted) or not part.requires_grad:
                continue
            asked = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
            found = iter(torch.autograd.grad(part, asked, allow_unused=True))  # type: ignore[arg-type]
            for i, grad in enumerate(grads):
                new = next(found) if grad is not None else None
                if grad is None or new is None:
                    continue
                if i < plan.row_tensors:
                    grad[rows] = new
                else:
                    grad += new
    found_grads = [grad for grad in grads if grad is not None]
    return [loss.to(first.dtype), counts, *found_grads]


def _dense_gradients(
    plan: Plan, tensors: Sequence[Tensor | None], wanted: Sequence[bool], seed: Tensor
) -> list[Tensor]:
    """Gradients of sum_i seed_i L_i that can be differentiated again."""
    first = tensors[0]
    assert first is not None
    n, width = first.shape[0], _width(plan, tensors)
    if n * width > MAX_ELEMENTS:
        raise ValueError(
            f"second derivatives build dense {n} x {width} matrices, expected at most "
            f"{MAX_ELEMENTS} elements"
        )
    function, options = _known[plan.function], _options(plan)
    # Aliases: one tensor given twice, as rows and as shared, has a gradient in each of its roles.
    tensors = [None if t is None else t.view_as(t) for t in tensors]
    losses = function(*_cut(plan, tensors, slice(0, n)), 0, **options)
    if plan.counts:
        losses = losses[0]
    asked = [t for t, w in zip(tensors, wanted, strict=True) if w and t is not None]
    grads = torch.autograd.grad((losses * seed).sum(), asked, create_graph=True, allow_unused=True)
    return [
        torch.zeros_like(t) if grad is None else grad for t, grad in zip(asked, grads, strict=True)
    ]


def _stripes(plan: Plan, tensors: Sequence[Tensor | None]) -> Iterator[slice]:
    first = tensors[0]
    assert first is not None
    n = first.shape[0]
    row_bytes = first.element_size() * max(_width(plan, tensors), 1)
    step = min(plan.workspace_bytes // COPIES, STRIPE_BYTES) // row_bytes
    step = max(1, step)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _width(plan: Plan, tensors: Sequence[Tensor | None]) -> int:
    shared = tensors[plan.row_tensors :]
    if plan.width:
        return plan.width
    return max((t.shape[0] for t in shared if t is not None and t.dim()), default=1)


def _cut(plan: Plan, tensors: Sequence[Tensor | None], rows: slice) -> tuple[Tensors, Tensors]:
    of_rows = tuple(None if t is None else t[rows] for t in tensors[: plan.row_tensors])
    return of_rows, tuple(tensors[plan.row_tensors :])


def _accumulated(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _floating(x: Tensor | None) -> bool:
    return x is not None and x.is_floating_point()


def _at_wanted(grads: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    rest = iter(grads)
    return tuple(next(rest) if want else None for want in wanted)


def _options(plan: Plan) -> dict[str, Any]:
    texts = dict(zip(plan.texts[::2], plan.texts[1::2], strict=True))
    return texts | dict(zip(plan.number_names, plan.numbers, strict=True))


# As an operator, which is how torch.compile sees it.
_library = torch.library.Library("contrastive_ops", "FRAGMENT")
_library.define(
    "stripe_losses(str function, str[] texts, str[] number_names, float[] numbers, "
    "int row_tensors, int workspace_bytes, int counts, int width, Tensor? weight, float number, "
    "bool[] wanted, Tensor?[] tensors) -> Tensor[]"
)


def _dispatched(
    plan: Plan,
    weight: Tensor | None,
    number: float,
    wanted: Sequence[bool],
    tensors: Sequence[Tensor | None],
) -> list[Tensor]:
    return torch.ops.contrastive_ops.stripe_losses(
        *plan, weight, number, list(wanted), list(tensors)
    )


def _kernel(*args: Any) -> list[Tensor]:
    weight, number, wanted, tensors = args[len(Plan._fields) :]
    with _above_autograd():
        return _evaluate(Plan(*args[: len(Plan._fields)]), weight, number, wanted, tensors)


def _above_autograd() -> contextlib.AbstractContextManager[object]:
    """A compiled graph calls operators below autograd, which a stripe's gradient needs."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        "AutogradFunctionality",
        "AutogradOther",
        "AutogradNestedTensor",
        "ADInplaceOrView",
    ):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    guard: contextlib.AbstractContextManager[object]
    guard = torch._C._ForceDispatchKeyGuard(included, excluded)
    return guard


def _fake(*args: Any) -> list[Tensor]:
    plan = Plan(*args[: len(Plan._fields)])
    weight, _, wanted, tensors = args[len(Plan._fields) :]
    first = tensors[0]
    counts = first.new_empty(first.shape[0], plan.counts, dtype=torch.float64)
    if weight is None:
        return [first.new_empty(first.shape[0]), counts]
    grads = [torch.empty_like(t) for t, w in zip(tensors, wanted, strict=True) if w]
    return [first.new_empty(()), counts, *grads]


_library.impl("stripe_losses", _kernel, "CompositeExplicitAutograd")
torch.library.register_fake("contrastive_ops::stripe_losses", _fake, lib=_library)
