"""How long the loss takes of a step, its forward and its backward pass together."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from torch.autograd import Function


class Stopwatch:
    """Seconds, summed up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Begins to count."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Adds what was counted."""
        self.seconds += time.perf_counter() - self._started


class _StopAfterBackward(Function):
    """Identity of tensors whose backward pass runs when all their gradients are there."""

    @staticmethod
    def forward(ctx: Any, watch: Stopwatch, *embeddings: Tensor) -> tuple[Tensor, ...]:
        ctx.watch = watch
        return tuple(x.view_as(x) for x in embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.watch.stop()
        return (None, *gradients)


def before_loss(watch: Stopwatch, *embeddings: Tensor) -> list[Tensor]:
    """The embeddings that a loss gets; the watch runs from here until :func:`after_loss`.

    In the backward pass it stops when the gradients of all of them are there.
    """
    found: tuple[Tensor, ...] = _StopAfterBackward.apply(watch, *embeddings)
    watch.start()
    return list(found)


def after_loss(watch: Stopwatch, loss: Tensor) -> Tensor:
    """The loss, whose backward pass starts the watch again."""
    watch.stop()
    if loss.requires_grad:
        loss.register_hook(lambda gradient: watch.start())
    return loss
