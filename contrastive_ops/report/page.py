"""``report.html``: one file with everything in it, and its pictures as PNGs beside it."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..evaluation.evaluator import load_model
from ..training.atomic import atomic_path
from . import figures
from .run import Run, curve, lower_is_better, mean_and_spread, read_runs
from .space import Space, compute_space

BEFORE, AFTER = "before training", "after training"


class Tile(NamedTuple):
    """A number that is worth a large font."""

    value: str
    label: str
    note: str
    spread: str = ""


class Picture(NamedTuple):
    """A figure in the page."""

    name: str
    svg: str
    caption: str
    wide: bool


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` and ``plots/*.png`` of a run, from what is in its folder.

    Of a run that still goes on it shows what there is; of a folder with ``seed-*`` runs their means
    and standard deviations. Where ``run.json`` names a development table (``dev``) and a model is
    there, the model's space is computed and kept as ``space.npz``; ``space-before.npz``, where
    training left one, is shown beside it.

    Args:
        folder: of the run.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run in the folder, or one that cannot be read.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    spaces = _spaces(runs[0])
    with plt.rc_context(figures.STYLE):
        drawn = {
            "loss": figures.plot_loss(runs),
            "score": figures.plot_main_score(runs),
            "scores": figures.plot_other_scores(runs),
            "path": figures.plot_path(runs),
            "similarity": figures.plot_similarity(spaces),
            "space": figures.plot_space(spaces),
            "in-batch": figures.plot_in_batch(runs),
            "schedule": figures.plot_schedule(runs),
            "time": figures.plot_time(runs),
        }
        pictures = {
            name: _picture(name, figure, folder / "plots" / f"{name}.png")
            for name, figure in drawn.items()
            if figure is not None
        }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("contrastive_ops.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.jinja").render(_content(folder, runs, pictures))
    target = folder / "report.html"
    with atomic_path(target) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return target


def _spaces(run: Run) -> dict[str, Space]:
    """Before training, if that was kept, and after it."""
    found = {}
    if (run.folder / "space-before.npz").is_file():
        found[BEFORE] = Space.load(run.folder / "space-before.npz")
    kept, model, dev = run.folder / "space.npz", run.folder / "model", run.facts.get("dev")
    weights = model / "modules.json"
    if weights.is_file() and dev:
        if not kept.is_file() or kept.stat().st_mtime < weights.stat().st_mtime:
            try:
                compute_space(load_model(str(model)), str(dev)).save(kept)
            except (ValueError, OSError) as error:
                # The table may be elsewhere by now; the rest of the page does not need it.
                warnings.warn(f"no pictures of the space: {error}", RuntimeWarning, stacklevel=3)
                return found
        found[AFTER] = Space.load(kept)
    return found


_CAPTIONS = {
    "loss": "Each logged step, and a running mean over it.",
    "score": "On development data, as training went on. The best value is marked.",
    "scores": "The other scores on development data, each on its own scale.",
    "path": "A contrastive loss pulls pairs together and spreads all texts apart; good training "
    "moves down and to the left.",
    "similarity": "Cosine similarity on development data: half of the pairs lie within the bar, "
    "the dot is the median. Well-ordered groups rise without overlapping.",
    "space": "Development texts on the two directions of largest variance, and how much of it each "
    "direction carries: an even space falls slowly, a collapsed one at once.",
    "in-batch": "What the loss sees: how often the positive is the nearest key of its batch, and "
    "how many negatives come before it.",
    "schedule": "The temperature of the loss, and the optimizer's learning rate.",
    "time": "Of a training step, on the average. The rest of the model's work, backward pass and "
    "optimizer included, counts as encoder.",
}
_SECTIONS = (
    ("Learning", ("loss", "score", "scores")),
    ("Space", ("path", "similarity", "space")),
    ("In the batch", ("in-batch", "schedule")),
    ("Time", ("time",)),
)


def _picture(name: str, figure: Figure, png: Path) -> Picture:
    with atomic_path(png) as scratch:
        figure.savefig(scratch, dpi=150)
    text = io.StringIO()
    # Text stays text: it takes the page's font, can be searched and copied. The salt makes names
    # inside the picture the same on every run, and different from those of other pictures.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    wide = figure.get_size_inches()[0] > 1.5 * figures.HALF
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_CAPTIONS[name]}" ', 1)
    # Names of groups are the same in every picture; nothing refers to them.
    svg = re.sub(r'<g id="[a-z]\w*_\d+"', "<g", svg)
    return Picture(name, svg, _CAPTIONS[name], wide)


def _content(folder: Path, runs: Sequence[Run], pictures: Mapping[str, Picture]) -> dict[str, Any]:
    run = runs[0]
    sections = [
        (title, [pictures[name] for name in names if name in pictures])
        for title, names in _SECTIONS
    ]
    return {
        "recipe": run.facts.get("recipe", "training run"),
        "name": folder.resolve().name,
        "facts": _facts(runs),
        "tiles": _tiles(runs),
        "sections": [section for section in sections if section[1]],
        "several": len(runs) > 1,
        "scores": _score_table(runs),
        "command": _command(run),
        "facts_of": {
            "Configuration": _flat(run.facts.get("configuration", {})),
            "Versions": _flat(run.facts.get("versions", {})),
            "Machine": _flat(run.facts.get("machine", {})),
        },
    }


def _command(run: Run) -> str:
    """As it is typed: without the folder that the program is in."""
    program, space, rest = str(run.facts.get("command", "")).partition(" ")
    ours = Path(program).name in ("cli.py", "contrastive-ops")
    return ("contrastive-ops" if ours else program) + space + rest


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """What is set, as text; ``trainer.learning_rate`` for what is inside ``trainer``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        elif value is not None and value not in ("", []):
            if isinstance(value, list):
                value = ", ".join(map(str, value))
            text = isinstance(value, str)
            flat[before + key] = value if text else json.dumps(value, ensure_ascii=False)
    return flat


def _facts(runs: Sequence[Run]) -> list[str]:
    """What stands below the title."""
    run = runs[0]
    facts = []
    if run.facts.get("model"):
        facts.append(str(run.facts["model"]))
    seeds = [str(r.facts["seed"]) for r in runs if r.facts.get("seed") is not None]
    if seeds:
        facts.append(("seeds " if len(seeds) > 1 else "seed ") + ", ".join(seeds))
    started = _time(run.facts.get("started"))
    if started is not None:
        facts.append(f"{started.day} {started:%B %Y, %H:%M}")
    if started is not None and not all(r.facts.get("finished") for r in runs):
        facts.append("not finished")
    return facts


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _tiles(runs: Sequence[Run]) -> list[Tile]:
    tiles = []
    names = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    if names:
        main = names[0]
        best = [run.best(main) for run in runs]
        value, _, spread = _with_spread([value for _, value in best]).partition(" ")
        step = "" if len(runs) > 1 else f", at step {best[0][0]:,}"
        first = [run.first(main) for run in runs]
        before = mean_and_spread([value for _, value in first])
        word = "untrained" if first[0][0] == 0 else "at first"
        tiles.append(
            Tile(
                value,
                f"best {figures.named(main)}{step}",
                f"{before[0]:.4f} {word}" if len(runs[0].evaluations) > 1 else "",
                spread,
            )
        )
    for key, label, shown in (
        ("loss", "training loss", "{:.3f}"),
        ("accuracy", "in-batch accuracy", "{:.1%}"),
    ):
        values = curve(runs, key)
        if values is not None:
            end = max(1, len(values.mean) // 20)
            last = shown.format(float(np.mean(values.mean[-end:])))
            tiles.append(
                Tile(last, f"{label} at the end", f"{shown.format(values.mean[0])} at first")
            )
    totals = [run.seconds for run in runs]
    if all(totals) and all(run.steps for run in runs):
        whole = [sum(total.values()) for total in totals]
        per_step = float(np.mean(whole)) / runs[0].steps
        tiles.append(
            Tile(
                _duration(float(np.mean(whole))),
                "training" + (" with each seed" if len(runs) > 1 else ""),
                f"{runs[0].steps:,} steps of {figures._milliseconds(per_step)}",
            )
        )
        if all("loss" in total for total in totals):
            share = np.mean([t["loss"] / w for t, w in zip(totals, whole, strict=True)])
            tiles.append(Tile(f"{share:.1%}", "of the time in the loss", ""))
    return tiles


def _with_spread(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _score_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A row for each score: at first, best, and at last."""
    rows = []
    for name in runs[0].scores:
        if not all(name in run.scores for run in runs):
            continue
        best = [run.best(name) for run in runs]
        last = [[e[name] for e in run.evaluations if name in e][-1] for run in runs]
        rows.append(
            {
                "name": figures.named(name),
                "sense": "lower" if lower_is_better(name) else "higher",
                "first": _with_spread([run.first(name)[1] for run in runs]),
                "best": _with_spread([value for _, value in best]),
                "step": ", ".join(f"{step:,}" for step, _ in best),
                "last": _with_spread(last),
            }
        )
    return rows
