"""Dense InfoNCE as anyone would write it in PyTorch, and the error that exact code may have."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import contrastive_ops


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Tensor | float,
    symmetric: bool = False,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """In the inputs' dtype throughout, with the N x M logits in memory."""
    rows = [query, key] if negatives is None else [query, key, negatives]
    if normalize:
        rows = [F.normalize(x, dim=-1) for x in rows]
    logits = rows[0] @ torch.cat(rows[1:]).T / temperature
    target = torch.arange(len(query), device=query.device)
    loss = F.cross_entropy(logits, target, reduction=reduction)
    if not symmetric:
        return loss
    square = logits[:, : len(query)]
    return (loss + F.cross_entropy(square.T, target, reduction=reduction)) / 2


def nt_xent(view_a: Tensor, view_b: Tensor, **options) -> Tensor:
    """One set against itself: the rows of both views, each without itself."""
    rows, options = torch.cat([view_a, view_b]), dict(options)
    if options.pop("normalize", True):
        rows = F.normalize(rows, dim=-1)
    logits = rows @ rows.T / options.pop("temperature")
    logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    target = torch.arange(len(rows)).roll(len(view_a))
    return F.cross_entropy(logits, target, **options)


def sigmoid_loss(query: Tensor, key: Tensor, *, temperature: Tensor, bias: float) -> Tensor:
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / temperature + bias
    sign = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
    return -F.logsigmoid(sign * logits).sum() / len(query)


def matryoshka(
    *rows: Tensor,
    matryoshka_dims: tuple[int, ...],
    loss: Callable[..., Tensor] | None = None,
    **options,
) -> Tensor:
    """One loss a prefix, one after another."""
    loss = loss or info_nce
    parts = [loss(*(x[:, :dim] for x in rows), **options) for dim in matryoshka_dims]
    return torch.stack(parts).sum(0)


def gradients(loss_function, rows: list[Tensor], temperature: float, **options) -> list[Tensor]:
    """Loss and gradients (rows', then the temperature's), all of them in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in rows]
    wide = torch.promote_types(rows[0].dtype, torch.float32)
    scalar = torch.tensor(temperature, dtype=wide, device=rows[0].device, requires_grad=True)
    loss = loss_function(*leaves, temperature=scalar, **options)
    loss.sum().backward()
    return [loss.detach().double()] + [leaf.grad.double() for leaf in (*leaves, scalar)]


def check_error_rule(
    draw: Callable[[int], list[Tensor]],
    temperature: float,
    backend: str,
    *,
    better: bool = False,
    draws: int = 3,
    ours: Callable[..., Tensor] = contrastive_ops.info_nce,
    formula: Callable[..., Tensor] = info_nce,
    **options,
) -> None:
    """Against float64, loss and gradients err at most twice as much as the dense loss in the same
    dtype, plus 1e-6 relative and one float32 ulp of the largest logit.

    Errors are largest ones and root mean squares over some draws of rows by seed: of one number,
    a temperature's gradient say, the dense loss may be right by luck. `better` allows the dense
    loss's own error, not twice that.
    """
    single = torch.tensor(temperature, dtype=torch.float32).item()
    dense_options = {k: v for k, v in options.items() if k not in ("workspace_bytes", "precision")}

    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    ulp = 0.0
    for seed in range(draws):
        rows = draw(seed)
        wide = [x.double() for x in rows]
        exact = gradients(formula, wide, single, **dense_options)
        plain = gradients(formula, rows, temperature, **dense_options)
        actual = gradients(partial(ours, backend=backend), rows, temperature, **options)
        largest = largest_logit(wide, single, options.get("normalize", True))
        ulp = max(ulp, float(np.spacing(np.float32(largest))))
        names = ["loss", *("query", "key", "negatives")[: len(rows)], "temperature"]
        for name, a, p, e in zip(names, actual, plain, exact, strict=True):
            parts.setdefault(name, []).append((a - e, p - e, e))
    for name, errors in parts.items():
        own, theirs, value = (
            torch.cat([x.flatten() for x in xs]) for xs in zip(*errors, strict=True)
        )
        scale = value.abs().max().item()
        # One ulp of a logit: that much in the loss, that fraction of a probability's gradient.
        slack = {"loss": ulp, "temperature": ulp / single}.get(name, ulp * scale)
        for size, order in ((1.0, torch.inf), (value.numel() ** 0.5, 2)):
            error = torch.linalg.vector_norm(own, order).item() / size
            dense_error = torch.linalg.vector_norm(theirs, order).item() / size
            allowed = (1 if better else 2) * dense_error + 1e-6 * scale + slack
            assert error <= allowed, (
                f"{name}: error {error:.3g} (norm {order}), allowed {allowed:.3g}, "
                f"dense {dense_error:.3g}, size {scale:.3g}"
            )


def largest_logit(rows: list[Tensor], temperature: float, normalize: bool = True) -> float:
    rows = [x.flatten(0, -2) for x in rows]
    if normalize:
        rows = [F.normalize(x, dim=-1) for x in rows]
    return (rows[0] @ torch.cat(rows[1:] or rows).T).abs().max().item() / temperature
