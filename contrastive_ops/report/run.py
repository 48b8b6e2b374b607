"""What a training run left in its folder: facts, log, evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Entry = Mapping[str, Any]
PARTS = ("encoder", "loss", "data")
_NO_SCORES = ("step", "epoch", "seconds", "sequential_score")
_LOWER_IS_BETTER = ("alignment", "uniformity", "anisotropy", "loss", "mse", "positive_rank")


@dataclass(frozen=True)
class Run:
    """A run with one seed.

    Attributes:
        folder: where it is.
        facts: ``run.json``: ``recipe``, ``command``, ``configuration``, ``versions``, ``machine``,
            ``seed``, ``started``, ``finished``, ``model``, ``metric``, ``dev``; all but the first
            may be missing.
        log: ``log.jsonl``, by step: ``step``, ``epoch``, ``loss``, ``learning_rate``,
            ``temperature``, ``accuracy``, ``positive_rank``, and ``seconds`` by part, a step's
            mean.
        evaluations: ``evaluation.jsonl``, by step: ``step`` and the scores.
    """

    folder: Path
    facts: Mapping[str, Any]
    log: Sequence[Entry]
    evaluations: Sequence[Entry]

    @staticmethod
    def read(folder: Path) -> Run:
        """Reads what is there; of a run that still goes on, too.

        Raises:
            ValueError: no run in the folder, or a line that is no JSON object.
        """
        path = folder / "run.json"
        if not path.is_file():
            raise ValueError(f"{folder}: holds no run; expected {path}")
        facts = json.loads(path.read_text(encoding="utf-8"))
        log, evaluations = (_by_step(folder / name) for name in ("log.jsonl", "evaluation.jsonl"))
        return Run(folder, facts, log, evaluations)

    @property
    def scores(self) -> list[str]:
        """Names of all scores, the one that the best checkpoint is chosen by first."""
        names = {k: None for e in self.evaluations for k, v in e.items() if _is_number(v)}
        names = {k: None for k in names if k not in _NO_SCORES}
        main = self.facts.get("metric")
        return sorted(names, key=lambda name: (name != main, list(names).index(name)))

    def best(self, score: str) -> tuple[int, float]:
        """The step with the best value of a score, and the value."""
        points = [(e["step"], e[score]) for e in self.evaluations if _is_number(e.get(score))]
        step, value = (min if lower_is_better(score) else max)(points, key=lambda p: p[1])
        return int(step), float(value)

    def first(self, score: str) -> tuple[int, float]:
        """The earliest value of a score."""
        entry = next(e for e in self.evaluations if _is_number(e.get(score)))
        return int(entry["step"]), float(entry[score])

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def seconds(self) -> dict[str, float]:
        """Of the whole training, by part."""
        total = dict.fromkeys(PARTS, 0.0)
        before = 0
        for entry in self.log:
            for part, value in entry.get("seconds", {}).items():
                total[part] = total.get(part, 0.0) + value * (entry["step"] - before)
            before = entry["step"]
        return {part: value for part, value in total.items() if value > 0}


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or the runs with several seeds below it, by seed."""
    seeds = sorted(
        (path for path in folder.glob("seed-*") if (path / "run.json").is_file()),
        key=lambda path: (len(path.name), path.name),
    )
    return [Run.read(path) for path in seeds] or [Run.read(folder)]


def lower_is_better(score: str) -> bool:
    """By the end of its name."""
    return score.endswith(_LOWER_IS_BETTER)


@dataclass(frozen=True)
class Curve:
    """Values by step: the mean over runs, and their standard deviation (None for one run)."""

    step: np.ndarray
    mean: np.ndarray
    spread: np.ndarray | None


def curve(
    runs: Sequence[Run], key: str, entries: Callable[[Run], Sequence[Entry]] = lambda run: run.log
) -> Curve | None:
    """A value over the steps that all runs have; None where there are none."""
    each = [
        {int(e["step"]): float(e[key]) for e in entries(run) if _is_number(e.get(key))}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, each)))
    if not steps:
        return None
    values = np.array([[values[step] for step in steps] for values in each])
    spread = values.std(axis=0, ddof=1) if len(runs) > 1 else None
    return Curve(np.array(steps), values.mean(axis=0), spread)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for one value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread


def _by_step(path: Path) -> list[Entry]:
    """One entry for each step: after an interruption a step may be logged again, and counts."""
    if not path.is_file():
        return []
    found: dict[int, Entry] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):  # cut off when the run was killed
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object with a step") from None
        # What a killed run logged beyond its last checkpoint is taken back.
        found = {s: e for s, e in found.items() if s < step} if step in found else found
        found[step] = entry
    return [found[step] for step in sorted(found)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
