"""From the arguments of a softmax loss to its similarity problem, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import check
from .problem import DEFAULT_WORKSPACE_BYTES, PRECISIONS, SLACK_ULPS, Operands, SimilarityProblem
from .similarity import unit_rows


def describe(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    symmetric: bool = False,
    in_batch: bool = True,
    negatives_scope: str = "all",
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    false_negative_margin: float | None = None,
    guide: Sequence[Tensor] | None = None,
    guide_margin: float = 0.0,
    margin: float = 0.0,
    negative_log_weight: float | Tensor | None = None,
    own_negative_log_weight: float | None = None,
    label_smoothing: float = 0.0,
    normalize: bool = True,
    workspace_bytes: int | None = None,
    precision: str | None = None,
) -> tuple[SimilarityProblem, Operands]:
    """The problem that :func:`contrastive_ops.info_nce` documents. ValueError on bad arguments."""
    query, key, negatives = _embeddings(query, key, negatives)
    n, m = query.shape[0], key.shape[0]
    own = negatives_scope == "own"
    if negatives_scope != "all" and not own:
        check.choice("negatives_scope", negatives_scope, ("all", "own"))
    if check.flag("symmetric", symmetric) and not check.flag("in_batch", in_batch):
        raise ValueError("symmetric: got True with in_batch=False, expected in_batch=True")
    if positives is not None:
        positives = _positives(positives, query, m)
    elif m < n:
        raise ValueError(f"key: got {m} rows, expected at least {n} as in query, or positives")

    scale, temperature_tensor = 1.0, None
    if isinstance(temperature, Tensor):
        temperature_tensor = check.positive_scalar("temperature", temperature, query.device)
    else:
        scale = 1.0 / check.temperature("temperature", temperature)

    operands = Operands(query, key, None, None, temperature_tensor, None, positives)
    if query_ids is not None or key_ids is not None:
        operands = _with_ids(operands, query_ids, key_ids)
    if guide is not None:
        operands = _with_guide(operands, guide, guide_margin, negatives)
    elif guide_margin:
        check.number("guide_margin", guide_margin)
    group = 0
    group_log_weight = 0.0
    if negatives is not None:
        if own and negatives.dim() != 3:
            raise ValueError(
                f"negatives_scope: got 'own' for negatives of shape {tuple(negatives.shape)}, "
                "expected (N, H, D)"
            )
        operands = _with_negatives(operands, negatives, own, negative_ids, negative_log_weight)
        if own_negative_log_weight is not None:
            group_log_weight = _log_weight("own_negative_log_weight", own_negative_log_weight)
            if negatives.dim() != 3:
                raise ValueError(
                    "own_negative_log_weight: got negatives of shape "
                    f"{tuple(negatives.shape)}, expected (N, H, D), which say whose they are"
                )
            if own:
                operands = operands._replace(
                    own_bias=_sum_bias(operands.own_bias, group_log_weight, negatives)
                )
                group_log_weight = 0.0
            else:
                group = negatives.shape[1]
    elif (
        negative_ids is not None
        or negative_log_weight is not None
        or own_negative_log_weight is not None
    ):
        _need_negatives(
            negative_ids=negative_ids,
            negative_log_weight=negative_log_weight,
            own_negative_log_weight=own_negative_log_weight,
        )

    limit = math.inf
    if false_negative_margin is not None:
        limit = check.number("false_negative_margin", false_negative_margin)
    room = DEFAULT_WORKSPACE_BYTES
    if workspace_bytes is not None:
        room = check.byte_count("workspace_bytes", workspace_bytes)
    # Positional, in the order of the fields: this is on the way of every small batch.
    problem = SimilarityProblem(
        check.flag("normalize", normalize),
        check.flag("in_batch", in_batch),
        symmetric,
        scale,
        check.number("margin", margin),
        limit,
        group,
        group_log_weight,
        0,
        check.number("label_smoothing", label_smoothing, 0.0, 1.0),
        room,
        precision=PRECISIONS[0] if precision is None else _precision(precision),
    )
    return problem, operands


def _embeddings(query: Any, key: Any, negatives: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three operands, of one width, dtype and device."""
    check.matrix("query", query)
    check.matrix("key", key)
    if negatives is not None:
        check.matrix("negatives", negatives, (2, 3))
    if torch.is_autocast_enabled("cpu" if query.is_cpu else query.device.type):
        query, key, negatives = _widest(query, key, negatives)
    if query.shape[0] < 1 or query.shape[1] < 1:
        raise ValueError(f"query: got shape {tuple(query.shape)}, expected at least 1 x 1")
    check.same("key", key, "query", query)
    if key.shape[0] < 1:
        raise ValueError(f"key: got shape {tuple(key.shape)}, expected at least 1 row")
    if negatives is not None:
        check.same("negatives", negatives, "query", query)
        if negatives.dim() == 3 and negatives.shape[0] != query.shape[0]:
            raise ValueError(
                f"negatives: got shape {tuple(negatives.shape)}, expected ({query.shape[0]}, H, "
                f"{query.shape[1]}) or (K, {query.shape[1]})"
            )
        if negatives.numel() == 0:
            negatives = None
    return query, key, negatives


def _widest(
    query: Tensor, key: Tensor, negatives: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = torch.promote_types(query.dtype, key.dtype)
    if negatives is None:
        return query.to(dtype), key.to(dtype), None
    dtype = torch.promote_types(dtype, negatives.dtype)
    return query.to(dtype), key.to(dtype), negatives.to(dtype)


def _positives(positives: Any, query: Tensor, m: int) -> Tensor:
    n = query.shape[0]
    x = check.tensor("positives", positives)
    width = x.shape[1] if x.dim() == 2 else 1
    index = check.integers("positives", x, ((n,), (n, max(width, 1))), query).view(n, -1)
    if check.readable(index):
        low, high = (int(bound) for bound in index.aminmax())
        floor = -1 if x.dim() == 2 else 0
        if low < floor or high >= m:
            raise ValueError(
                f"positives: got indices from {low} to {high}, expected [0, {m}) as key has rows"
                + (", or -1 for none" if floor else "")
            )
        ordered = index.sort(1).values
        if width > 1 and bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
            raise ValueError("positives: got an index twice in a row, expected each once")
        if floor and not bool((index >= 0).any(1).all()):
            raise ValueError("positives: got a row of -1 alone, expected at least one index a row")
    return index


def _with_ids(o: Operands, query_ids: Any, key_ids: Any) -> Operands:
    if query_ids is None or key_ids is None:
        missing = "query_ids" if query_ids is None else "key_ids"
        raise ValueError(f"{missing}: got None, expected query_ids and key_ids, or neither")
    n, m = o.query.shape[0], o.key.shape[0]
    return o._replace(
        query_ids=check.integers("query_ids", query_ids, ((n,),), o.query).view(1, n),
        key_ids=check.integers("key_ids", key_ids, ((m,),), o.query).view(1, m),
    )


def _with_guide(o: Operands, guide: Any, guide_margin: float, negatives: Tensor | None) -> Operands:
    """The guide's unit rows and each row's threshold: the weakest positive's score - margin."""
    check.number("guide_margin", guide_margin)
    if isinstance(guide, Tensor) or not isinstance(guide, Sequence) or len(guide) not in (2, 3):
        raise ValueError(
            "guide: expected (guide_query, guide_key) or (guide_query, guide_key, guide_negatives)"
        )
    if negatives is None and len(guide) == 3:
        if not _empty(guide[2]):
            raise ValueError("guide: got guide_negatives, expected negatives besides them")
        guide = guide[:2]
    names = ("guide[0]", "guide[1]", "guide[2]")
    rows: list[Tensor] = []
    for name, g, operand in zip(names, guide, (o.query, o.key, negatives), strict=False):
        assert operand is not None
        check.matrix(name, g, (operand.dim(),))
        check.shaped(name, g, ((*operand.shape[:-1], guide[0].shape[-1]),), o.query)
        rows.append(unit_rows(g.detach().to(torch.float32)))
    index = o.positives
    if index is None:
        index = torch.arange(o.query.shape[0], device=o.query.device).unsqueeze(1)
    scores = torch.stack(
        [(rows[0] * rows[1][column.clamp(min=0)]).sum(1) for column in index.unbind(1)], 1
    )
    weakest = torch.where(index >= 0, scores, math.inf).amin(1)
    slack = SLACK_ULPS * torch.finfo(torch.float32).eps
    return o._replace(
        guide_query=rows[0],
        guide_key=rows[1],
        guide_negatives=rows[2] if len(rows) == 3 else None,
        guide_threshold=weakest - guide_margin + slack,
    )


def _with_negatives(
    o: Operands,
    negatives: Tensor,
    own: bool,
    negative_ids: Any,
    log_weight: float | Tensor | None,
) -> Operands:
    """Shared negatives flattened to (K, D), or each query's own with all that concerns them."""
    shape = negatives.shape[:-1]
    bias: Tensor | None = None
    if log_weight is not None:
        bias = _bias(log_weight, negatives, o.accumulation_dtype)
    ids = None
    if negative_ids is not None:
        if o.query_ids is None:
            raise ValueError("negative_ids: expected query_ids and key_ids besides it, got none")
        ids = check.integers("negative_ids", negative_ids, (tuple(shape),), o.query)
    if not own:
        guide_negatives = o.guide_negatives
        return o._replace(
            negatives=negatives.reshape(-1, negatives.shape[-1]),
            negative_ids=None if ids is None else ids.reshape(1, -1),
            negative_bias=None if bias is None else bias.reshape(-1),
            guide_negatives=(
                None
                if guide_negatives is None
                else guide_negatives.reshape(-1, guide_negatives.shape[-1])
            ),
        )
    # O(N H) numbers: exclusions of own negatives become log-weights of -inf at once.
    if ids is not None and o.query_ids is not None:
        same = ids == o.query_ids.view(-1, 1)
        bias = _sum_bias(bias, torch.where(same, -math.inf, 0.0), negatives)
    if o.guide_negatives is not None and o.guide_query is not None:
        assert o.guide_threshold is not None
        scores = torch.einsum("ng,nhg->nh", o.guide_query, o.guide_negatives)
        above = scores > o.guide_threshold.unsqueeze(1)
        bias = _sum_bias(bias, torch.where(above, -math.inf, 0.0), negatives)
    return o._replace(own_negatives=negatives, own_bias=bias, guide_negatives=None)


def _bias(log_weight: Any, negatives: Tensor, dtype: torch.dtype) -> Tensor:
    shape = negatives.shape[:-1]
    if not isinstance(log_weight, Tensor):
        value = _log_weight("negative_log_weight", log_weight)
        return torch.full(shape, value, dtype=dtype, device=negatives.device)
    if not log_weight.is_floating_point():
        raise ValueError(f"negative_log_weight: got {log_weight.dtype}, expected a floating dtype")
    check.shaped("negative_log_weight", log_weight, (tuple(shape),), negatives)
    if check.readable(log_weight) and not bool((log_weight.detach() < math.inf).all()):
        raise ValueError("negative_log_weight: got +inf or NaN, expected finite numbers or -inf")
    return log_weight.detach().to(dtype)


def _sum_bias(bias: Tensor | None, more: Tensor | float, negatives: Tensor) -> Tensor:
    dtype = torch.float64 if negatives.dtype == torch.float64 else torch.float32
    start = torch.zeros(negatives.shape[:-1], dtype=dtype, device=negatives.device)
    return (start if bias is None else bias) + more


def _log_weight(name: str, value: Any) -> float:
    """A finite number or -inf."""
    if isinstance(value, float) and value == -math.inf:
        return value
    return check.number(name, value)


def _need_negatives(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not _empty(value):
            raise ValueError(f"{name}: expected negatives besides it, got none")


def _empty(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 0


def _precision(value: Any) -> str:
    if value not in PRECISIONS:
        raise ValueError(f"precision: got {value!r}, expected one of {', '.join(PRECISIONS)}")
    return str(value)
