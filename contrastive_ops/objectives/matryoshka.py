"""Losses on prefixes of the embeddings and on the layers that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from ..engine import check
from ..engine.problem import Operands, SimilarityProblem, each_prefix, on_prefixes
from .arguments import Number
from .distance import squared_l2_factors
from .distillation import embedding_kl

Dims = Sequence[int] | None
Weights = Sequence[Number] | None
LayerWeighting = Literal["uniform", "log", "linear"]


def matryoshka(
    loss: Callable[..., Tensor],
    *embeddings: Tensor,
    dims: Sequence[int],
    weights: Sequence[Number] | None = None,
) -> Tensor:
    r"""Any loss as a Matryoshka loss: :math:`\sum_d w_d\, \mathrm{loss}(x_{:d}, y_{:d}, \ldots)`.

    One prefix after another. The softmax family has ``matryoshka_dims``, which on the CPU is one
    pass over D instead.

        matryoshka(lambda u, v: angle(u, v, targets), u, v, dims=[768, 256, 64])

    Args:
        loss: of the embeddings' prefixes; returns a tensor.
        embeddings: (..., D) each, of one width D.
        dims: in [1, D], in any order.
        weights: one a prefix, 1 by default.

    Raises:
        ValueError: a prefix out of range, embeddings of different widths.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv 2205.13147).
    """
    if not embeddings:
        raise ValueError("embeddings: got none, expected at least one tensor")
    for x in embeddings:
        check.matrix("embeddings", x, (2, 3))
        check.same("embeddings", x, "embeddings[0]", embeddings[0])
    parts = [
        w * loss(*[x[..., :dim] for x in embeddings])
        for dim, w in checked_prefixes(embeddings[0].shape[-1], dims, weights)
    ]
    return sum(parts[1:], parts[0])


def adaptive_layers(
    loss: Callable[..., Tensor],
    layers: Sequence[Sequence[Tensor]],
    *,
    indices: Sequence[int] | None = None,
    layer_weighting: LayerWeighting | Callable[[int], float] = "linear",
    last_layer_weight: Number = 1.0,
    prior_layers_weight: Number = 1.0,
    kl_weight: Number = 1.0,
    kl_temperature: Number = 0.3,
) -> Tensor:
    r"""2-D Matryoshka: a loss on the last layer and on earlier ones, which learn from the last.

    .. math:: w_L\, \mathrm{loss}(e_L) + \frac{1}{n} \sum_l w\, w_l\, \mathrm{loss}(e_l)
              + \kappa \tau \sum_l \mathrm{KL}\big(\mathrm{softmax}(\mathrm{sg}(e_L) / \tau) \,\|\,
              \mathrm{softmax}(e_l / \tau)\big)

    over the n earlier layers given, :math:`w_l = 1`, :math:`1 / (1 + \ln(1 + l))` or
    :math:`1 / (1 + l)`; KL is the mean over all rows of a layer's embeddings. Prefixes are the
    loss's own affair:

        step = functools.partial(info_nce, matryoshka_dims=[768, 256, 64])
        adaptive_layers(step, [(u_3, v_3), (u_11, v_11)], indices=[3])

    Args:
        loss: of one layer's embeddings; returns a 0-dim tensor.
        layers: the embeddings of each layer, as ``loss`` takes them, (N_k, D) each; the last entry
            is the last layer. For one random earlier layer a step (the paper) give that one.
        indices: l of each earlier layer, counted from 0; by default 0, 1, 2, ...
        layer_weighting: ``"uniform"``, ``"log"`` (ESE), ``"linear"`` (2DMSE's code), or w_l itself.
        last_layer_weight, prior_layers_weight: w_L and w.
        kl_weight: kappa; 0 leaves the divergence out.
        kl_temperature: tau > 0.

    Raises:
        ValueError: layers of different shapes, indices that do not match them.

    Source: Li et al. 2024, "2D Matryoshka Sentence Embeddings" (arXiv 2402.14776; version 2 is
    ESE). Divergence and other weights are those of sentence-transformers' AdaptiveLayerLoss: the
    teacher first, where the paper's notation may be read the other way round.
    """
    if not layers:
        raise ValueError("layers: got none, expected at least one, the last layer")
    *earlier, last = layers
    found = list(range(len(earlier))) if indices is None else list(indices)
    if len(found) != len(earlier) or not all(type(i) is int and i >= 0 for i in found):
        raise ValueError(
            f"indices: got {indices!r}, expected {len(earlier)} integers >= 0, one an earlier layer"
        )
    if not callable(layer_weighting):
        check.choice("layer_weighting", layer_weighting, tuple(_WEIGHTINGS))
        layer_weighting = _WEIGHTINGS[layer_weighting]
    share = check.number("prior_layers_weight", prior_layers_weight) / max(1, len(earlier))
    divergence = check.number("kl_weight", kl_weight)
    tau = check.positive_number("kl_temperature", kl_temperature)
    total = check.number("last_layer_weight", last_layer_weight) * loss(*last)
    for index, embeddings in zip(found, earlier, strict=True):
        if [x.shape for x in embeddings] != [x.shape for x in last]:
            raise ValueError(
                f"layers: got shapes {[tuple(x.shape) for x in embeddings]}, expected "
                f"{[tuple(x.shape) for x in last]} as in the last layer"
            )
        total = total + share * layer_weighting(index) * loss(*embeddings)
        if not divergence:
            continue
        rows = sum(x.shape[0] for x in last)
        for x, teacher in zip(embeddings, last, strict=True):
            kl = embedding_kl(x, teacher, temperature=tau, reduction="sum")
            total = total + divergence * tau / rows * kl
    return total


_WEIGHTINGS: dict[str, Callable[[int], float]] = {
    "uniform": lambda layer: 1.0,
    "log": lambda layer: 1 / (1 + math.log(1 + layer)),
    "linear": lambda layer: 1 / (1 + layer),
}


# What the softmax family does with its `matryoshka_dims` and `matryoshka_weights`.


def with_prefixes(
    problem: SimilarityProblem, operands: Operands, dims: Dims, weights: Weights
) -> tuple[SimilarityProblem, Operands]:
    """The problem on these prefixes; as it is where there are none."""
    if dims is None and weights is None:
        return problem, operands
    return on_prefixes(problem, operands, checked_prefixes(operands.query.shape[1], dims, weights))


def weighted_sum(
    problem: SimilarityProblem,
    operands: Operands,
    term: Callable[..., Tensor],
    *lses: Tensor,
) -> Tensor:
    """sum_d w_d term(prefix d, its row of each of ``lses``): what a loss is beside the log-sum-exps
    of :func:`.reductions.row_lses`, in O(N D)."""
    if not problem.prefixes:
        return term(problem, operands, *[lse[0] for lse in lses])
    parts = [
        w * term(part, rows, *[lse[-level] for lse in lses])
        for level, (_, w, part, rows) in enumerate(each_prefix(problem, operands), 1)
    ]
    return sum(parts[1:], parts[0])


def widened(x: Tensor, y: Tensor, dims: Dims, weights: Weights) -> tuple[Tensor, Tensor, Dims]:
    """:func:`.distance.squared_l2_factors`, and where the prefixes end in them."""
    if dims is None and weights is None:
        return *squared_l2_factors(x, y)[:2], None
    ends = [dim for dim, _ in checked_prefixes(x.shape[1], dims, weights)]
    x, y, widths = squared_l2_factors(x, y, ends)
    return x, y, [widths[end] for end in ends]


def checked_prefixes(width: int, dims: Dims, weights: Weights) -> list[tuple[int, float]]:
    """(dim, weight) of each prefix of rows of this width."""
    if dims is None:
        raise ValueError("matryoshka_weights: expected matryoshka_dims besides them, got none")
    if (
        not isinstance(dims, Sequence)
        or not dims
        or not all(type(dim) is int and 1 <= dim <= width for dim in dims)
    ):
        raise ValueError(f"matryoshka_dims: got {dims!r}, expected integers in [1, {width}]")
    if weights is None:
        return [(dim, 1.0) for dim in dims]
    if not isinstance(weights, Sequence) or len(weights) != len(dims):
        got = f"{len(weights)} of them" if isinstance(weights, Sequence) else repr(weights)
        raise ValueError(
            f"matryoshka_weights: got {got}, expected a list of {len(dims)}, one a prefix"
        )
    return [
        (dim, check.number("matryoshka_weights", w)) for dim, w in zip(dims, weights, strict=True)
    ]
