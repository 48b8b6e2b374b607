"""InfoNCE whose negatives count more the harder they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, scale_of
from ..engine.reductions import row_lses, score_sum
from ..engine.reference import Logits, cross_entropy
from ..engine.similarity import prepared
from .arguments import (
    Number,
    Reduction,
    divisor,
    matrices,
    reduced,
    row_ids,
    wide,
    workspace,
)
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes


def hardness_weighted_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Number | Tensor = 0.05,
    hardness: Number = 1.0,
    hardness_of: Literal["all", "in_batch", "negatives"] = "all",
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""InfoNCE with a negative's logit raised by its own (undifferentiated) cosine.

    .. math:: L_i = -\log \frac{e^{s_{ii}/T}}
                     {e^{s_{ii}/T} + \sum_j e^{s_{ij}/T + \alpha\,\mathrm{sg}(s_{ij})}}

    Costs 4 matrix products; no logits are held.

    Args:
        query, key: (N, D); key i is the positive of query i.
        negatives: (K, D), further candidates of every query, or (N, H, D), of which H are each
            query's own hard negatives, and in-batch ones to the other queries.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        hardness: alpha >= 0, in logits per cosine.
        hardness_of: which negatives it weighs: all; the in-batch ones (the other queries' keys and
            own negatives); or the rest (a query's own negatives, or everybody's (K, D)).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).
        matryoshka_dims, matryoshka_weights, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs. Once differentiable: a second
        derivative is an error.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Lan et al. 2025, "LLaVE" (arXiv 2503.04812). With (N, H, D) negatives the three choices
    are ``hardness_mode`` ``"all_negatives"``, ``"in_batch_negatives"`` and ``"hard_negatives"`` of
    sentence-transformers' MultipleNegativesRankingLoss.
    """
    check.choice("hardness_of", hardness_of, ("all", "in_batch", "negatives"))
    alpha = check.number("hardness", hardness, 0.0)
    own_shape = None
    if negatives is None:
        query, key = matrices(query=query, key=key)
    else:
        check.matrix("negatives", negatives, (2, 3))
        if negatives.dim() == 3:
            own_shape = negatives.shape
            negatives = negatives.flatten(0, 1)
        query, key, negatives = matrices(query=query, key=key, negatives=negatives)
        if own_shape is not None and own_shape[0] != query.shape[0]:
            raise ValueError(
                f"negatives: got shape {tuple(own_shape)}, expected ({query.shape[0]}, H, "
                f"{query.shape[1]}) or (K, {query.shape[1]})"
            )
    if key.shape[0] != query.shape[0]:
        raise ValueError(f"key: got {key.shape[0]} rows, expected {query.shape[0]} as in query")
    scale, tensor = divisor(temperature, query)
    ids = row_ids(query.shape[0], query).view(1, -1)
    problem, operands = with_prefixes(
        SimilarityProblem(scale=scale, workspace_bytes=workspace(workspace_bytes)),
        Operands(query, key, negatives, temperature=tensor),
        matryoshka_dims,
        matryoshka_weights,
    )
    plain = operands._replace(negatives=None)
    blocks = [(operands.key, ids, hardness_of != "negatives")]
    if operands.negatives is not None and own_shape is not None:
        owners = ids.repeat_interleave(own_shape[1], 1)
        blocks.append((operands.negatives, owners, hardness_of != "negatives"))
        plain = plain._replace(own_negatives=operands.negatives.unflatten(0, own_shape[:2]))
    elif operands.negatives is not None:
        strangers = torch.full((1, operands.negatives.shape[0]), -1, device=query.device)
        blocks.append((operands.negatives, strangers, hardness_of != "in_batch"))
    sums = [
        _row_lses(problem, plain, block, ids, block_ids, alpha if raised else 0.0, backend)
        for block, block_ids, raised in blocks
    ]

    def losses(p: SimilarityProblem, o: Operands, *negatives: Tensor) -> Tensor:
        parts = [torch.stack(negatives, 1)]
        if o.own_negatives is not None:
            rows = prepared(o.query, p, o.accumulation_dtype).unsqueeze(1)
            cosine = (rows * prepared(o.own_negatives, p, o.accumulation_dtype)).sum(2)
            raised = alpha * cosine.detach() if hardness_of != "in_batch" else 0.0
            parts.append(cosine * scale_of(p, o) + raised)
        return cross_entropy(Logits(score_sum(p, o).unsqueeze(1), tuple(parts)), 0.0)

    return reduced(weighted_sum(problem, plain, losses, *sums), reduction)


def _row_lses(
    problem: SimilarityProblem,
    plain: Operands,
    block: Tensor,
    ids: Tensor,
    block_ids: Tensor,
    alpha: float,
    backend: str | None,
) -> Tensor:
    """Log-sum-exps of s / T + alpha sg(s): the sharper logits (1 / T + alpha) s, whose gradient
    reaches the rows as that of s / T does."""
    operands = plain._replace(key=block, query_ids=ids, key_ids=block_ids, own_negatives=None)
    if not alpha:
        return row_lses(problem, operands, backend)
    if operands.temperature is None:
        sharper = problem.scale + alpha
        share: Tensor | float = problem.scale / sharper
        problem = problem._replace(scale=sharper)
    else:
        inverse = operands.temperature.to(operands.accumulation_dtype).reciprocal()
        share = (inverse / (inverse + alpha)).detach()
        operands = operands._replace(temperature=(inverse + alpha).reciprocal())
    rows = [_with_share_of_gradient(x, share) for x in (operands.query, operands.key)]
    return row_lses(problem, operands._replace(query=rows[0], key=rows[1]), backend)


def _with_share_of_gradient(x: Tensor, share: Tensor | float) -> Tensor:
    found: Tensor = _ShareOfGradient.apply(wide(x), share)
    return found


class _ShareOfGradient(torch.autograd.Function):
    """x, whose gradient is multiplied by ``share``. A second derivative is an error."""

    @staticmethod
    def forward(x, share):  # type: ignore[no-untyped-def]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.share = inputs[1]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        transformed = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
        if grad.requires_grad and not transformed:
            raise ValueError("hardness: got create_graph=True, expected first derivatives alone")
        return grad * ctx.share, None
