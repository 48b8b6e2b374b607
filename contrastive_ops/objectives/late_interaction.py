"""Late interaction: similarities of token embeddings, a document at a time for each query token."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check, tokens
from ..engine.tokens import TokenProblem, Tokens
from .arguments import workspace


def token_similarity(
    query: Tensor,
    key: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    aggregate: Literal["sum", "mean", "two_sided_mean"] = "sum",
    normalize: bool = True,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""MaxSim of every query with every document: :math:`S_{nm} = \sum_i \max_j q_{ni} k_{mj}`.

    The N x M x Lq x Ld similarities of tokens never exist; what is kept for the backward is where
    each maximum was, N x M x Lq integers. One matrix product forward; the backward gathers and
    scatters the tokens at the maxima. The scores feed :func:`contrastive_ops.score_nce`,
    :func:`list_net` and the like.

    Args:
        query: (N, Lq, D) token embeddings.
        key: (M, Ld, D).
        query_mask, key_mask: (N, Lq) and (M, Ld), true or 1 where there is a token; others are
            never read. A pair with no token on one side has score 0.
        aggregate: ``"sum"`` over the query's tokens (ColBERT), their ``"mean"`` (BGE-M3), or
            ``"two_sided_mean"``: the mean of both directions' means (CLRCMD), for two passes.
        normalize: cosines of tokens if True, dot products if False.
        backend: see :func:`contrastive_ops.backends`.
        workspace_bytes: 192 MiB by default.

    Returns:
        (N, M): float32, float64 for float64 inputs. Differentiable in both; of several equal
        maxima the first gets the gradient.

    Raises:
        ValueError: shapes or dtypes that do not go together.

    Source: Khattab and Zaharia 2020, "ColBERT" (arXiv 2004.12832); Wang et al. 2022, "CLRCMD".
    """
    check.choice("aggregate", aggregate, ("sum", "mean", "two_sided_mean"))
    q_mask, k_mask = _checked("query", query, query_mask), _checked("key", key, key_mask)
    check.same("key", key, "query", query)
    problem = TokenProblem(
        aggregate != "sum", check.flag("normalize", normalize), workspace(workspace_bytes)
    )
    there = tokens.token_similarity(problem, Tokens(query, key, q_mask, k_mask), backend)
    if aggregate != "two_sided_mean":
        return there
    back = tokens.token_similarity(problem, Tokens(key, query, k_mask, q_mask), backend)
    return (there + back.T) / 2


def _checked(name: str, rows: Any, mask: Any) -> Tensor | None:
    check.matrix(name, rows, (3,))
    if 0 in rows.shape:
        raise ValueError(f"{name}: got shape {tuple(rows.shape)}, expected no empty dimension")
    if mask is None:
        return None
    check.shaped(f"{name}_mask", check.tensor(f"{name}_mask", mask), (rows.shape[:2],), rows)
    return mask.to(torch.bool)
