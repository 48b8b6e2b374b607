"""Several positives a query, each alone against the negatives."""

from __future__ import annotations

from torch import Tensor

from ..engine import check
from ..engine.problem import scale_of
from ..engine.reductions import row_lse
from ..engine.similarity import prepared
from .arguments import Number, Reduction, describe, matrices, reduced, row_ids, softplus


def own_positive_nce(
    query: Tensor,
    positives: Tensor,
    *,
    temperature: Number | Tensor = 0.05,
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
        temperature, normalize, reduction, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Kim, Yoo and Lee 2021, "Self-Guided Contrastive Learning for BERT Sentence
    Representations" (arXiv 2106.07345), whose loss adds up the layers where this one takes
    their mean.
    """
    check.matrix("positives", positives, (3,))
    n, width = positives.shape[0], positives.shape[1]
    query, keys = matrices(query=query, positives=positives.reshape(-1, positives.shape[2]))
    if query.shape[0] != n:
        raise ValueError(f"positives: got {n} groups, expected {query.shape[0]} as in query")
    ids = row_ids(n, query)
    problem, operands = describe(
        query,
        keys,
        temperature=temperature,
        normalize=normalize,
        ids=ids,
        key_ids=ids.repeat_interleave(width),
        workspace_bytes=workspace_bytes,
    )
    unit = prepared(query, problem, operands.accumulation_dtype)
    mine = prepared(keys, problem, operands.accumulation_dtype).view(n, width, -1)
    logits = (unit.unsqueeze(1) * mine).sum(2) * scale_of(problem, operands)
    negatives = row_lse(problem, operands, backend).unsqueeze(1)
    return reduced(softplus(negatives - logits).mean(1), reduction)
