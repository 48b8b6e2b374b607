"""Softmax cross-entropy over a similarity problem, as autograd knows it.

With known row weights (mean, sum) the gradients come with the loss, while each stripe of logits is
at hand; without (none) the backward recomputes the logits once their weights are known. Second
derivatives go through the dense reference, up to a stated size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import reference
from .problem import DIFFERENTIABLE, NOTHING, Gradients, Operands, SimilarityProblem, Wanted, Weight
from .tracing import is_traced


class AnyKernels(Protocol):
    """`lowering.Kernels`, or the same behind the dispatcher (`ops.DispatchedKernels`)."""

    takes_half: bool

    def forward(
        self, problem: SimilarityProblem, operands: Operands
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def backward(
        self,
        problem: SimilarityProblem,
        operands: Operands,
        row_stats: Tensor,
        column_stats: Tensor,
        weight: Weight,
        wanted: Wanted,
    ) -> Gradients: ...

    def total(
        self, problem: SimilarityProblem, operands: Operands, weight: Weight, wanted: Wanted
    ) -> tuple[Tensor, Gradients]: ...


def differentiable(
    kernels: AnyKernels, problem: SimilarityProblem, operands: Operands, weight: Weight | None
) -> Tensor:
    """Row losses (N,) where ``weight`` is None, else sum_i weight_i L_i, on given kernels."""
    wanted = _wanted(operands)
    if weight is None:
        if not any(wanted):
            return kernels.forward(problem, operands)[0]
        return _Losses.apply(kernels, problem, wanted, *operands)[0]
    if not any(wanted):
        return kernels.total(problem, operands, weight, wanted)[0]
    return _Total.apply(kernels, problem, wanted, weight, *operands)[0]


def _wanted(operands: Operands) -> Wanted:
    if not torch.is_grad_enabled():
        return NOTHING
    negatives, own, temperature = operands.negatives, operands.own_negatives, operands.temperature
    bias = operands.bias
    return (
        operands.query.requires_grad,
        operands.key.requires_grad,
        negatives is not None and negatives.requires_grad,
        own is not None and own.requires_grad,
        temperature is not None and temperature.requires_grad,
        bias is not None and bias.requires_grad,
    )


_OPERANDS = len(Operands._fields)


class _Function(torch.autograd.Function):
    """`Function.apply` binds its arguments to a signature anew at every call (30 us) wherever there
    is a `setup_context`; only functorch's transforms need that."""

    @classmethod
    def apply(cls, *args):  # type: ignore[no-untyped-def]
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class _Total(_Function):
    """sum_i weight_i L_i; its gradients are computed with it and wait for the backward.

    The first backward hands out the very tensors that waited, without a copy; they are the
    caller's then. Another one (``retain_graph=True``) computes them again.
    """

    @staticmethod
    def forward(kernels, problem, wanted, weight, *operands):  # type: ignore[no-untyped-def]
        loss, grads = kernels.total(problem, _widened(kernels, operands), weight, wanted)
        return loss, *[grad for grad in grads if grad is not None]

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.kernels, ctx.problem, ctx.wanted, weight, *operands = inputs
        ctx.weight = None if isinstance(weight, Tensor) else weight
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        saved = (*operands, weight if ctx.weight is None else None)
        if torch._C._are_functorch_transforms_active():  # tensors of its own may only be saved
            ctx.waiting = None
            ctx.save_for_backward(*saved, *output[1:])
        else:
            ctx.waiting = output[1:]
            ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx, grad_loss, *_):  # type: ignore[no-untyped-def]
        before = (None,) * 4
        if grad_loss is None:
            return *before, *(None,) * _OPERANDS
        saved = ctx.saved_tensors  # once: checkpointing unpacks each tensor a single time
        operands, weight, kept = saved[:_OPERANDS], saved[_OPERANDS], saved[_OPERANDS + 1 :]
        weight = ctx.weight if weight is None else weight
        waiting, ctx.waiting = ctx.waiting, None
        if not kept and waiting is None:
            again = ctx.kernels.total(
                ctx.problem, _widened(ctx.kernels, operands), weight, ctx.wanted
            )[1]
            waiting = [grad for grad in again if grad is not None]
        if torch.is_grad_enabled():
            grads = kept or waiting
            grads = _ScaledGradients.apply(
                ctx.problem, ctx.wanted, weight, grad_loss, len(grads), *grads, *operands
            )
        elif kept:
            grads = [(grad * grad_loss).to(grad.dtype) for grad in kept]
        elif grad_loss.is_cpu and not is_traced() and grad_loss.item() == 1:
            grads = waiting
        else:
            grads = [grad.mul_(grad_loss) for grad in waiting]
        return *before, *_at_wanted(grads, ctx.wanted)


class _Losses(_Function):
    """The (N,) losses; the backward recomputes the logits from the saved log-sum-exps."""

    @staticmethod
    def forward(kernels, problem, wanted, *operands):  # type: ignore[no-untyped-def]
        return kernels.forward(problem, Operands(*operands))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.kernels, ctx.problem, ctx.wanted, *operands = inputs
        stats = output[1:]
        ctx.mark_non_differentiable(*stats)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *stats)

    @staticmethod
    def backward(ctx, grad_losses, *_):  # type: ignore[no-untyped-def]
        before = (None,) * 3
        if grad_losses is None:
            return *before, *(None,) * _OPERANDS
        saved = ctx.saved_tensors
        operands, stats = saved[:_OPERANDS], saved[_OPERANDS:]
        grads = _LossGradients.apply(
            ctx.kernels, ctx.problem, ctx.wanted, grad_losses, *stats, *operands
        )
        return *before, *_at_wanted(grads, ctx.wanted)


def _widened(kernels: AnyKernels, operands: Sequence[Tensor | None]) -> Operands:
    """float16 operands as float32, and so their gradients, while the loss's own factor is unknown,
    unless the kernels see to that themselves.

    A mean's gradients would underflow in float16 before a gradient scaler's factor reaches them.
    """
    whole = Operands(*operands)  # type: ignore[arg-type]
    if whole.query.dtype != torch.float16 or kernels.takes_half:
        return whole
    wide = [None if t is None else t.to(torch.float32) for t in whole[:4]]
    return Operands(*wide, *whole[4:])  # type: ignore[arg-type, call-arg]


def _at_wanted(grads: Sequence[Tensor], wanted: Wanted) -> tuple[Tensor | None, ...]:
    """The wanted gradients at their operands' places."""
    rest = iter(grads)
    found = tuple(next(rest) if want else None for want in wanted)
    return found + (None,) * (_OPERANDS - DIFFERENTIABLE)


class _ScaledGradients(_Function):
    """grad_loss times the gradients of :class:`_Total`, differentiable once more."""

    @staticmethod
    def forward(problem, wanted, weight, grad_loss, count, *tensors):  # type: ignore[no-untyped-def]
        return tuple([(grad * grad_loss).to(grad.dtype) for grad in tensors[:count]])

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.problem, ctx.wanted, weight, grad_loss, ctx.count, *tensors = inputs
        ctx.weight = None if isinstance(weight, Tensor) else weight
        saved_weight = weight if ctx.weight is None else None
        ctx.save_for_backward(saved_weight, grad_loss, *tensors[ctx.count :])

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        weight, grad_loss, *operands = ctx.saved_tensors
        weight = ctx.weight if weight is None else weight
        seed, second = _second_order(ctx.problem, ctx.wanted, operands, grad_loss, weight, grads)
        return None, None, None, seed, None, *(None,) * ctx.count, *second


class _LossGradients(_Function):
    """The gradients of :class:`_Losses`, differentiable once more."""

    @staticmethod
    def forward(kernels, problem, wanted, grad_losses, row, column, *operands):  # type: ignore[no-untyped-def]
        grads = kernels.backward(
            problem, Operands(*operands), row, column, grad_losses.contiguous(), wanted
        )
        return tuple([grad for grad in grads if grad is not None])

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, ctx.problem, ctx.wanted, grad_losses, _, _, *operands = inputs
        ctx.save_for_backward(grad_losses, *operands)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        grad_losses, *operands = ctx.saved_tensors
        seed, second = _second_order(ctx.problem, ctx.wanted, operands, grad_losses, None, grads)
        return None, None, None, seed, None, None, *second


def _second_order(
    problem: SimilarityProblem,
    wanted: Wanted,
    operands: Sequence[Tensor | None],
    seed: Tensor,
    weight: Weight | None,
    grads: Sequence[Tensor],
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Gradients of <grads, seed * dL/d operands> in the seed and the operands, densely."""
    whole = Operands(*operands)  # type: ignore[arg-type]
    _check_dense_size(problem, whole)
    places = [i for i, want in enumerate(wanted) if want]

    def outputs(*inputs: Tensor) -> Tensor:
        filled = list(operands)
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        losses = reference.losses(problem, Operands(*filled))  # type: ignore[arg-type]
        return losses if weight is None else (losses * weight).sum()

    def first_order(seed: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        pull = torch.func.vjp(outputs, *inputs)[1]
        return pull(seed)

    inputs = [t for t, want in zip(operands, wanted, strict=False) if want and t is not None]
    pull = torch.func.vjp(first_order, seed, *inputs)[1]
    seed_grad, *second = pull(tuple(grads))
    return seed_grad, _at_wanted(second, wanted)


def _check_dense_size(problem: SimilarityProblem, o: Operands) -> None:
    width = o.query.shape[0] if problem.one_set else o.key.shape[0]
    width += 0 if o.negatives is None else o.negatives.shape[0]
    width += 0 if o.own_negatives is None else o.own_negatives.shape[1]
    if o.query.shape[0] * width > reference.MAX_ELEMENTS:
        raise ValueError(
            f"query: second derivatives build the dense {o.query.shape[0]} x {width} logits, "
            f"expected at most {reference.MAX_ELEMENTS} of them"
        )
