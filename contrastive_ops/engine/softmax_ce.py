"""Softmax cross-entropy over a similarity problem: the one entry that losses call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import backends, chunked, ops, reference, tracing
from .autograd import differentiable
from .lowering import Kernels
from .problem import DIFFERENTIABLE, Operands, SimilarityProblem, Weight, two_sets


def softmax_ce(
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight | None,
    backend: str | None = None,
    summary: Tensor | None = None,
) -> Tensor:
    """Row losses L (N,) where ``weight`` is None, else sum_i weight_i L_i (0-dim).

    ``weight`` is (N,) or a number and not differentiated. The result is float32, or float64 for
    float64 operands; it is differentiable in the first six operands. A ``summary``
    (:func:`.summary.empty_summary`) is filled by the same scan, query to key and of the longest
    prefix; by one of its own, a matrix product more, where operators are recorded or transformed
    and on the backend ``reference``.
    """
    name = backends.choose(backend, operands.query.device, operands.query.dtype)
    if torch.autograd.profiler._is_profiler_enabled:  # a range costs more than a small batch
        with torch.autograd.profiler.record_function(f"contrastive_ops::softmax_ce[{name}]"):
            return _on(name, problem, operands, weight, summary)
    return _on(name, problem, operands, weight, summary)


def _on(
    name: str,
    problem: SimilarityProblem,
    operands: Operands,
    weight: Weight | None,
    summary: Tensor | None,
) -> Tensor:
    if summary is not None:
        if _in_one_scan(name, operands):
            return differentiable(Kernels(name, summary), problem, operands, weight)
        _scan_apart(problem, operands, summary)
    if name == "reference" or tracing.needs_reference(operands[:DIFFERENTIABLE]):
        losses = reference.losses(problem, operands)
        return losses if weight is None else (losses * weight).sum()
    if tracing.is_traced():
        if weight is None or isinstance(weight, Tensor):
            return ops.softmax_ce(name, problem, operands, weight)
        # A number such as 1 / N would be a constant of the graph, and each N a graph of its own.
        return ops.softmax_ce(name, problem, operands, 1.0) * weight
    return differentiable(_kernels(name), problem, operands, weight)


def _in_one_scan(name: str, operands: Operands) -> bool:
    if name == "reference" or tracing.is_traced():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return not tracing.needs_reference(operands[:DIFFERENTIABLE])


def _scan_apart(problem: SimilarityProblem, operands: Operands, summary: Tensor) -> None:
    """Fills the summary in stripes of plain PyTorch, which compilers and transforms see through."""
    problem = problem._replace(symmetric=False, prefixes=(), prefix_weights=())
    if problem.one_set:
        problem, operands = two_sets(problem, operands)
    with torch.no_grad():
        chunked.forward(problem, operands, summary=summary)


_kernels = functools.cache(Kernels)
