"""Negatives that a frozen model finds too close to the query, weighed away (DCLR, MultiCSR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.reference import log_sum_exp
from ..engine.similarity import unit_rows
from ..engine.stripes import Tensors, row_loss, stripe_losses
from .arguments import Number, Reduction, describe, matrices, pairs, row_ids, shares, softplus
from .info_nce import reduced_softmax
from .matryoshka import Dims, Weights, with_prefixes
from .statistics import Receiver
from .stretches import Stretches, as_options, each_similarity, stretches


def threshold_guided_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    guide: Sequence[Tensor],
    guide_threshold: Number = 0.9,
    objective: Literal["softmax_ce", "softmax_bce"] = "softmax_ce",
    excluded_logit: Literal[0] | None = None,
    temperature: Number | Tensor = 0.05,
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""InfoNCE without the in-batch negatives whose guide cosine exceeds a fixed threshold.

    DCLR's paper: ``objective="softmax_ce"`` with the excluded left out, 3 matrix products. DCLR's
    and MultiCSR's code: ``objective="softmax_bce"``, ``excluded_logit=0``: the excluded logits
    become 0, and the loss is the binary cross-entropy of all softmax entries, :math:`L_i =
    -\frac{1}{C} (\log p_{ii} + \sum_{j \ne i} \log(1 - p_{ij}))` over C candidates; evaluated a
    stripe of rows at a time in plain PyTorch. (PyTorch's own binary cross-entropy clamps its
    logarithms at -100; this does not.)

    Args:
        query, key: (N, D); key i is the positive of query i.
        negatives: (K, D): noise, or hard negatives. Never excluded; they get gradient.
        guide: ``(guide_query, guide_key)``, (N, G) each, not differentiated.
        guide_threshold: phi in [-1, 1]; exclusion is strict.
        objective, excluded_logit: see above. ``excluded_logit=0`` needs ``"softmax_bce"``.
        temperature, matryoshka_dims, matryoshka_weights, reduction, backend, workspace_bytes,
        statistics: as in :func:`contrastive_ops.info_nce`; ``statistics`` need ``"softmax_ce"``.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Zhou et al. 2022, "Debiased Contrastive Learning of Unsupervised Sentence
    Representations" (arXiv 2205.00656); MultiCSR (2023).
    """
    check.choice("objective", objective, ("softmax_ce", "softmax_bce"))
    if excluded_logit not in (None, 0):
        raise ValueError(f"excluded_logit: got {excluded_logit!r}, expected 0 or None")
    query, key = pairs(query=query, key=key)
    if negatives is not None:
        query, negatives = matrices(query=query, negatives=negatives)
    n = query.shape[0]
    threshold = check.number("guide_threshold", guide_threshold, -1.0, 1.0)
    if len(guide) != 2:
        raise ValueError("guide: expected (guide_query, guide_key)")
    base = pairs(**{"guide[0]": guide[0], "guide[1]": guide[1]})
    if base[0].shape[0] != n:
        raise ValueError(f"guide[0]: got {base[0].shape[0]} rows, expected {n} as in query")
    guide_query, guide_key = (unit_rows(x.detach().float()) for x in base)
    problem, operands = describe(
        query, key, temperature=temperature, workspace_bytes=workspace_bytes
    )
    if objective == "softmax_ce":
        if excluded_logit is not None:
            raise ValueError("excluded_logit: got 0, expected None with objective='softmax_ce'")
        operands = operands._replace(
            negatives=negatives,
            guide_query=guide_query,
            guide_key=guide_key,
            guide_threshold=guide_query.new_full((n,), threshold),
        )
        return reduced_softmax(
            problem,
            operands,
            matryoshka_dims,
            matryoshka_weights,
            None,
            reduction,
            backend,
            statistics,
        )
    if statistics is not None:
        raise ValueError(f"statistics: got {statistics!r}, expected None with {objective=}")
    problem, operands = with_prefixes(
        problem, operands._replace(negatives=negatives), matryoshka_dims, matryoshka_weights
    )
    dtype = operands.accumulation_dtype
    unit, keys = (stretches(x, problem, dtype) for x in operands[:2])
    others: tuple[Tensor | None, Tensor | None] = (None, None)
    if operands.negatives is not None:
        others = stretches(operands.negatives, problem, dtype)
    return stripe_losses(
        _softmax_bce,
        (*unit, guide_query.to(dtype), row_ids(n, query)),
        (*keys, *others, guide_key.to(dtype), operands.temperature),
        shares(reduction, n),
        backend=backend,
        workspace_bytes=workspace_bytes,
        width=(n + (0 if negatives is None else negatives.shape[0])) * len(problem.prefixes),
        scale=problem.scale,
        threshold=threshold,
        leave_out=excluded_logit is None,
        **as_options(problem, operands.query.shape[1]),
    )


@row_loss
def _softmax_bce(rows: Tensors, shared: Tensors, start: int, **options: Any) -> Tensor:
    query, query_inverse, guide_query, index = rows
    key, key_inverse, negatives, negatives_inverse, guide_key, temperature = shared
    assert query is not None
    assert guide_query is not None
    assert index is not None
    assert key is not None
    assert guide_key is not None
    scale = options["scale"] if temperature is None else temperature.to(key.dtype).reciprocal()
    own = torch.arange(key.shape[0], device=key.device) == index.unsqueeze(1)
    out = (guide_query @ guide_key.T > options["threshold"]) & ~own
    if negatives is not None:
        own = torch.nn.functional.pad(own, (0, negatives.shape[0]))
    x, prefixes = Stretches(query, query_inverse), (options["ends"], options["weights"])
    blocks = [each_similarity(x, Stretches(key, key_inverse), *prefixes)]
    if negatives is not None:
        blocks.append(each_similarity(x, Stretches(negatives, negatives_inverse), *prefixes))
    losses = torch.zeros_like(query[:, 0])
    for parts in zip(*blocks, strict=True):
        weight = parts[0][0]
        logits = [similarity * scale for _, similarity in parts]
        logits[0] = logits[0].masked_fill(out, -torch.inf if options["leave_out"] else 0.0)
        every = logits[0] if len(logits) == 1 else torch.cat(logits, 1)
        log_p = every - every.logsumexp(1, keepdim=True)
        positive = torch.where(own, log_p, 0.0).sum(1)
        # 1 - p of the likeliest may round to 0: it is what the others sum up to.
        top, at = every.max(1)
        likeliest = torch.zeros_like(own).scatter(1, at.unsqueeze(1), True)
        beyond = top - log_sum_exp(every.masked_fill(likeliest, -torch.inf))
        beyond = torch.where((own & likeliest).any(1), -torch.inf, beyond)
        less_likely = log_p.masked_fill(own | likeliest, -torch.inf).exp()
        rest = torch.log1p(-less_likely).sum(1) - softplus(beyond)
        losses = losses - weight * (positive + rest) / every.shape[1]
    return losses
