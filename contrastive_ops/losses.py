"""Contrastive losses as modules, with an optional learnable temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .engine import check
from .objectives.info_nce import DEFAULT_TEMPERATURE, info_nce
from .objectives.statistics import Receiver


class Temperature(nn.Module):
    """A temperature T; if learnable, trained as log(1 / T) and clamped when read.

    Args:
        initial: T > 0, at the start or for good.
        learnable: whether it is a parameter.
        low, high: bounds of a learnable T, 0 < low <= initial <= high. Beyond them the gradient is
            zero, as with CLIP's clamp of its logit scale at 100 (T >= 0.01).

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.5.
    """

    def __init__(
        self, initial: float, learnable: bool = False, low: float = 0.01, high: float = 10.0
    ) -> None:
        super().__init__()
        self.initial = check.positive_number("temperature", initial)
        self.low = check.positive_number("min_temperature", low)
        self.high = check.positive_number("max_temperature", high)
        self.log_scale: nn.Parameter | None = None
        if check.flag("learnable_temperature", learnable):
            if not self.low <= self.initial <= self.high:
                raise ValueError(
                    f"temperature: got {initial!r}, expected it in [min_temperature, "
                    f"max_temperature] = [{low!r}, {high!r}]"
                )
            self.log_scale = nn.Parameter(torch.tensor(-math.log(self.initial)))

    def forward(self) -> Tensor | float:
        """T: a 0-dim tensor with gradient if learnable, else a number."""
        if self.log_scale is None:
            return self.initial
        bounded = self.log_scale.clamp(-math.log(self.high), -math.log(self.low))
        return (-bounded).exp()

    def extra_repr(self) -> str:
        if self.log_scale is None:
            return f"{self.initial:g}"
        now = math.exp(-self.log_scale.item())
        return f"{now:.4g}, learnable, clamped to [{self.low:g}, {self.high:g}]"


class InfoNCELoss(nn.Module):
    """:func:`contrastive_ops.info_nce` as a module, which documents every argument.

    What is fixed for a training run is given here, what changes with the batch to the call. With
    ``learnable_temperature`` the temperature is a parameter, clamped to [``min_temperature``,
    ``max_temperature``] (see :class:`Temperature`).

        loss_fn = InfoNCELoss(temperature=0.07, learnable_temperature=True, symmetric=True)
        loss = loss_fn(image_embeddings, text_embeddings)
    """

    function: ClassVar[Callable[..., Tensor]] = staticmethod(info_nce)

    def __init__(
        self,
        *,
        temperature: float = DEFAULT_TEMPERATURE,
        learnable_temperature: bool = False,
        min_temperature: float = 0.01,
        max_temperature: float = 10.0,
        symmetric: bool = False,
        in_batch: bool = True,
        negatives_scope: Literal["all", "own"] = "all",
        false_negative_margin: float | None = None,
        guide_margin: float = 0.0,
        margin: float = 0.0,
        own_negative_log_weight: float | None = None,
        label_smoothing: float = 0.0,
        matryoshka_dims: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
        normalize: bool = True,
        reduction: Literal["none", "mean", "sum"] = "mean",
        backend: str | None = None,
        workspace_bytes: int | None = None,
        precision: Literal["ieee", "tf32x3", "tf32"] | None = None,
    ) -> None:
        super().__init__()
        self.temperature = Temperature(
            temperature, learnable_temperature, min_temperature, max_temperature
        )
        self.options: dict[str, Any] = {
            "symmetric": symmetric,
            "in_batch": in_batch,
            "negatives_scope": negatives_scope,
            "false_negative_margin": false_negative_margin,
            "guide_margin": guide_margin,
            "margin": margin,
            "own_negative_log_weight": own_negative_log_weight,
            "label_smoothing": label_smoothing,
            "matryoshka_dims": matryoshka_dims,
            "matryoshka_weights": matryoshka_weights,
            "normalize": normalize,
            "reduction": reduction,
            "backend": backend,
            "workspace_bytes": workspace_bytes,
            "precision": precision,
        }

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        positives: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        guide: Sequence[Tensor] | None = None,
        negative_log_weight: float | Tensor | None = None,
        row_weight: Tensor | None = None,
        statistics: Receiver | None = None,
    ) -> Tensor:
        """The loss of (N, D) queries and (M, D) keys; see :func:`contrastive_ops.info_nce`."""
        return type(self).function(
            query,
            key,
            negatives,
            temperature=self.temperature(),
            positives=positives,
            query_ids=query_ids,
            key_ids=key_ids,
            negative_ids=negative_ids,
            guide=guide,
            negative_log_weight=negative_log_weight,
            row_weight=row_weight,
            statistics=statistics,
            **self.options,
        )

    def extra_repr(self) -> str:
        plain = InfoNCELoss.__init__.__kwdefaults__ or {}
        changed = {k: v for k, v in self.options.items() if v != plain.get(k)}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items())


# The module twins of the other objectives need `Temperature`.
from .objectives.modules import *  # noqa: E402, F403
from .objectives.modules import __all__ as _twins  # noqa: E402

__all__ = ["InfoNCELoss", "Temperature", *_twins]
