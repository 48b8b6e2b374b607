"""Several positives a query, each alone against the negatives."""

from __future__ import annotations

from torch import Tensor

from ..engine.problem import Operands, SimilarityProblem
from ..engine.reductions import row_lses
from .arguments import Number, Reduction, reduced, softplus
from .groups import against_others, own_logits
from .matryoshka import Dims, Weights, weighted_sum, with_prefixes


def own_positive_nce(
    query: Tensor,
    positives: Tensor,
    *,
    temperature: Number | Tensor = 0.05,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Each of a query's P positives against the other queries' positives alone.

    .. math:: L_i = -\frac{1}{P} \sum_p \log \frac{e^{s(q_i, k_{ip})/T}}
                     {e^{s(q_i, k_{ip})/T} + \sum_{j \ne i} \sum_{p'} e^{s(q_i, k_{jp'})/T}}

    Costs 4 matrix products over the N P keys; no logits are held.

    Args:
        query: (N, D).
        positives: (N, P, D), P >= 1: a layer each, a view each.
        temperature, matryoshka_dims, matryoshka_weights, normalize, reduction, backend,
        workspace_bytes: as in :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Kim, Yoo and Lee 2021, "Self-Guided Contrastive Learning for BERT Sentence
    Representations" (arXiv 2106.07345), whose loss adds up the layers where this one takes
    their mean.
    """
    problem, operands = against_others(
        query,
        "positives",
        positives,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )

    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)

    def losses(p: SimilarityProblem, o: Operands, negatives: Tensor) -> Tensor:
        return softplus(negatives.unsqueeze(1) - own_logits(p, o)).mean(1)

    negatives = row_lses(problem, operands, backend)
    return reduced(weighted_sum(problem, operands, losses, negatives), reduction)
