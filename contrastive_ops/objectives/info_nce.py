"""InfoNCE: arguments, reductions, prefixes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ..engine import check
from ..engine.describe import describe
from ..engine.problem import Operands, SimilarityProblem, on_prefixes
from ..engine.softmax_ce import softmax_ce

Number = float | int
DEFAULT_TEMPERATURE = 0.05


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Number | Tensor = DEFAULT_TEMPERATURE,
    scale: Number | Tensor | None = None,
    symmetric: bool = False,
    in_batch: bool = True,
    negatives_scope: Literal["all", "own"] = "all",
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    false_negative_margin: Number | None = None,
    guide: Sequence[Tensor] | None = None,
    guide_margin: Number = 0.0,
    margin: Number = 0.0,
    negative_log_weight: Number | Tensor | None = None,
    own_negative_log_weight: Number | None = None,
    label_smoothing: Number = 0.0,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[Number] | None = None,
    row_weight: Tensor | None = None,
    normalize: bool = True,
    reduction: Literal["none", "mean", "sum"] = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    precision: Literal["ieee", "tf32x3", "tf32"] | None = None,
) -> Tensor:
    r"""InfoNCE: the cross-entropy of finding each query's key among all candidates.

    .. math:: L_i = -\log \frac{e^{(s_{ip} - m)/T}}
                               {e^{(s_{ip} - m)/T} + \sum_{j} w_{ij}\, e^{s_{ij}/T}}

    with :math:`s` the cosine similarity, :math:`T` the temperature, :math:`p` the positive of query
    i and j over the candidates that are neither positive nor left out. The N x M logits are never
    held: memory beyond inputs and gradients is O(N + M) plus ``workspace_bytes``, and for 16-bit
    inputs the gradients' float32 sums (see ``workspace_bytes``). Loss and
    gradients come from one pass over the logits, 3 matrix products in all (4 when ``symmetric``).

    Args:
        query: (N, D), N >= 1. float16, bfloat16, float32 or float64; under autocast the three
            operands are promoted to the widest of them. Logits are float32 at least.
        key: (M, D). Key i is the positive of query i (M >= N) unless ``positives`` is given.
        negatives: (K, D), seen by every query, or (N, H, D), H for each query. May be empty.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        scale: 1 / T instead of ``temperature``; giving both is an error.
        symmetric: the mean of both directions: each positive key also looks for its query among
            the queries. Other queries with the same positive key are left out there, explicit
            negatives take no part. Needs ``in_batch``.
        in_batch: whether the other queries' keys are candidates.
        negatives_scope: for (N, H, D) negatives, ``"all"`` shows them to every query, ``"own"`` a
            query only its H.
        positives: int64 (N,) indices into ``key``, or (N, P) with -1 pads, at least one a row: the
            loss is the mean of their negative log-probabilities, each among all candidates.
        query_ids, key_ids: int64 (N,) and (M,), both or neither. A key with the query's id that is
            not its positive is left out.
        negative_ids: int64 (K,) or (N, H), likewise for ``negatives``.
        false_negative_margin: leaves out in-batch keys whose similarity exceeds the (weakest)
            positive's by more than this. Never applies to ``negatives``.
        guide: ``(guide_query, guide_key[, guide_negatives])``, another model's embeddings of the
            same texts, any floating dtype and width, not differentiated. Leaves out candidates
            whose guide cosine exceeds that of the (weakest) positive minus ``guide_margin``;
            without ``guide_negatives`` the ``negatives`` all stay.
        guide_margin: see ``guide``.
        margin: taken off the positive's similarity.
        negative_log_weight: added to the logits of ``negatives``: a number, or a tensor (K,) or
            (N, H), not differentiated; -inf leaves a (padded) negative out, whose row must still be
            finite.
        own_negative_log_weight: added to the logits of a query's own H negatives only.
        label_smoothing: in [0, 1]; as in ``F.cross_entropy``, over the candidates a row keeps.
        matryoshka_dims: the loss is the weighted sum of the losses on each of these prefixes of D,
            whose norms, margins and thresholds are their own; the ``guide`` is whole.
        matryoshka_weights: their weights, 1 by default.
        row_weight: (N,) finite and not negative, not differentiated. ``"mean"`` divides by its sum.
        normalize: cosine similarity if True, dot products if False. Margins are in its units.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the (N,) row losses.
        backend: ``"cpu"``, ``"triton"``, ``"torch"`` or ``"reference"``; by default the fastest
            that works (:func:`contrastive_ops.backends`), or the environment's
            ``CONTRASTIVE_OPS_BACKEND``.
        workspace_bytes: what may be kept besides inputs, gradients and O(N + M) statistics;
            192 MiB by default. Not counted, all of it O((N + M) D): float32 sums of 16-bit
            gradients and float32 copies of float16 rows; the ``torch`` backend's unit rows and
            sums; the gathered keys of ``symmetric`` with ``positives``; the ``triton`` backend's
            aligned copy of the rows.
        precision: how exact a GPU's products of float32 rows have to be at least: ``"ieee"`` (the
            default), ``"tf32x3"`` (three products of 10-bit parts, nearly as exact) or ``"tf32"``
            (10 bits). 16-bit rows are multiplied exactly and summed in float32 whatever it says.
            The ``triton`` backend reads it; the others are never less exact on the CPU.

    Returns:
        0-dim, or (N,) for ``"none"``: float32, float64 for float64 inputs. Gradients come in the
        inputs' dtypes. Second derivatives are computed densely, up to 2**26 logits.

    Raises:
        ValueError: an argument that contradicts the above; the message names it.
        TypeError: something that is no tensor where one is needed.

    All comparisons are strict up to rounding: equal similarities stay. A zero row has similarity 0
    to everything and gradient 0.

    Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"
    (arXiv 1807.03748), eq. 4; hard negatives and their weight as in Gao et al. 2021, "SimCSE"
    (arXiv 2104.08821), eq. 5; both directions as in Radford et al. 2021 (arXiv 2103.00020).
    """
    if scale is None:
        divisor = temperature
    elif temperature is not DEFAULT_TEMPERATURE:
        raise ValueError(f"scale: got {scale!r} besides temperature={temperature!r}, expected one")
    else:
        divisor = _reciprocal(scale)
    problem, operands = describe(
        query,
        key,
        negatives,
        temperature=divisor,
        symmetric=symmetric,
        in_batch=in_batch,
        negatives_scope=negatives_scope,
        positives=positives,
        query_ids=query_ids,
        key_ids=key_ids,
        negative_ids=negative_ids,
        false_negative_margin=false_negative_margin,
        guide=guide,
        guide_margin=guide_margin,
        margin=margin,
        negative_log_weight=negative_log_weight,
        own_negative_log_weight=own_negative_log_weight,
        label_smoothing=label_smoothing,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
        precision=precision,
    )
    return reduced_softmax(
        problem, operands, matryoshka_dims, matryoshka_weights, row_weight, reduction, backend
    )


def reduced_softmax(
    problem: SimilarityProblem,
    operands: Operands,
    matryoshka_dims: Sequence[int] | None,
    matryoshka_weights: Sequence[Number] | None,
    row_weight: Tensor | None,
    reduction: str,
    backend: str | None,
) -> Tensor:
    """The problem's loss on its prefixes and reduced, both as :func:`info_nce` documents them."""
    if matryoshka_dims is not None or matryoshka_weights is not None:
        prefixes = _prefixes(operands.query, matryoshka_dims, matryoshka_weights)
        problem, operands = on_prefixes(problem, operands, prefixes)
    weight: Tensor | float
    if row_weight is None:
        if reduction == "mean":
            weight = 1.0 / operands.query.shape[0]
        elif reduction == "sum":
            weight = 1.0
        else:
            check.choice("reduction", reduction, ("none", "mean", "sum"))
            return softmax_ce(problem, operands, None, backend)
        return softmax_ce(problem, operands, weight, backend)
    check.choice("reduction", reduction, ("none", "mean", "sum"))
    weight = _checked_weight(row_weight, operands.query)
    if reduction == "mean":  # the sum of the largest floats would be infinite
        weight = weight.double() / weight.amax()
        weight = weight / weight.sum()
    weight = weight.to(operands.accumulation_dtype)
    if reduction == "none":
        return softmax_ce(problem, operands, None, backend) * weight
    return softmax_ce(problem, operands, weight, backend)


def _reciprocal(scale: Number | Tensor) -> Number | Tensor:
    if isinstance(scale, Tensor):
        # Widened first: 1 / scale rounded to 16 bits would be another temperature.
        return check.positive_scalar("scale", scale, scale.device).double().reciprocal()
    return 1 / check.positive_number("scale", scale)


def _checked_weight(row_weight: Tensor, query: Tensor) -> Tensor:
    check.matrix("row_weight", row_weight, (1,))
    check.shaped("row_weight", row_weight, ((query.shape[0],),), query)
    if check.readable(row_weight):
        low, high = (bound.item() for bound in row_weight.detach().aminmax())
        if not (low >= 0 and 0 < high < math.inf):
            raise ValueError(
                f"row_weight: got values from {low} to {high}, expected finite weights >= 0, "
                "not all of them 0"
            )
    return row_weight.detach()


def _prefixes(
    query: Tensor, dims: Sequence[int] | None, weights: Sequence[Number] | None
) -> list[tuple[int, float]]:
    if dims is None:
        raise ValueError("matryoshka_weights: expected matryoshka_dims besides them, got none")
    width = query.shape[1]
    if (
        not isinstance(dims, Sequence)
        or not dims
        or not all(type(dim) is int and 1 <= dim <= width for dim in dims)
    ):
        raise ValueError(f"matryoshka_dims: got {dims!r}, expected integers in [1, {width}]")
    if weights is None:
        return [(dim, 1.0) for dim in dims]
    if len(weights) != len(dims):
        raise ValueError(
            f"matryoshka_weights: got {len(weights)} of them, expected {len(dims)}, one a prefix"
        )
    return [
        (dim, check.number("matryoshka_weights", w)) for dim, w in zip(dims, weights, strict=True)
    ]
