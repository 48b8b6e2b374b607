"""Interleaved timing: every round runs each variant once, in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import DTYPES, Case
from .oracle import Answer
from .variants import Variant


class Runner:
    """A variant, ready to run on its own copy of the inputs."""

    def __init__(self, variant: Variant, case: Case, query: Tensor, key: Tensor) -> None:
        dtype = DTYPES[variant.dtype or case.dtype]
        self.case = case
        self.loss = variant.build(case)
        self.query = query.to(dtype, copy=True).requires_grad_(case.backward)
        self.key = key.to(dtype, copy=True).requires_grad_(case.backward)
        learnable = case.backward and case.learnable_temperature
        self.temperature = torch.tensor(case.temperature, requires_grad=learnable)

    def __call__(self) -> Tensor:
        """One step: forward, and the backward if the case has one."""
        if not self.case.backward:
            with torch.no_grad():
                return self.loss(self.query, self.key, self.temperature)
        self.query.grad = self.key.grad = self.temperature.grad = None
        loss = self.loss(self.query, self.key, self.temperature)
        loss.backward()
        return loss.detach()

    def answer(self) -> Answer:
        """The result of one step, for the comparison with float64."""
        loss = self().double().item()
        slope = self.temperature.grad
        return Answer(
            loss, self.query.grad, self.key.grad, None if slope is None else slope.double().item()
        )


@dataclass(frozen=True)
class Times:
    """Seconds of each call, a list for every name, a round at every index."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Distance of the quartiles, relative to the median."""
        values = self.seconds[name]
        if len(values) < 4:
            return (max(values) - min(values)) / self.median(name)
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / self.median(name)

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of the time of `name` over that of `base` in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(mine / other for mine, other in pairs)


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    budget: float,
    min_rounds: int = 5,
    max_rounds: int = 50,
    sample: float = 0.0,
    between: Callable[[], None] | None = None,
    tick: Callable[[str], None] | None = None,
) -> Times:
    """Times the calls, which must have run once before, in rounds A B C A B C ...

    There are as many rounds as fit into `budget` seconds, within the two limits. Short calls are
    repeated so that one sample lasts about `sample` seconds. `between` runs after each round;
    `tick` is told each name before its sample.
    """
    repeats, once = {}, 0.0
    for name, call in calls.items():
        estimate = min(_time(call, 1) for _ in range(3 if sample else 1))
        repeats[name] = max(1, round(sample / estimate)) if sample else 1
        once += estimate * repeats[name]
    rounds = int(min(max_rounds, max(min_rounds, budget / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                if tick is not None:
                    tick(name)
                seconds[name].append(_time(call, repeats[name]))
            if between is not None:
                between()
    finally:
        gc.enable()
    return Times(seconds)


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
