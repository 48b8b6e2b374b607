"""Losses through a head: classes of a pair, regression of its cosine, a frozen vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import full_precision, unit_rows
from .arguments import Number, Reduction, matrices, over_temperature, pairs, reduced, wide
from .distance import with_key_bias
from .info_nce import info_nce
from .statistics import Receiver


def pair_features(u: Tensor, v: Tensor, *, product: bool = False) -> Tensor:
    """[u; v; |u - v|], and u * v where ``product``: (N, 3 D) or (N, 4 D)."""
    u, v = pairs(u=u, v=v)
    parts = [u, v, (u - v).abs()]
    return torch.cat([*parts, u * v] if check.flag("product", product) else parts, 1)


class PairSoftmaxLoss(nn.Module):
    """Cross-entropy of a linear classifier over the features of a pair (SBERT, InferSent).

    Args:
        dim: D.
        classes: how many.
        product: whether u * v is a feature too (InferSent).

    The call takes (N, D) embeddings u and v and (N,) int64 classes.

    Source: Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084); Conneau et al.
    2017, "InferSent" (arXiv 1705.02364)
    """

    def __init__(self, dim: int, classes: int, *, product: bool = False) -> None:
        super().__init__()
        self.product = check.flag("product", product)
        self.classifier = nn.Linear(dim * (4 if product else 3), classes)

    def forward(self, u: Tensor, v: Tensor, targets: Tensor) -> Tensor:
        logits = self.classifier(pair_features(u, v, product=self.product))
        return nn.functional.cross_entropy(wide(logits), targets)


def cosine_regression(
    u: Tensor, v: Tensor, targets: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Regression of a pair's cosine, :math:`(\cos(u_i, v_i) - y_i)^2`.

    Args:
        u, v: (N, D).
        targets: y, (N,) floating, not differentiated.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes or dtypes that do not go together.

    Source: Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084)
    """
    u, v = (unit_rows(wide(x)) for x in pairs(u=u, v=v))
    check.matrix("targets", targets, (1,))
    check.shaped("targets", targets, ((u.shape[0],),), u)
    errors = (u * v).sum(1) - targets.detach().to(u.dtype)
    return reduced(errors.square(), reduction)


def vocabulary_softmax(
    embeddings: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: Number | Tensor = 1.0,
    reduction: Reduction = "mean",
    backend: str | None = None,
    workspace_bytes: int | None = None,
    statistics: Receiver | None = None,
) -> Tensor:
    r"""Cross-entropy of a word among a vocabulary, :math:`-\log \mathrm{softmax}(W e_i + b)_{y_i}`.

    The N x V logits are never held; a frozen W (no gradient asked) saves its product.

    Args:
        embeddings: (N, D), of definitions.
        weight: (V, D), the vocabulary's rows.
        targets: (N,) int64 in [0, V).
        bias: (V,), differentiated if it wants to be.
        temperature, reduction, backend, workspace_bytes, statistics: as in
            :func:`contrastive_ops.info_nce`, which this is with dot products. Statistics are of the
            logits with their bias.

    Raises:
        ValueError: as in :func:`info_nce`.

    Source: Tsukagoshi et al. 2021, "DefSent" (arXiv 2105.04339).
    """
    embeddings, weight = matrices(embeddings=embeddings, weight=weight)
    targets = check.integers("targets", targets, ((embeddings.shape[0],),), embeddings)
    words = weight.shape[0]
    if check.readable(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < words:
        raise ValueError(f"targets: got words out of range, expected [0, {words})")
    if bias is not None:
        check.matrix("bias", bias, (1,))
        check.shaped("bias", bias, ((weight.shape[0],),), embeddings)
        embeddings, weight = with_key_bias(embeddings, weight, bias, temperature)
    return info_nce(
        embeddings,
        weight,
        temperature=temperature,
        positives=targets,
        normalize=False,
        reduction=reduction,
        backend=backend,
        workspace_bytes=workspace_bytes,
        statistics=statistics,
    )


def score_nce(
    scores: Tensor,
    *,
    positives: Tensor | None = None,
    temperature: Number | Tensor = 1.0,
    symmetric: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""InfoNCE of scores that are given: late interaction's, sparse ones, an ensemble's.

    Args:
        scores: (N, M), M >= N unless ``positives``; column i is the positive of row i.
        positives: (N,) int64 columns instead.
        temperature: T > 0, a number or a 0-dim tensor, then with gradient.
        symmetric: the mean with the columns' loss over the first N columns; without ``positives``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes that do not go together.
    """
    (scores,) = matrices(scores=scores)
    n, m = scores.shape
    check.flag("symmetric", symmetric)
    if positives is None:
        if m < n:
            raise ValueError(f"scores: got shape {(n, m)}, expected at least as many columns")
        target = torch.arange(n, device=scores.device)
    else:
        target = check.integers("positives", positives, ((n,),), scores)
        if symmetric:
            raise ValueError("symmetric: got True with positives, expected positives=None")
        if check.readable(target) and not 0 <= int(target.min()) <= int(target.max()) < m:
            raise ValueError(f"positives: got columns out of range, expected [0, {m})")
    with full_precision(scores.device):
        logits = over_temperature(wide(scores), temperature)
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        if symmetric:
            back = nn.functional.cross_entropy(logits[:, :n].T, target, reduction="none")
            losses = (losses + back) / 2
    return reduced(losses, reduction)
