"""Softmax cross-entropy over a similarity problem: the one entry that losses call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import backends, ops, reference, tracing
from .autograd import differentiable
from .lowering import Kernels
from .problem import DIFFERENTIABLE, Operands, SimilarityProblem, Weight


def softmax_ce(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight | None,
    backend: str | None = None,
) -> Tensor:
    """Row losses L (N,) where ``weight`` is None, else sum_i weight_i L_i (0-dim).

    ``weight`` is (N,) or a number and not differentiated. The result is float32, or float64 for
    float64 operands; it is differentiable in the first six operands.
    """
    name = backends.choose(backend, operands.query.device, operands.query.dtype)
    if torch.autograd.profiler._is_profiler_enabled:  # a range costs more than a small batch
        with torch.autograd.profiler.record_function(f"contrastive_ops::softmax_ce[{name}]"):
            return _on(name, problem, operands, weight)
    return _on(name, problem, operands, weight)


def _on(name: str, problem: SimilarityProblem, operands: Operands, weight: Weight | None) -> Tensor:
    if name == "reference" or tracing.needs_reference(operands[:DIFFERENTIABLE]):
        losses = reference.losses(problem, operands)
        return losses if weight is None else (losses * weight).sum()
    if tracing.is_traced():
        if weight is None or isinstance(weight, Tensor):
            return ops.softmax_ce(name, problem, operands, weight)
        # A number such as 1 / N would be a constant of the graph, and each N a graph of its own.
        return ops.softmax_ce(name, problem, operands, 1.0) * weight
    return differentiable(_kernels(name), problem, operands, weight)


_kernels = functools.cache(Kernels)
