"""Objectives on D x D statistics of a batch, and whitening: plain PyTorch, O(N D + D^2) memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import full_precision, unit_rows
from .arguments import Number, Reduction, matrices, pairs, reduced, wide
from .geometry import unit_directions


def barlow_twins(
    view_a: Tensor, view_b: Tensor, *, off_diagonal_weight: Number = 0.0051, eps: Number = 1e-5
) -> Tensor:
    r"""Barlow Twins: :math:`\sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2`.

    C is the D x D cross-correlation of the views, each feature standardised over the batch
    (variance of the batch itself, plus ``eps``, as batch normalisation has it).

    Args:
        view_a, view_b: (N, D), N >= 2.
        off_diagonal_weight: lambda.
        eps: >= 0.

    Raises:
        ValueError: a single row, or shapes or dtypes that differ.

    Source: Zbontar et al. 2021 (arXiv 2103.03230), eq. 1.
    """
    weight = check.number("off_diagonal_weight", off_diagonal_weight)
    eps = check.number("eps", eps, 0.0)
    a, b = _batches(view_a=view_a, view_b=view_b)
    with full_precision(a.device):
        c = _standardised(a, eps).T @ _standardised(b, eps) / a.shape[0]
    diagonal = c.diagonal()
    return (diagonal - 1).square().sum() + weight * (c.square().sum() - diagonal.square().sum())


def vicreg(
    view_a: Tensor,
    view_b: Tensor,
    *,
    invariance_weight: Number = 25.0,
    variance_weight: Number = 25.0,
    covariance_weight: Number = 1.0,
    target_std: Number = 1.0,
    eps: Number = 1e-4,
) -> Tensor:
    r"""VICReg: invariance, variance and covariance terms.

    .. math:: \lambda\, \mathrm{mse}(a, b)
              + \mu\, \tfrac12 \textstyle\sum_{z \in \{a, b\}} \mathrm{mean}_d \max(0, \gamma -
              \sqrt{\mathrm{var}(z_d) + \varepsilon})
              + \nu \sum_{z} \tfrac1D \sum_{d \ne d'} \mathrm{cov}(z)_{dd'}^2

    with unbiased variances and covariances, as in the authors' code.

    Args:
        view_a, view_b: (N, D), N >= 2.
        invariance_weight, variance_weight, covariance_weight: lambda, mu, nu.
        target_std: gamma.
        eps: >= 0.

    Raises:
        ValueError: a single row, or shapes or dtypes that differ.

    Source: Bardes et al. 2022 (arXiv 2105.04906)
    """
    weights = [
        check.number(name, value)
        for name, value in (
            ("invariance_weight", invariance_weight),
            ("variance_weight", variance_weight),
            ("covariance_weight", covariance_weight),
        )
    ]
    gamma, eps = check.number("target_std", target_std), check.number("eps", eps, 0.0)
    a, b = _batches(view_a=view_a, view_b=view_b)
    n, width = a.shape
    spread = a.new_zeros(())
    correlation = a.new_zeros(())
    for z in (a, b):
        centred = z - z.mean(0)
        variance = centred.square().sum(0) / (n - 1)
        spread = spread + (gamma - (variance + eps).sqrt()).clamp(min=0.0).mean() / 2
        with full_precision(z.device):
            covariance = centred.T @ centred / (n - 1)
        off = covariance.square().sum() - covariance.diagonal().square().sum()
        correlation = correlation + off / width
    invariance = (a - b).square().mean()
    return weights[0] * invariance + weights[1] * spread + weights[2] * correlation


def byol(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""BYOL: :math:`2 - 2 \cos(p_i, t_i)`; the target, an EMA encoder's, is not differentiated.

    The symmetric loss is the sum of two calls, one a view.

    Args:
        prediction, target: (N, D).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, (N,).

    Raises:
        ValueError: shapes or dtypes that differ.

    Source: Grill et al. 2020 (arXiv 2006.07733)
    """
    prediction, target = pairs(prediction=prediction, target=target)
    p, t = unit_rows(wide(prediction)), unit_rows(wide(target.detach()))
    return reduced(2 - 2 * (p * t).sum(1), reduction)


def cor_info_max(
    view_a: Tensor,
    view_b: Tensor,
    *,
    covariances: tuple[Tensor, Tensor] | None = None,
    memory: Number = 0.01,
    invariance_weight: Number = 0.0,
    eps: Number = 1e-8,
) -> Tensor:
    r"""CorInfoMax: :math:`-\frac1D \sum_{z \in \{a, b\}} \log\det(R_z + \varepsilon I)`.

    R is the covariance of a view's batch, or the running one: memory times the past, which gets no
    gradient, plus 1 - memory times the batch's. :func:`running_covariance` moves the past on.

    Args:
        view_a, view_b: (N, D).
        covariances: the past covariances (D, D) of both views.
        memory: in [0, 1), read where ``covariances`` are given.
        invariance_weight: adds this times the mean of :math:`\|a_i - b_i\|^2`.
        eps: > 0.

    Raises:
        ValueError: shapes or dtypes that do not go together.

    Source: Ozsoy et al. 2022, "Self-Supervised Learning with an Information Maximization Criterion"
    (arXiv 2209.07999)
    """
    a, b = (wide(x) for x in pairs(view_a=view_a, view_b=view_b))
    memory = check.number("memory", memory, 0.0, 1.0)
    weight = check.number("invariance_weight", invariance_weight)
    eps = check.positive_number("eps", eps)
    width = a.shape[1]
    past: tuple[Tensor | None, Tensor | None] = (None, None)
    if covariances is not None:
        for i, r in enumerate(covariances):
            check.matrix(f"covariances[{i}]", r)
            check.shaped(f"covariances[{i}]", r, ((width, width),), a)
        past = covariances
    # In float64: where features depend on each other, float32's rounding is larger than eps.
    information = torch.zeros((), dtype=torch.float64, device=a.device)
    identity = torch.eye(width, dtype=torch.float64, device=a.device)
    for z, before in zip((a, b), past, strict=True):
        r = running_covariance(z.double(), before, memory)
        information = information + torch.linalg.slogdet(r + eps * identity)[1]
    loss = (-information / width).to(a.dtype)
    return loss + weight * (a - b).square().sum(1).mean() if weight else loss


def running_covariance(x: Tensor, past: Tensor | None, memory: Number = 0.01) -> Tensor:
    """(D, D): memory * past (detached) + (1 - memory) * the batch's covariance; without a past,
    the batch's."""
    (x,) = (wide(rows) for rows in matrices(x=x))
    memory = check.number("memory", memory, 0.0, 1.0)
    if past is not None:
        width = x.shape[1]
        check.shaped("past", check.matrix("past", past), ((width, width),), x)
    centred = x - x.mean(0)
    with full_precision(x.device):
        now = centred.T @ centred / x.shape[0]
    return now if past is None else memory * past.detach().to(now) + (1 - memory) * now


def sig_reg(
    x: Tensor,
    *,
    directions: int | Tensor = 256,
    knots: int = 17,
    limit: Number = 3.0,
    times_rows: bool = False,
    seed: int = 0,
) -> Tensor:
    r"""SIGReg: how far projections of a batch are from a standard normal, by their characteristic
    functions (Epps-Pulley).

    .. math:: \frac1A \sum_a \sum_t w_t\, e^{-t^2/2} \Big[ (\overline{\cos t a x} - e^{-t^2/2})^2
              + (\overline{\sin t a x})^2 \Big]

    t at ``knots`` points of [0, limit], w the trapezoidal rule's weights over [-limit, limit].

    Args:
        x: (N, D).
        directions: how many to draw from ``seed`` (a new one each step), or (A, D) of them.
        knots: >= 2.
        limit: > 0.
        times_rows: multiplies by N, as the test statistic is.
        seed: of the draw.

    Raises:
        ValueError: as in :func:`contrastive_ops.info_nce`.

    Source: Balestriero and LeCun 2025, "LeJEPA" (arXiv 2511.08544)
    """
    (x,) = matrices(x=x)
    x = wide(x)
    limit = check.positive_number("limit", limit)
    if isinstance(knots, bool) or not isinstance(knots, int) or knots < 2:
        raise ValueError(f"knots: got {knots!r}, expected an integer >= 2")
    axes = unit_directions(directions, x, seed)
    t = torch.linspace(0, limit, knots, dtype=x.dtype, device=x.device)
    weight = torch.full_like(t, 2 * limit / (knots - 1))
    weight[0] = weight[-1] = limit / (knots - 1)
    normal = (-t.square() / 2).exp()
    with full_precision(x.device):
        projected = x @ axes.T
    statistic = x.new_zeros(())
    for i in range(knots):  # one knot at a time: N x A, not N x A x knots
        phase = projected * t[i]
        error = (phase.cos().mean(0) - normal[i]).square() + phase.sin().mean(0).square()
        statistic = statistic + weight[i] * normal[i] * error.mean()
    return statistic * x.shape[0] if check.flag("times_rows", times_rows) else statistic


def effective_rank(x: Tensor) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    Args:
        x: (N, D). Differentiable; add a multiple of it to a loss as a penalty.

    Source: Roy and Vetterli 2007, "The effective rank" (EUSIPCO)
    """
    (x,) = matrices(x=x)
    values = torch.linalg.svdvals(wide(x))
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(p).sum().exp()


class Whitening:
    """A fitted linear map after which features are uncorrelated and of unit variance.

    Args:
        x: (N, D) embeddings to fit on.
        kind: ``"pca"``, whose first features carry the most variance, or ``"zca"``, the closest to
            the original axes.
        dims: how many features to keep (``"pca"`` only); all by default.
        eps: added to the variances.

    Calling it maps (N, D) to (N, dims) in the accumulation dtype, differentiably.

    Raises:
        ValueError: a single row, or ``dims`` out of range.

    Source: Su et al. 2021, "Whitening Sentence Representations" (arXiv 2103.15316); Huang et al.
    2021, "WhiteningBERT" (arXiv 2104.01767).
    """

    def __init__(
        self,
        x: Tensor,
        *,
        kind: Literal["pca", "zca"] = "pca",
        dims: int | None = None,
        eps: Number = 1e-9,
    ) -> None:
        check.choice("kind", kind, ("pca", "zca"))
        eps = check.number("eps", eps, 0.0)
        (x,) = _batches(x=x.detach())
        width = x.shape[1]
        kept = width if dims is None else dims
        if not 1 <= kept <= width or (kind == "zca" and kept != width):
            raise ValueError(
                f"dims: got {dims!r} with kind={kind!r}, expected at most {width}, all"
            )
        self.mean = x.double().mean(0)
        centred = x.double() - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / x.shape[0])
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        self.map = vectors * (values + eps).rsqrt()
        self.map = self.map @ vectors.T if kind == "zca" else self.map[:, :kept]

    def __call__(self, x: Tensor) -> Tensor:
        x = wide(x)
        return (x - self.mean.to(x)) @ self.map.to(x)


class GroupZCA(nn.Module):
    """Whitens groups of features over the batch, differentiably, after a random permutation.

    Args:
        groups: how many; they divide D.
        shuffle: whether a new permutation is drawn at each call (undone after whitening).
        eps: added to the variances.

    Maps (N, D) to (N, D) in the accumulation dtype. Once differentiable.

    Source: Zhuo et al. 2023, "WhitenedCSE" (arXiv 2305.17746).
    """

    def __init__(self, groups: int, *, shuffle: bool = True, eps: Number = 1e-5) -> None:
        super().__init__()
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups: got {groups!r}, expected an integer >= 1")
        self.groups, self.shuffle = groups, check.flag("shuffle", shuffle)
        self.eps = check.positive_number("eps", eps)

    def forward(self, x: Tensor, *, permutation: Tensor | None = None) -> Tensor:
        """``permutation``: (D,) int64, instead of a drawn one."""
        (x,) = _batches(x=x)
        n, width = x.shape
        if width % self.groups:
            raise ValueError(f"x: got width {width}, expected a multiple of {self.groups} groups")
        if permutation is None:
            drawn = torch.randperm(width) if self.shuffle else torch.arange(width)
            permutation = drawn.to(x.device)
        parts = x[:, permutation].view(n, self.groups, -1).transpose(0, 1)
        centred = parts - parts.mean(1, keepdim=True)
        identity = torch.eye(parts.shape[2], dtype=x.dtype, device=x.device)
        with full_precision(x.device):
            covariance = centred.transpose(1, 2) @ centred / n + self.eps * identity
            white = centred @ _InverseRoot.apply(covariance)
        white = white.transpose(0, 1).reshape(n, width)
        return torch.empty_like(white).scatter(1, permutation.expand(n, -1), white)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, shuffle={self.shuffle}, eps={self.eps:g}"


class _InverseRoot(torch.autograd.Function):
    """S^{-1/2} of symmetric positive matrices (..., d, d).

    Its derivative in the eigenbasis, -1 / (a b (a + b)) with a and b roots of two eigenvalues, has
    no difference of eigenvalues in a denominator: equal ones do no harm, unlike through ``eigh``.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
        ctx.save_for_backward(root, vectors)
        return (vectors / root.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if grad.requires_grad:
            raise ValueError("GroupZCA: got create_graph=True, expected first derivatives alone")
        root, vectors = ctx.saved_tensors
        a, b = root.unsqueeze(-1), root.unsqueeze(-2)
        inner = vectors.mT @ grad @ vectors
        return -(vectors @ (inner / (a * b * (a + b))) @ vectors.mT)


def _batches(**named: Tensor) -> list[Tensor]:
    found = [wide(x) for x in pairs(**named)]
    if found[0].shape[0] < 2:
        raise ValueError(f"{next(iter(named))}: got 1 row, expected at least 2")
    return found


def _standardised(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()
