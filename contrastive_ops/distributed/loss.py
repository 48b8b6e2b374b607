"""InfoNCE over the rows of all ranks: arguments, agreement, reductions."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import losses
from ..engine import backends, check
from ..engine.describe import describe
from ..engine.problem import Operands, SimilarityProblem
from ..engine.similarity import positive_index
from ..engine.summary import empty_summary
from ..objectives.info_nce import info_nce as one_process
from ..objectives.info_nce import row_shares, temperature_of
from ..objectives.matryoshka import with_prefixes
from ..objectives.statistics import statistics_of
from .agreement import agree, fact, members
from .collectives import Spread, gather, shared, total
from .directions import Layout, Strategy, rank_loss
from .gathered import all_gather
from .ring import check_ring, ring

STRATEGIES: dict[str, Strategy] = {"all_gather": all_gather, "ring": ring}
GRADIENTS = ("mean", "sum")
_OWN_AFFAIR = ("backend", "workspace_bytes", "statistics")
"""Arguments in which ranks may differ."""


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    strategy: Literal["all_gather", "ring"] = "all_gather",
    gradient: Literal["mean", "sum"] = "mean",
    **options: Any,
) -> Tensor:
    r"""InfoNCE of all ranks' rows, of which each rank gives its own and computes its own share.

    With the rows of all ranks one after another it is, to rounding,
    ``contrastive_ops.info_nce(queries, keys, negatives, ...)`` in one process: every query sees
    every rank's keys and shared negatives. All ranks of the group call it, with as many rows as
    each has, and with options that are alike; what differs, and what is wrong on one rank, is an
    error on all. Without an initialised process group, or in a group of one, it is that function.

        query, key = DistributedDataParallel(encoder)(batch)
        contrastive_ops.distributed.info_nce(query, key).backward()

    Args:
        query, key, negatives: this rank's rows, as :func:`contrastive_ops.info_nce` takes them.
        group: of the ranks; the default group if None.
        strategy: ``"all_gather"`` brings all keys and shared negatives to every rank: 3 matrix
            products of a rank's rows with all candidates (6 when ``symmetric``), memory O(N D).
            ``"ring"`` passes them on from rank to rank: a rank holds two ranks' rows at a time,
            and computes 4 products (8). It serves one positive a row, no ``false_negative_margin``,
            ``label_smoothing`` or ``statistics``, and no second derivatives.
        gradient: whether the gradient of the loss is the ``"mean"`` or the ``"sum"`` over ranks of
            the gradients that the ranks' backward passes leave in a parameter.
            DistributedDataParallel and FSDP average: ``"mean"``. Not read for
            ``reduction="none"``: then both hold as they are.
        options: those of :func:`contrastive_ops.info_nce`. ``positives`` are this rank's key
            numbers; ``row_weight`` has this rank's rows, and ``"mean"`` divides by the sum over all
            ranks; ``"none"`` returns this rank's row losses; ``statistics`` are those of this
            rank's queries among all candidates. A ``temperature`` that is a tensor is taken to be
            the same on all ranks, and its gradient comes averaged over them: it stays the same,
            inside DistributedDataParallel or not.

    Returns:
        The loss of all ranks' rows, the same on every rank; (n,) for ``reduction="none"``.

    Raises:
        ValueError: on every rank, where one rank's arguments are wrong or ranks differ in one.
        TypeError: an unknown option; on the rank where it is none, something that is no tensor.

    Memory of the gradients: 16-bit ones are added up over ranks in float32.

    Source: the scale of the gradient is where implementations differ most. Gathering without
    gradient and putting back one's own rows, as in SimCSE's published code (Gao et al. 2021,
    arXiv 2104.08821), gives 1 / W of it under DistributedDataParallel with W ranks.
    """
    known = one_process.__kwdefaults__ or {}
    for name in options:
        if name not in known:
            raise TypeError(f"info_nce() got an unexpected keyword argument {name!r}")
    ranks = members(group)
    if ranks > 1:
        call = {"strategy": strategy, "gradient": gradient, **known, **options}
        return _of_ranks(ranks, group, query, key, negatives, call)
    _check_choices(strategy, gradient)
    return one_process(query, key, negatives, **options)


class InfoNCELoss(losses.InfoNCELoss):
    """:func:`contrastive_ops.distributed.info_nce` as a module.

    ``options`` are those of :class:`contrastive_ops.InfoNCELoss`; a temperature that is learned
    needs no DistributedDataParallel around this module.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup | None = None,
        strategy: Literal["all_gather", "ring"] = "all_gather",
        gradient: Literal["mean", "sum"] = "mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_choices(strategy, gradient)
        self.options |= {"group": group, "strategy": strategy, "gradient": gradient}

    function = staticmethod(info_nce)


@torch.compiler.disable
def _of_ranks(
    ranks: int,
    group: dist.ProcessGroup | None,
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    call: dict[str, Any],
) -> Tensor:
    for name in ("temperature", "scale"):
        if isinstance(call[name], Tensor):
            call[name] = shared(call[name], group)
    facts = _facts(query, key, negatives, call)
    counts, error = (0, 0, 0), None
    try:
        problem, operands = _described(query, key, negatives, call)
        counts = _counts(operands)
    except (TypeError, ValueError) as mistake:
        error = mistake
    queries, *candidates = agree(group, facts, counts, error)
    layout = Layout(*candidates)

    strategy = STRATEGIES[call["strategy"]]
    reduction, row_weight, statistics = call["reduction"], call["row_weight"], call["statistics"]
    weight = _weight(row_weight, reduction, operands, queries)
    summary = None if statistics is None else empty_summary(operands)
    of_rows = None if reduction == "none" else weight
    part = rank_loss(
        strategy, problem, operands, queries, layout, of_rows, call["backend"], summary
    )
    if summary is not None:
        statistics(statistics_of(problem, _as_wide(operands, layout), summary))
    if negatives is not None and negatives.numel() == 0 and negatives.requires_grad:
        part = part + negatives.sum()  # 0, for an empty gradient instead of none
    if reduction == "none":
        return part if row_weight is None else part * weight
    return total(part, group, ranks if call["gradient"] == "mean" else 1)


def _check_choices(strategy: str, gradient: str) -> None:
    check.choice("strategy", strategy, tuple(STRATEGIES))
    check.choice("gradient", gradient, GRADIENTS)


def _facts(
    query: Tensor, key: Tensor, negatives: Tensor | None, call: dict[str, Any]
) -> dict[str, str]:
    """What all ranks must have alike."""
    if isinstance(negatives, Tensor) and negatives.numel() == 0:
        negatives = None
    given = {"query": query, "key": key, "negatives": negatives, **call}
    facts = {name: fact(value) for name, value in given.items() if name not in _OWN_AFFAIR}
    device = query.device.type if isinstance(query, Tensor) else "cpu"
    return {**facts, "autocast": fact(torch.is_autocast_enabled(device))}


def _described(
    query: Tensor, key: Tensor, negatives: Tensor | None, call: dict[str, Any]
) -> tuple[SimilarityProblem, Operands]:
    """This rank's rows as a problem, and whatever else can be wrong with the arguments."""
    _check_choices(call["strategy"], call["gradient"])
    check.choice("reduction", call["reduction"], ("none", "mean", "sum"))
    names = inspect.signature(describe).parameters.keys() & call.keys() - {"temperature"}
    problem, operands = describe(
        query,
        key,
        negatives,
        temperature=temperature_of(call["temperature"], call["scale"]),
        **{name: call[name] for name in names},
    )
    problem, operands = with_prefixes(
        problem, operands, call["matryoshka_dims"], call["matryoshka_weights"]
    )
    if call["row_weight"] is not None:
        check.matrix("row_weight", call["row_weight"], (1,))
        check.shaped("row_weight", call["row_weight"], ((len(query),),), query)
    if call["strategy"] == "ring":
        check_ring(problem, operands, call["statistics"])
    backends.choose(call["backend"], operands.query.device, operands.query.dtype)
    return problem, operands


def _counts(o: Operands) -> tuple[int, int, int]:
    return len(o.query), len(o.key), 0 if o.negatives is None else len(o.negatives)


def _weight(
    row_weight: Tensor | None, reduction: str, operands: Operands, queries: Spread
) -> Tensor:
    """(n,) what each of this rank's rows counts in the loss."""
    if row_weight is not None:
        every = gather(row_weight.detach(), queries)
        return row_shares(every, queries.total, operands, reduction)[queries.own]
    share = 1.0 / queries.total if reduction == "mean" else 1.0
    dtype = operands.accumulation_dtype
    return torch.full((len(operands.query),), share, dtype=dtype, device=operands.query.device)


def _as_wide(o: Operands, layout: Layout) -> Operands:
    """Operands with as many candidates as all ranks have, for their number alone."""
    if o.negatives is not None:
        o = o._replace(negatives=o.negatives[:1].expand(layout.negatives.total, -1))
    return o._replace(key=o.key[:1].expand(layout.keys.total, -1), positives=positive_index(o))
