"""InfoNCE: arguments, reductions, prefixes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ..engine import check
from ..engine.describe import describe
from ..engine.problem import Operands, SimilarityProblem
from ..engine.softmax_ce import softmax_ce
from ..engine.summary import empty_summary
from .matryoshka import with_prefixes
from .statistics import Receiver, statistics_of

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
    statistics: Receiver | None = None,
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
        temperature: T > 0, a number or a 0-dim tensor, then with gradient. Under ``torch.compile``
            a number is a constant of the graph: give a tensor if it changes from step to step.
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
            whose norms, margins and thresholds are their own; the ``guide`` is whole. On the CPU
            one pass over D serves them all (up to 128; one for each direction where ``symmetric``
            comes with ``positives``, a ``guide`` or a ``false_negative_margin``), on a GPU one
            follows another.
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
        statistics: a function, such as a list's ``append``, that is called with the batch's
            :class:`Statistics` (accuracy, ranks, hardest negatives, ...), query to key and of the
            longest prefix. They come from the loss's own scan, for a few percent of a step; with
            the backend ``reference``, in compiled graphs and in function transforms from a scan of
            their own, one more matrix product.

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
    problem, operands = describe(
        query,
        key,
        negatives,
        temperature=temperature_of(temperature, scale),
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
    loss = reduced_softmax(
        problem,
        operands,
        matryoshka_dims,
        matryoshka_weights,
        row_weight,
        reduction,
        backend,
        statistics,
    )
    if negatives is not None and negatives.numel() == 0 and negatives.requires_grad:
        loss = loss + negatives.sum()  # 0, for an empty gradient instead of none
    return loss


def reduced_softmax(
    problem: SimilarityProblem,
    operands: Operands,
    matryoshka_dims: Sequence[int] | None,
    matryoshka_weights: Sequence[Number] | None,
    row_weight: Tensor | None,
    reduction: str,
    backend: str | None,
    statistics: Receiver | None = None,
) -> Tensor:
    """The problem's loss on its prefixes and reduced, both as :func:`info_nce` documents them."""
    problem, operands = with_prefixes(problem, operands, matryoshka_dims, matryoshka_weights)
    if statistics is None:
        return _reduced(problem, operands, row_weight, reduction, backend)
    summary = empty_summary(operands)
    loss = _reduced(problem, operands, row_weight, reduction, backend, summary)
    statistics(statistics_of(problem, operands, summary))
    return loss


def _reduced(
    problem: SimilarityProblem,
    operands: Operands,
    row_weight: Tensor | None,
    reduction: str,
    backend: str | None,
    summary: Tensor | None = None,
) -> Tensor:
    weight: Tensor | float
    if row_weight is None:
        if reduction == "mean":
            weight = 1.0 / operands.query.shape[0]
        elif reduction == "sum":
            weight = 1.0
        else:
            check.choice("reduction", reduction, ("none", "mean", "sum"))
            return softmax_ce(problem, operands, None, backend, summary)
        return softmax_ce(problem, operands, weight, backend, summary)
    check.choice("reduction", reduction, ("none", "mean", "sum"))
    weight = row_shares(row_weight, operands.query.shape[0], operands, reduction)
    if reduction == "none":
        return softmax_ce(problem, operands, None, backend, summary) * weight
    return softmax_ce(problem, operands, weight, backend, summary)


def temperature_of(temperature: Number | Tensor, scale: Number | Tensor | None) -> Number | Tensor:
    """The temperature, or 1 / scale where that is given instead."""
    if scale is None:
        return temperature
    if temperature is not DEFAULT_TEMPERATURE:
        raise ValueError(f"scale: got {scale!r} besides temperature={temperature!r}, expected one")
    if isinstance(scale, Tensor):
        # Widened first: 1 / scale rounded to 16 bits would be another temperature.
        return check.positive_scalar("scale", scale, scale.device).double().reciprocal()
    return 1 / check.positive_number("scale", scale)


def row_shares(row_weight: Tensor, rows: int, operands: Operands, reduction: str) -> Tensor:
    """(rows,) what each row counts in the reduction, from the checked ``row_weight`` of all."""
    check.matrix("row_weight", row_weight, (1,))
    check.shaped("row_weight", row_weight, ((rows,),), operands.query)
    weight = row_weight.detach()
    if check.readable(weight):
        low, high = (bound.item() for bound in weight.aminmax())
        if not (low >= 0 and 0 < high < math.inf):
            raise ValueError(
                f"row_weight: got values from {low} to {high}, expected finite weights >= 0, "
                "not all of them 0"
            )
    if reduction == "mean":  # the sum of the largest floats would be infinite
        weight = weight.double() / weight.amax()
        weight = weight / weight.sum()
    return weight.to(operands.accumulation_dtype)
