"""Reductions over logits that never exist as a matrix; losses are composed of them.

The fused softmax cross-entropy (:func:`.softmax_ce.softmax_ce`) is ``row_lse`` minus ``score_sum``
at the positives, with gradients in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Operands, SimilarityProblem, scale_of
from .similarity import at_index, full_precision, prepared
from .softmax_ce import softmax_ce


def row_lse(problem: SimilarityProblem, operands: Operands, backend: str | None = None) -> Tensor:
    """(N,) log sum_j exp l_ij over all candidates that are not left out; -inf where none is.

    Differentiable in the first six operands. ``operands.positives`` is not read: nothing is a
    positive, and thresholds that refer to one do not apply.
    """
    n = operands.query.shape[0]
    none = torch.empty(n, 0, dtype=torch.int64, device=operands.query.device)
    return softmax_ce(problem, operands._replace(positives=none), None, backend)


def row_lses(problem: SimilarityProblem, operands: Operands, backend: str | None = None) -> Tensor:
    """(prefixes, N) :func:`row_lse` of each prefix, the shortest first; (1, N) of whole rows.

    What losses that are not linear in log-sum-exps have from one pass over all prefixes.
    """
    if not problem.prefixes:
        return row_lse(problem, operands, backend).unsqueeze(0)
    return row_lse(problem._replace(prefix_weights=()), operands, backend)


def score_sum(
    problem: SimilarityProblem,
    operands: Operands,
    index: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """(N,) sum_p t_ip l_ip over the keys at ``index``: O(N P D), no product of all pairs.

    Args:
        index: (N, P) int64 indices into ``operands.key``, -1 pads; None: key i for query i.
        target: (N, P) weights t, differentiable; None: 1 each.

    Differentiable in query, key, temperature and target.
    """
    dtype = operands.accumulation_dtype
    if index is None:
        index = torch.arange(operands.query.shape[0], device=operands.query.device).unsqueeze(1)
    with full_precision(operands.query.device):
        query = prepared(operands.query, problem, dtype)
        key = prepared(operands.key, problem, dtype)
        logits = at_index(query, key, index) * scale_of(problem, operands)
        logits = torch.where(index >= 0, logits, 0.0)
        return (logits if target is None else logits * target).sum(1)
