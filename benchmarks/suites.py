"""The suites: which cases are measured against which peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .cases import Case
from .variants import (
    COMPILED,
    DENSE,
    DENSE_FLOAT32,
    DENSE_LOGSUMEXP,
    LINEAR_CROSS_ENTROPY,
    OURS,
    OURS_FLOAT32,
    SENTENCE_TRANSFORMERS,
    Variant,
)


@dataclass(frozen=True)
class Suite:
    """Cases, variants, and what is measured of them.

    ``budget`` is about the seconds that the rounds of one case may take; ``sample`` repeats short
    calls until one sample lasts that long.
    """

    title: str
    cases: Callable[[bool], list[Case]]
    variants: tuple[Variant, ...]
    time: bool = True
    memory: bool = False
    budget: float = 30.0
    min_rounds: int = 5
    sample: float = 0.0
    peak: str = "float32"


def _both_inputs(case: Case, quick: bool) -> list[Case]:
    if quick:
        case = replace(case, n=1024)
    return [case, replace(case, inputs="clustered")]


def _one_direction(quick: bool) -> list[Case]:
    return _both_inputs(Case(n=8192, dim=384), quick)


def _two_directions(quick: bool) -> list[Case]:
    return _both_inputs(Case(n=8192, dim=384, symmetric=True, learnable_temperature=True), quick)


def _bfloat16(quick: bool) -> list[Case]:
    return _both_inputs(Case(n=8192, dim=384, dtype="bfloat16"), quick)


def _small(quick: bool) -> list[Case]:
    sizes = (2, 64) if quick else (2, 8, 32, 64, 128, 256)
    widths = (32, 384) if quick else (32, 128, 384, 768)
    return [
        Case(n=n, dim=dim, backward=backward, normalize=normalize)
        for n in sizes
        for dim in widths
        for backward in (False, True)
        for normalize in (True, False)
    ]


def _memory(quick: bool) -> list[Case]:
    sizes = (1024, 2048) if quick else (8192, 16384, 32768)
    return [Case(n=n, dim=128, symmetric=symmetric) for symmetric in (False, True) for n in sizes]


def _sweep(quick: bool) -> list[Case]:
    sizes = (256, 1024) if quick else (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    return [Case(n=n, dim=128) for n in sizes]


SUITES: dict[str, Suite] = {
    "one-direction": Suite(
        "One direction, float32",
        _one_direction,
        (OURS, DENSE, COMPILED, LINEAR_CROSS_ENTROPY, SENTENCE_TRANSFORMERS),
        memory=True,
    ),
    "two-directions": Suite(
        "Two directions with a learnable temperature, float32",
        _two_directions,
        (OURS, DENSE, DENSE_LOGSUMEXP, COMPILED),
        memory=True,
    ),
    "bfloat16": Suite(
        "One direction, bfloat16",
        _bfloat16,
        (OURS, OURS_FLOAT32, DENSE, DENSE_FLOAT32),
        memory=True,
        peak="bfloat16",
    ),
    "small": Suite(
        "Small batches, float32",
        _small,
        (OURS, DENSE),
        budget=1.5,
        min_rounds=15,
        sample=0.003,
    ),
    "memory": Suite(
        "Memory at large batches, float32",
        _memory,
        (OURS, DENSE),
        time=False,
        memory=True,
    ),
    "sweep": Suite(
        "Time and memory against batch size, float32",
        _sweep,
        (OURS, DENSE, LINEAR_CROSS_ENTROPY, SENTENCE_TRANSFORMERS),
        memory=True,
        budget=20.0,
        min_rounds=3,
    ),
}
