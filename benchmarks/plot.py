"""The plot of time and memory against batch size, from ``sweep.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_COLOURS = {
    "contrastive-ops": "#d1495b",
    "PyTorch, dense": "#30638e",
    "PyTorch, linear_cross_entropy (chunk 1024)": "#7a9e3b",
    "sentence-transformers, MultipleNegativesRankingLoss": "#e09f3e",
}
_LABELS = {
    "PyTorch, linear_cross_entropy (chunk 1024)": "PyTorch, linear_cross_entropy",
    "sentence-transformers, MultipleNegativesRankingLoss": "sentence-transformers",
}


def draw_sweep(folder: Path) -> Path:
    """Draws ``sweep.png`` next to ``sweep.json`` in the folder, and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    results = json.loads((folder / "sweep.json").read_text())
    rows = results["rows"]
    case = rows[0]["case"]
    machine = results["machine"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    _draw(left, rows, "seconds", 1e3, "milliseconds")
    _draw(right, rows, "peak_memory_bytes", 2.0**-20, "MiB")
    left.set_title("Time of forward + backward", loc="left", fontsize=11)
    right.set_title("Memory beyond inputs and gradients", loc="left", fontsize=11)
    lines, labels = right.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(lines), frameon=False)
    figure.supxlabel(
        f"batch size N (N queries × N keys, D = {case['dim']}, {case['dtype']}, one direction; "
        f"{machine['cpu']}, {machine['threads']} threads)",
        fontsize=9,
        color="#444444",
    )
    target = folder / "sweep.png"
    partial = target.with_suffix(".partial")
    figure.savefig(partial, dpi=160, format="png")
    plt.close(figure)
    os.replace(partial, target)
    return target


def draw_families(folder: Path) -> Path:
    """Draws ``families.png``: how many times as long as ours each peer takes; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    from .report import FAMILIES

    files = [folder / f"{name}.json" for name in FAMILIES]
    suites = [json.loads(path.read_text()) for path in files if path.is_file()]
    peers = [
        (row["what"], row["variant"], row["ratio_to_ours"])
        for suite in suites
        for row in suite["rows"]
        if not row["ours"] and "seconds" in row
    ]
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.42 * len(peers)), layout="constrained")
    for place, (_, variant, ratio) in enumerate(peers):
        colour = next((c for name, c in _LIBRARIES.items() if variant.startswith(name)), "#888888")
        axes.barh(place, ratio - 1, left=1, color=colour, height=0.62)
        axes.annotate(
            f"{ratio:,.0f} ×" if ratio >= 100 else f"{ratio:.3g} ×",
            (max(ratio, 1.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(peers)), [f"{what}\n{variant}" for what, variant, _ in peers])
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *(r for *_, r in peers)) * 0.9, max(r for *_, r in peers) * 3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(1, color="#d1495b", linewidth=1.6)
    axes.set_title("Time of forward + backward over ours", loc="left", fontsize=11)
    machine = suites[0]["machine"]
    axes.set_xlabel(
        f"times as long as contrastive-ops (red line: 1; float32; {machine['cpu']}, "
        f"{machine['threads']} threads)",
        fontsize=9,
        color="#444444",
    )
    axes.grid(True, axis="x", which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    target = folder / "families.png"
    partial = target.with_suffix(".partial")
    figure.savefig(partial, dpi=160, format="png")
    plt.close(figure)
    os.replace(partial, target)
    return target


_LIBRARIES = {
    "PyTorch": "#30638e",
    "sentence-transformers": "#e09f3e",
    "pytorch-metric-learning": "#7a9e3b",
}


def _draw(axes: Any, rows: list[dict[str, Any]], field: str, factor: float, unit: str) -> None:
    """One panel: a line for every variant."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = sorted({row["case"]["n"] for row in rows})
    for name in dict.fromkeys(row["variant"] for row in rows):
        # Nothing measurable has no place on a logarithmic axis.
        points = [
            (row["case"]["n"], row[field] * factor)
            for row in rows
            if row["variant"] == name and row.get(field, 0) > 0
        ]
        if not points:
            continue
        ours = name == "contrastive-ops"
        colour = _COLOURS.get(name, "#888888")
        xs, ys = zip(*points, strict=True)
        axes.plot(
            xs,
            ys,
            color=colour,
            label=_LABELS.get(name, name),
            marker="o",
            markersize=5 if ours else 4,
            linewidth=2.6 if ours else 1.6,
            zorder=3 if ours else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(sizes[0] * 0.8, sizes[-1] * 1.25)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="x", labelrotation=30)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    print(draw_sweep(Path(__file__).resolve().parent / "results"))
