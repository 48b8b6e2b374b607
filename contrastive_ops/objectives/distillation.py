"""A student's similarities, margins or features against a teacher's."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import check
from ..engine.reductions import row_lse
from ..engine.similarity import unit_rows
from ..engine.stripes import Tensors, row_loss, stripe_losses
from .arguments import (
    Number,
    Reduction,
    inverse_temperature,
    matrices,
    pairs,
    reduced,
    row_ids,
    shares,
    softplus,
    vectors,
    wide,
)
from .groups import against_others, own_logits
from .ranking import order_losses

Divergence = Literal["kl", "cross_entropy", "js", "list_mle"]


def similarity_divergence(
    query: Tensor,
    key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    divergence: Divergence = "kl",
    temperature: Number | Tensor = 0.05,
    teacher_temperature: Number | Tensor = 0.05,
    exclude_self: bool = False,
    detach_teacher: bool = True,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Rows of the student's similarities against the teacher's, neither matrix being held.

    With :math:`p_i = \mathrm{softmax}(t_i / T')` and :math:`q_i = \mathrm{softmax}(s_i / T)` over M
    candidates, L_i is

    * ``"kl"``: :math:`\sum_j p_{ij} \log(p_{ij} / q_{ij})`
    * ``"cross_entropy"``: :math:`-\sum_j p_{ij} \log q_{ij}` (ListNet)
    * ``"js"``: :math:`\tfrac12 KL(p \| m) + \tfrac12 KL(q \| m)`, m the mean of p and q
    * ``"list_mle"``: the likelihood under s / T of the teacher's order (:func:`list_mle`)

    A stripe of rows at a time in plain PyTorch, its gradient finished with it: 1 product of the
    teacher's and 3 of the student's (3 and 3 where the teacher gets gradient too).

    Args:
        query, key: (N, D) and (M, D), the student's.
        teacher_query, teacher_key: (N, E) and (M, E), of the student's dtype.
        temperature, teacher_temperature: T, T' > 0, numbers or 0-dim tensors, then with gradient.
        exclude_self: leaves candidate i out of row i on both sides.
        detach_teacher: whether no gradient reaches the teacher's tensors.
        normalize: cosine similarities if True, dot products if False; of both.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Returns:
        0-dim, or (N,): float32, float64 for float64 inputs.

    Raises:
        ValueError: counts of rows that differ, or as in :func:`contrastive_ops.info_nce`.

    Source: Liu et al. 2023, "RankCSE" (arXiv 2305.16726) (its JS is ours in full, not
    the entropy that a clamp in a public port leaves of it); Limkonchotiwat et al. 2023, "An
    Efficient Self-Supervised Cross-View Training For Sentence Embedding" (SCT)
    """
    check.choice("divergence", divergence, ("kl", "cross_entropy", "js", "list_mle"))
    query, key = matrices(query=query, key=key)
    teacher = matrices(teacher_query=teacher_query, teacher_key=teacher_key)
    for name, x, like in (("teacher_query", teacher[0], query), ("teacher_key", teacher[1], key)):
        if x.shape[0] != like.shape[0]:
            raise ValueError(f"{name}: got {x.shape[0]} rows, expected {like.shape[0]}")
    q, k, tq, tk = (wide(x) for x in (query, key, *teacher))
    if check.flag("detach_teacher", detach_teacher):
        tq, tk = tq.detach(), tk.detach()
    if check.flag("normalize", normalize):
        q, k, tq, tk = (unit_rows(x) for x in (q, k, tq, tk))
    tq = tq.to(q.dtype) * inverse_temperature(teacher_temperature, q, "teacher_temperature")
    return stripe_losses(
        _divergence_rows,
        (q * inverse_temperature(temperature, q), tq, row_ids(q.shape[0], q)),
        (k, tk.to(q.dtype)),
        shares(reduction, q.shape[0]),
        backend=backend,
        workspace_bytes=workspace_bytes,
        divergence=divergence,
        exclude_self=check.flag("exclude_self", exclude_self),
    )


def similarity_mse(
    query: Tensor,
    key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    normalize: bool = True,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""Mean of :math:`(s_{ij} - t_{ij})^2` over all pairs, neither matrix being held.

    Args:
        query, key: (N, D) and (M, D), the student's.
        teacher_query, teacher_key: (N, E) and (M, E), not differentiated.
        normalize: cosine similarities if True, dot products if False; of both.
        backend, workspace_bytes: as in :func:`contrastive_ops.sigmoid_loss`.

    Raises:
        ValueError: counts of rows that differ, or as in :func:`contrastive_ops.info_nce`.
    """
    query, key = matrices(query=query, key=key)
    teacher = matrices(teacher_query=teacher_query, teacher_key=teacher_key)
    for name, x, like in (("teacher_query", teacher[0], query), ("teacher_key", teacher[1], key)):
        if x.shape[0] != like.shape[0]:
            raise ValueError(f"{name}: got {x.shape[0]} rows, expected {like.shape[0]}")
    rows = [wide(query), wide(key), *(wide(x.detach()) for x in teacher)]
    q, k, tq, tk = (unit_rows(x) for x in rows) if check.flag("normalize", normalize) else rows
    return stripe_losses(
        _squared_error_rows,
        (q, tq.to(q.dtype)),
        (k, tk.to(q.dtype)),
        1.0 / (q.shape[0] * k.shape[0]),
        backend=backend,
        workspace_bytes=workspace_bytes,
    )


def group_distillation(
    query: Tensor,
    passages: Tensor,
    teacher: Tensor,
    *,
    temperature: Number | Tensor = 0.02,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    r"""BGE's group distillation: each passage of a query's group in turn, those before it left out.

    .. math:: L_i = \sum_g t_{ig} \Big[ \log\Big(\sum_{g' \ge g} e^{s_{ig'}} + \sum_{j \ne i}
              \sum_{g'} e^{s(q_i, k_{jg'})}\Big) - s_{ig} \Big]

    Costs 4 matrix products over the N G passages; no logits are held.

    Args:
        query: (N, D).
        passages: (N, G, D), each query's group.
        teacher: t, (N, G) weights, a softmax of the teacher's scores say, not differentiated.
        temperature, normalize, reduction, backend, workspace_bytes: as in
            :func:`contrastive_ops.info_nce`.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: FlagEmbedding's ``m3_kd_loss``.
    """
    problem, operands = against_others(
        query,
        "passages",
        passages,
        temperature=temperature,
        normalize=normalize,
        workspace_bytes=workspace_bytes,
    )
    check.matrix("teacher", teacher)
    check.shaped("teacher", teacher, (tuple(passages.shape[:2]),), query)
    logits = own_logits(problem, operands)
    rest = logits.flip(1).logcumsumexp(1).flip(1)
    others = row_lse(problem, operands, backend).unsqueeze(1)
    # log(e^rest + e^others) - logit in two parts: of a group's last passage the second is nothing.
    within = torch.nn.functional.pad((rest - logits)[:, :-1], (0, 1))
    losses = teacher.detach().to(logits.dtype) * (softplus(others - rest) + within)
    return reduced(losses.sum(1), reduction)


def margin_mse(
    positive_scores: Tensor,
    negative_scores: Tensor,
    teacher_margins: Tensor,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""MarginMSE, :math:`(s_{pos} - s_{neg} - m_{teacher})^2`.

    Args:
        positive_scores: (N,) student's scores.
        negative_scores: (N,) or (N, H).
        teacher_margins: of the same shape as ``negative_scores``, not differentiated.
        reduction: ``"mean"`` and ``"sum"`` over all margins, or ``"none"``, their shape.

    Raises:
        ValueError: shapes that do not go together.

    Source: Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with
    Cross-Architecture Knowledge Distillation" (arXiv 2010.02666).
    """
    (positive,) = vectors(positive_scores=positive_scores)
    check.matrix("negative_scores", negative_scores, (1, 2))
    n = positive.shape[0]
    if negative_scores.shape[0] != n or negative_scores.numel() == 0:
        raise ValueError(
            f"negative_scores: got shape {tuple(negative_scores.shape)}, expected ({n},) or "
            f"({n}, H)"
        )
    check.matrix("teacher_margins", teacher_margins, (1, 2))
    check.shaped("teacher_margins", teacher_margins, (tuple(negative_scores.shape),), positive)
    negative = wide(negative_scores)
    if negative.dim() == 2:
        positive = positive.unsqueeze(1)
    errors = (positive - negative - teacher_margins.detach().to(negative.dtype)).square()
    check.choice("reduction", reduction, ("none", "mean", "sum"))
    if reduction == "none":
        return errors
    return errors.mean() if reduction == "mean" else errors.sum()


def feature_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    per_dimension: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared distance of features (or logits), :math:`\|x_i - t_i\|^2`.

    Args:
        student, teacher: (N, D); the teacher is not differentiated.
        per_dimension: divides by D, as ``F.mse_loss`` does.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes or dtypes that differ.

    Source: Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using
    Knowledge Distillation" (arXiv 2004.09813): the sum of two calls, one a language.
    """
    student, teacher = pairs(student=student, teacher=teacher)
    squares = (wide(student) - wide(teacher.detach())).square()
    if check.flag("per_dimension", per_dimension):
        return reduced(squares.mean(1), reduction)
    return reduced(squares.sum(1), reduction)


def feature_cosine(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Cosine distance of features, :math:`1 - \cos(x_i, t_i)`; as :func:`feature_mse`."""
    student, teacher = pairs(student=student, teacher=teacher)
    cosine = (unit_rows(wide(student)) * unit_rows(wide(teacher.detach()))).sum(1)
    return reduced(1 - cosine, reduction)


def embedding_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Number | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL between softmaxes over the embedding's own entries, :math:`KL(\mathrm{softmax}(t/T) \|
    \mathrm{softmax}(x/T))`.

    Args:
        student, teacher: (N, D); the teacher is not differentiated.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes or dtypes that differ, or a temperature that is not positive.

    Source: Li et al. 2024, "2D Matryoshka Sentence Embeddings" (arXiv 2402.14776).
    """
    student, teacher = (wide(x) for x in pairs(student=student, teacher=teacher))
    inverse = inverse_temperature(temperature, student)
    log_q = torch.log_softmax(student * inverse, 1)
    log_p = torch.log_softmax(teacher.detach() * inverse, 1)
    return reduced((log_p.exp() * (log_p - log_q)).sum(1), reduction)


@row_loss
def _divergence_rows(rows: Tensors, shared: Tensors, start: int, **options: Any) -> Tensor:
    query, teacher_query, index = rows
    key, teacher_key = shared
    assert query is not None
    assert teacher_query is not None
    assert index is not None
    assert key is not None
    assert teacher_key is not None
    student, teacher = query @ key.T, teacher_query @ teacher_key.T
    out = None
    if options["exclude_self"]:
        out = torch.arange(key.shape[0], device=key.device) == index.unsqueeze(1)
        student, teacher = (x.masked_fill(out, -torch.inf) for x in (student, teacher))
    how = options["divergence"]
    if how == "list_mle":
        return _order_losses(student, teacher.detach())
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    if out is not None:
        log_q, log_p = log_q.masked_fill(out, 0.0), log_p.masked_fill(out, 0.0)
    p = log_p.exp() if out is None else log_p.exp().masked_fill(out, 0.0)
    if how == "cross_entropy":
        return -(p * log_q).sum(1)
    if how == "kl":
        return (p * (log_p - log_q)).sum(1)
    q = log_q.exp() if out is None else log_q.exp().masked_fill(out, 0.0)
    log_m = torch.logaddexp(log_p, log_q) - torch.full_like(log_p[:1, :1], 2.0).log()
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum(1) / 2


def _order_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """:func:`.ranking.order_losses` where entries of -inf are no part of a list."""
    nothing = logits == -torch.inf
    if not bool(nothing.any()):
        return order_losses(logits, targets)
    order = targets.argsort(stable=True, dim=1, descending=True)
    ordered, gone = logits.gather(1, order), nothing.gather(1, order)
    # Far below all others, so that its part of any sum is 0, and finite, so that gradients are.
    low = logits.detach().masked_fill(nothing, torch.inf).amin(1, keepdim=True) - 1e4
    ordered = torch.where(gone, low, ordered)
    rest = ordered.flip(1).logcumsumexp(1).flip(1)
    return (rest - ordered).masked_fill(gone, 0.0).sum(1)


@row_loss
def _squared_error_rows(rows: Tensors, shared: Tensors, start: int, **_: Any) -> Tensor:
    query, teacher_query = rows
    key, teacher_key = shared
    assert query is not None
    assert teacher_query is not None
    assert key is not None
    assert teacher_key is not None
    return (query @ key.T - teacher_query @ teacher_key.T).square().sum(1)
