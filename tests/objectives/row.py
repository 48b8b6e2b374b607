"""A row of the table of objectives: a method, our call of it, and its formula written densely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CODE, PAPER, ABSTRACT = "code", "paper", "abstract"
BASIS = {
    CODE: "",
    PAPER: "formula as recalled from the paper, not checked against it",
    ABSTRACT: "formula inferred from the abstract",
}


@dataclass(frozen=True)
class Row:
    """``ours`` and ``dense`` take the tensors of ``leaves`` and return a 0-dim loss."""

    id: str
    method: str
    year: int | str
    call: str
    ours: Callable[..., Tensor]
    dense: Callable[..., Tensor]
    leaves: Callable[[], list[Tensor]]
    note: str = ""
    basis: str = CODE
    once_differentiable: bool = False
    stops_gradient: bool = False  # then finite differences see more than the gradient


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1009 + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows_of(*shapes: tuple[int, ...]) -> Callable[[], list[Tensor]]:
    """Leaves of these shapes; () is a temperature."""

    def make() -> list[Tensor]:
        return [
            torch.tensor(0.4, dtype=torch.float64) if shape == () else rand(*shape, seed=i + 1)
            for i, shape in enumerate(shapes)
        ]

    return make


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cos(x: Tensor, y: Tensor) -> Tensor:
    return unit(x) @ unit(y).T


def ce(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, the diagonal being the target."""
    if target is None:
        target = torch.arange(len(logits))
    return torch.nn.functional.cross_entropy(logits, target)


def sq_l2(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    return sq_l2(x, y).clamp(min=1e-300).sqrt()
