"""The pictures of a report. Each function returns None where a run has nothing to show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .run import Curve, Run, curve, lower_is_better
from .space import Space

INK, GREY, FAINT = "#1f2933", "#8592a0", "#dde3e9"
BLUE, ORANGE, GREEN, PINK = "#2b6cb0", "#d9722e", "#2f855a", "#b5568f"
CLASSES = (BLUE, ORANGE, GREEN, PINK, "#c9a227", "#3a9bbf", "#7a5ea8")
WIDE, HALF = 10.6, 5.2
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_ACRONYMS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP", "knn": "kNN", "v": "V"}


def named(score: str) -> str:
    """``sts-dev_spearman`` as ``sts-dev spearman``."""
    words = [_ACRONYMS.get(word, word) for word in re.split(r"_| ", score)]
    return " ".join(re.sub(r"^(mrr|ndcg|map)@", lambda m: _ACRONYMS[m[1]] + "@", w) for w in words)


def plot_loss(runs: Sequence[Run]) -> Figure | None:
    """Training loss: every logged step faint, a running mean over it."""
    loss = curve(runs, "loss")
    if loss is None:
        return None
    figure, axes = _figure(HALF, 3.3)
    _line(axes, loss, BLUE, smooth=True)
    if 0 <= loss.mean.min() < 0.5 * loss.mean.max():
        axes.set_ylim(bottom=0)
    axes.set(xlabel="step", title="Training loss")
    _epochs(axes, runs[0])
    return figure


def plot_main_score(runs: Sequence[Run]) -> Figure | None:
    """The score that the best checkpoint is chosen by; the best value marked."""
    names = _plottable(runs)[:1]
    if not names:
        return None
    figure, axes = _figure(HALF, 3.3)
    _score(axes, runs, names[0])
    return figure


def plot_other_scores(runs: Sequence[Run]) -> Figure | None:
    """The other scores, each on its own scale."""
    names = _plottable(runs)[1:7]
    if not names:
        return None
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, all_axes = plt.subplots(
        rows, columns, figsize=(WIDE, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axes, name in zip(all_axes.flat, names, strict=False):
        _score(axes, runs, name)
    for axes in all_axes.flat[len(names) :]:
        axes.axis("off")
    return figure


def _plottable(runs: Sequence[Run]) -> list[str]:
    """Scores of all runs but those of the path, the main one first."""
    names = [name for name in runs[0].scores if not _is_geometry(name)]
    return [name for name in names if curve(runs, name, _evaluations) is not None]


def _score(axes: Axes, runs: Sequence[Run], name: str) -> None:
    found = curve(runs, name, _evaluations)
    assert found is not None
    _line(axes, found, GREEN, dots=True)
    _mark_best(axes, found, lower=lower_is_better(name))
    axes.set(title=named(name), xlabel="step")


def plot_in_batch(runs: Sequence[Run]) -> Figure | None:
    """How often the positive wins in its batch, and its mean rank."""
    return _panels(
        runs,
        (
            ("accuracy", "In-batch accuracy", "positive ranks first"),
            ("positive_rank", "Rank of the positive", "mean (0 is best)"),
        ),
        ORANGE,
    )


def plot_schedule(runs: Sequence[Run]) -> Figure | None:
    """Temperature and learning rate."""
    return _panels(
        runs,
        (("temperature", "Temperature", ""), ("learning_rate", "Learning rate", "")),
        PINK,
    )


def plot_path(runs: Sequence[Run]) -> Figure | None:
    """The way through the plane of alignment and uniformity."""
    keys = [
        next((n for n in runs[0].scores if n.rpartition("_")[2] == key), None)
        for key in ("uniformity", "alignment")
    ]
    if None in keys:
        return None
    u, a = (curve(runs, str(key), _evaluations) for key in keys)
    if u is None or a is None or len(u.step) != len(a.step):
        return None
    figure, axes = _figure(HALF, 4.0)
    axes.grid(axis="x")
    if u.spread is not None and a.spread is not None:
        axes.errorbar(
            u.mean, a.mean, a.spread, u.spread, fmt="none", ecolor=GREY, elinewidth=0.8, alpha=0.6
        )
    axes.plot(u.mean, a.mean, color=GREY, linewidth=1.2, zorder=1)
    dots = axes.scatter(u.mean, a.mean, c=u.step, cmap="viridis", s=42, zorder=3)
    for i, text in ((0, f"step {u.step[0]}"), (len(u.step) - 1, f"step {u.step[-1]}")):
        axes.annotate(
            text,
            (u.mean[i], a.mean[i]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
        if len(u.step) == 1:
            break
    axes.margins(0.16)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(
        xlabel="uniformity  (lower: more even)",
        ylabel="alignment  (lower: closer)",
        title="Path through alignment and uniformity",
    )
    bar = figure.colorbar(dots, ax=axes, pad=0.02, aspect=30)
    bar.ax.set_title("step", size=9.5, weight="normal", loc="left")
    bar.outline.set_visible(False)
    return figure


def plot_similarity(spaces: Mapping[str, Space]) -> Figure | None:
    """Cosine similarity of pairs, group by group: quartiles and spread."""
    if not spaces:
        return None
    figure, axes = _figure(HALF, 4.0)
    width = 0.8 / len(spaces)
    for number, (name, space) in enumerate(spaces.items()):
        color = BLUE if number == len(spaces) - 1 else GREY
        at = np.arange(len(space.groups)) + (number - (len(spaces) - 1) / 2) * width
        for place, group in zip(at, range(len(space.groups)), strict=True):
            values = space.similarity[space.group == group]
            if len(values) == 0:
                continue
            if len(values) > 2 and np.ptp(values) > 1e-6:
                body = axes.violinplot(values, [place], widths=0.92 * width, showextrema=False)
                bodies: Any = body["bodies"]
                for part in bodies:
                    part.set(facecolor=color, alpha=0.28, edgecolor="none")
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.plot([place, place], [low, high], color=color, linewidth=3.5)
            axes.plot(place, middle, "o", color="white", markersize=3.2, zorder=4)
        axes.plot([], [], color=color, linewidth=5, alpha=0.6, label=name)
    groups = next(iter(spaces.values())).groups
    axes.set_xticks(range(len(groups)), list(groups))
    by_gold = len(groups) > 2
    axes.set(
        ylabel="cosine similarity",
        xlabel="gold score of the pair" if by_gold else "",
        title="Similarity by gold score" if by_gold else "Similarity of pairs",
    )
    if len(spaces) > 1:
        axes.legend(loc="upper left", handlelength=1)
    return figure


def plot_space(spaces: Mapping[str, Space]) -> Figure | None:
    """Texts on two principal components, and the variance along all of them."""
    if not spaces:
        return None
    some = next(iter(spaces.values()))
    figure, all_axes = plt.subplots(
        1, len(spaces) + 1, figsize=(WIDE, 4.4), squeeze=False, layout="constrained"
    )
    *maps, spectrum = all_axes[0]
    for axes, (name, space) in zip(maps, spaces.items(), strict=True):
        _scatter(axes, space)
        one, two = (*space.explained[:2], 0.0, 0.0)[:2]  # a collapsed space has fewer
        axes.set(
            xlabel=f"first component, {one:.1%} of the variance",
            ylabel=f"second component, {two:.1%}",
            title=name.capitalize() if len(spaces) > 1 else "Texts on two principal components",
            xticks=[],
            yticks=[],
        )
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(False)
    for number, (name, space) in enumerate(spaces.items()):
        color = BLUE if number == len(spaces) - 1 else GREY
        share = space.explained
        spectrum.plot(np.arange(1, len(share) + 1), share, color=color, label=name)
    spectrum.set(yscale="log", xlabel="principal component", title="Share of the variance")
    spectrum.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    spectrum.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _percent(v)))
    spectrum.yaxis.set_minor_formatter(NullFormatter())
    if len(spaces) > 1:
        spectrum.legend(handlelength=1)
    handles, labels = maps[-1].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=min(len(labels), 5),
            handlelength=1.2,
            title="" if len(some.classes) else "a line connects a pair",
            alignment="left",
        )
    return figure


def plot_time(runs: Sequence[Run]) -> Figure | None:
    """Where a step's time goes."""
    totals = [run.seconds for run in runs]
    parts = [part for part in totals[0] if all(part in total for total in totals)]
    steps = [run.steps for run in runs]
    if not parts or not all(steps):
        return None
    each = {
        part: float(np.mean([t[part] / n for t, n in zip(totals, steps, strict=True)]))
        for part in parts
    }
    whole = sum(each.values())
    narrow = [part for part in parts if each[part] <= 0.16 * whole]
    height = 0.56 + 0.3 * len(narrow)  # of the drawing, in bars of half a unit
    figure, axes = _figure(WIDE, 0.95 * height)
    left = 0.0
    for part, color in zip(each, (BLUE, ORANGE, GREY, PINK), strict=False):
        axes.barh(0, each[part], left=left, color=color, height=0.5)
        share = each[part] / whole
        text = f"{part} · {_milliseconds(each[part])} · {share:.1%}"
        if part not in narrow:
            axes.text(
                left + each[part] / 2, 0, text, ha="center", va="center", color="white",
                weight="bold",
            )  # fmt: skip
        else:
            # Too narrow to write in: above it, to the side where there is room.
            side = "right" if left + each[part] > 0.5 * whole else "left"
            level = 0.31 + 0.3 * narrow.index(part)
            edge = left + each[part] if side == "right" else left
            axes.text(edge, level, text, ha=side, va="bottom", color=color, weight="bold")
        left += each[part]
    axes.set(xlim=(0, whole), ylim=(-0.28, height - 0.28), yticks=[])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks([])
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(width, height), layout="constrained")


def _panels(
    runs: Sequence[Run], panels: Sequence[tuple[str, str, str]], color: str
) -> Figure | None:
    found = [(curve(runs, key), title, label) for key, title, label in panels]
    found = [panel for panel in found if panel[0] is not None]
    if not found:
        return None
    figure, all_axes = plt.subplots(
        1, len(found), figsize=(WIDE / 2 * len(found), 2.7), squeeze=False, layout="constrained"
    )
    for axes, (values, title, label) in zip(all_axes[0], found, strict=True):
        assert values is not None
        _line(axes, values, color, smooth=len(values.step) > 40)
        axes.set(title=title, ylabel=label, xlabel="step")
        if np.ptp(values.mean) < 1e-9:
            level = values.mean[0]
            axes.set_ylim(0, 2 * level if level > 0 else 1)
        elif values.mean.min() >= 0:
            axes.set_ylim(bottom=0)
        if "accuracy" in title:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    return figure


def _line(
    axes: Axes, values: Curve, color: str, *, smooth: bool = False, dots: bool = False
) -> None:
    step, mean = values.step, values.mean
    if values.spread is not None:
        axes.fill_between(
            step, mean - values.spread, mean + values.spread, color=color, alpha=0.2, linewidth=0
        )
    if smooth and len(step) > 20:
        axes.plot(step, mean, color=color, alpha=0.28, linewidth=0.8)
        mean = _running_mean(mean, max(1, len(mean) // 40))
    axes.plot(step, mean, color=color, marker="o" if dots else None, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.02)
    if len(step) == 1:
        axes.set(xlim=(step[0] - 1, step[0] + 1), xticks=step)


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Of the values within `half` places on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    smoothed: np.ndarray = (total[high] - total[low]) / (high - low)
    return smoothed


def _mark_best(axes: Axes, values: Curve, *, lower: bool) -> None:
    i = int(values.mean.argmin() if lower else values.mean.argmax())
    spread = "" if values.spread is None else f" ± {values.spread[i]:.4f}"
    axes.plot(values.step[i], values.mean[i], "o", color=GREEN, markersize=7, zorder=4)
    x = (values.step[i] - values.step[0]) / max(np.ptp(values.step), 1)
    axes.annotate(
        f"{values.mean[i]:.4f}{spread}",
        (values.step[i], values.mean[i]),
        xytext=(0, -17 if lower else 8),
        textcoords="offset points",
        ha="left" if x < 0.2 else "right" if x > 0.8 else "center",
        weight="bold",
        color=INK,
    )
    # Room for the label on its side of the curve.
    low, high = axes.get_ylim()
    room = 0.14 * (high - low)
    axes.set_ylim((low - room, high) if lower else (low, high + room))


def _epochs(axes: Axes, run: Run) -> None:
    """A faint line where an epoch ends, where there are few."""
    ends: dict[int, int] = {}
    for entry in run.log:
        epoch = entry.get("epoch")
        if isinstance(epoch, int | float) and epoch >= 1:
            ends.setdefault(int(epoch), int(entry["step"]))
    if 1 < len(ends) <= 10:
        for epoch, step in ends.items():
            if step < run.steps:
                axes.axvline(step, color=FAINT, linewidth=1.2, zorder=0)
                axes.annotate(
                    f"epoch {epoch}",
                    (step, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -2),
                    textcoords="offset points",
                    va="top",
                    fontsize=8,
                    color=GREY,
                )


def _scatter(axes: Axes, space: Space) -> None:
    def dots(rows: Any, color: str, size: float, alpha: float) -> None:
        x, y = space.points[rows].T
        axes.scatter(x, y, c=color, s=size, alpha=alpha, linewidths=0, rasterized=True)

    dots(space.class_of < 0, GREY, 7, 0.35)
    for number, name in enumerate(space.classes):
        dots(space.class_of == number, CLASSES[number], 12, 0.75)
        axes.plot([], [], "o", color=CLASSES[number], markersize=5, label=str(name))
    for group, color in ((0, ORANGE), (len(space.groups) - 1, BLUE)):
        own = space.links[space.link_group == group]
        for i, (a, b) in enumerate(own):
            axes.plot(
                *space.points[[a, b]].T,
                "o-",
                color=color,
                linewidth=1,
                markersize=3,
                alpha=0.75,
                label=_link_name(space, group) if i == 0 else None,
            )


def _link_name(space: Space, group: int) -> str:
    name = str(space.groups[group])
    return f"gold score {name}" if len(space.groups) > 2 else name


def _evaluations(run: Run) -> Sequence[Mapping[str, Any]]:
    return run.evaluations


def _is_geometry(name: str) -> bool:
    return name.rpartition("_")[2] in ("alignment", "uniformity")


def _percent(share: float) -> str:
    """Exact and without an exponent: shares lie on a logarithmic scale."""
    return np.format_float_positional(float(f"{100 * share:.6g}"), trim="-") + "%"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
