"""Soft nearest neighbour loss: how entangled the classes of a labelled set are."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..engine import check
from ..engine.problem import one_set
from ..engine.reductions import row_lses
from .arguments import Number, Reduction, describe, matrices, shares, temperature_or, wide
from .arguments import labels as checked_labels
from .classes import classes, over_positives
from .matryoshka import Dims, Weights, widened, with_prefixes


def soft_nearest_neighbor(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    scale: Number | Tensor | None = None,
    distance: Literal["sq_l2", "cosine"] = "sq_l2",
    matryoshka_dims: Dims = None,
    matryoshka_weights: Weights = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Soft nearest neighbour loss.

    .. math:: L_i = -\log \frac{\sum_{j \ne i,\, y_j = y_i} e^{-d_{ij}/T}}
                               {\sum_{k \ne i} e^{-d_{ik}/T}}

    Costs 4 matrix products (for cosines 2 where there is a kernel for one set) and the pairs within
    classes once more; no N x N matrix is held.

    Args:
        embeddings: (N, D).
        labels: (N,) int64. A row whose label no other row has counts 0 and is left out of the mean.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient (the paper learns 1 / T).
        scale: 1 / T instead of ``temperature``; giving both is an error.
        distance: d, the squared Euclidean distance of the rows as they are, or 1 - cosine.
        reduction: ``"mean"`` over rows with a positive, ``"sum"`` or ``"none"``, (N,).
        matryoshka_dims, matryoshka_weights, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: labels that are no (N,) integers, or as in :func:`info_nce`.

    Source: Frosst, Papernot and Hinton 2019, "Analyzing and Improving Representations with the Soft
    Nearest Neighbor Loss" (arXiv 1902.01889).
    """
    temperature = temperature_or(scale, temperature, 1.0)
    (rows,) = matrices(embeddings=embeddings)
    label = checked_labels("labels", labels, rows)
    check.choice("distance", distance, ("sq_l2", "cosine"))
    found = classes(label)
    weight = shares(reduction, rows.shape[0], found.has_positive)
    if isinstance(weight, Tensor):
        weight = weight.to(wide(rows[:0]).dtype)

    query = key = rows
    if distance == "sq_l2":
        query, key, matryoshka_dims = widened(rows, rows, matryoshka_dims, matryoshka_weights)
    problem, operands = describe(
        query,
        key,
        temperature=temperature,
        normalize=distance == "cosine",
        ids=label,
        workspace_bytes=workspace_bytes,
    )
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    # The factors of squared distances are two sets.
    alone = (problem, operands) if distance == "sq_l2" else one_set(problem, operands, label)
    negatives = row_lses(*alone, backend)
    return over_positives("log_sum", problem, operands, found, negatives, weight, backend)
