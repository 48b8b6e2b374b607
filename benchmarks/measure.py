"""Runs one case of a suite and returns a row of results for every variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from .cases import Case, make_inputs
from .machine import Peak, available_memory
from .memory import measure_memory
from .oracle import Answer, relative_errors, solve
from .suites import Suite
from .timing import Runner, Times, interleave
from .variants import Unavailable, Variant

Row = dict[str, Any]
# What a dense variant may take of the memory that is free: beyond that the machine swaps.
_SAFE_SHARE = 0.6


def measure_case(
    suite: Suite, case: Case, *, quick: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """One row a variant: seconds, ratio to ours, GF/s, errors against float64, peak memory.

    A variant that cannot run has a row with the reason under "unavailable".
    """
    rows: dict[str, Row] = {}
    runnable: list[Variant] = []
    for variant in suite.variants:
        row: Row = {"case": case.describe(), "variant": variant.name, "ours": variant.ours}
        row["dtype"] = variant.dtype or case.dtype
        rows[variant.name] = row
        try:
            _check_size(variant, case)
            variant.build(replace(case, n=2))
        except Unavailable as reason:
            row["unavailable"] = str(reason)
        else:
            runnable.append(variant)
    if suite.time:
        _add_times(suite, case, runnable, rows, quick, say)
    if suite.memory:
        threads = torch.get_num_threads()
        for variant in runnable:
            say(f"{variant.name}: memory")
            rows[variant.name]["peak_memory_bytes"] = measure_memory(variant, case, threads)
    return list(rows.values())


def _check_size(variant: Variant, case: Case) -> None:
    need = variant.matrices * case.n * case.n * 4
    free = available_memory()
    if need > _SAFE_SHARE * free:
        raise Unavailable(f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")


def _add_times(
    suite: Suite,
    case: Case,
    variants: list[Variant],
    rows: dict[str, Row],
    quick: bool,
    say: Callable[[str], None],
) -> None:
    query, key = make_inputs(case)
    say("float64 oracle")
    exact = solve(case, query, key)
    runners = {variant.name: Runner(variant, case, query, key) for variant in variants}
    for name, answer in _answers(runners, say):
        rows[name]["errors"] = relative_errors(case, answer, exact)
    peak = Peak(suite.peak)
    peak.sample()
    times = interleave(
        runners,
        budget=0.2 if quick else suite.budget,
        min_rounds=3 if quick else suite.min_rounds,
        sample=suite.sample,
        between=None if suite.sample else peak.sample,
        tick=lambda name: say(f"{name}: time"),
    )
    ours = next(variant.name for variant in variants if variant.ours)
    for variant in variants:
        rows[variant.name].update(_summary(case, times, variant.name, ours, peak.gflops()))


def _answers(
    runners: dict[str, Runner], say: Callable[[str], None]
) -> Iterator[tuple[str, Answer]]:
    """The first step of every variant, which also warms it up."""
    for name, runner in runners.items():
        say(f"{name}: error")
        yield name, runner.answer()


def _summary(case: Case, times: Times, name: str, ours: str, peak: float | None) -> Row:
    seconds = times.median(name)
    rate = case.useful_gflop / seconds
    return {
        "seconds": seconds,
        "seconds_spread": times.spread(name),
        "rounds": len(times.seconds[name]),
        "ratio_to_ours": times.ratio(name, ours),
        "useful_gflops": rate,
        "peak_gflops": peak,
        "share_of_peak": None if peak is None else rate / peak,
    }
