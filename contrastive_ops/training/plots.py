"""Pictures of a run: loss, the path through alignment and uniformity, similarities, PCA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import normalize

from .atomic import atomic_path

# Okabe and Ito's colours, told apart by colour-blind readers, and grey for the rest.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
_GREY = "#9A9A9A"
_STYLE = {
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def plot_loss(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss of every step by kind of pair, and MRR@10 on the development queries below it.

    Args:
        log: as from `fit`.
        path: PNG to write.
    """
    steps = [entry for entry in log if "loss" in entry]
    evaluations = _evaluations(log)
    with plt.rc_context(_STYLE):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
        )
        for color, kind in zip(_COLORS, sorted({_kind(e) for e in steps}), strict=False):
            own = [entry for entry in steps if _kind(entry) == kind]
            top.plot(
                [entry["step"] for entry in own],
                [entry["loss"] for entry in own],
                "o-",
                markersize=3,
                linewidth=1.2,
                color=color,
                label=kind,
            )
        top.set(ylabel="symmetric InfoNCE", title="Training loss, by kind of pair")
        top.set_ylim(bottom=0)
        top.legend(loc="upper right", ncols=2)
        bottom.plot(
            [entry["step"] for entry in evaluations],
            [_mrr(entry) for entry in evaluations],
            "s-",
            color="black",
            markersize=4,
            linewidth=1.2,
        )
        bottom.set(
            xlabel="step",
            ylabel="MRR@10",
            title="Development queries among their own documents",
        )
        _save(figure, path)


def plot_alignment_uniformity(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The way of the development pairs through the plane of alignment and uniformity.

    Args:
        log: as from `fit`, with evaluations.
        path: PNG to write.
    """
    points = _evaluations(log)
    x = [entry["eval_uniformity"] for entry in points]
    y = [entry["eval_alignment"] for entry in points]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6.5, 5))
        axes.plot(x, y, color=_GREY, linewidth=1, zorder=1)
        dots = axes.scatter(x, y, c=[_mrr(e) for e in points], cmap="viridis", s=60, zorder=2)
        last = f"step {points[-1]['step']}"
        for entry, label, offset in ((points[0], "untrained", 9), (points[-1], last, -17)):
            axes.annotate(
                label,
                (entry["eval_uniformity"], entry["eval_alignment"]),
                xytext=(offset // 2, offset),
                textcoords="offset points",
                fontweight="bold",
            )
        axes.set(
            xlabel="uniformity of documents (lower: more even)",
            ylabel="alignment of summary and document (lower: closer)",
            title="Development pairs, from untrained to trained",
        )
        axes.margins(0.15)
        figure.colorbar(dots, label="MRR@10 among the development documents")
        _save(figure, path)


def plot_similarities(
    pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path, *, seed: int = 0
) -> None:
    """Histograms of the cosine similarity of positive pairs and of random ones.

    Args:
        pairs: for each model's name the embeddings of queries and of their documents, (N, D).
        path: PNG to write.
        seed: of the random pairing.
    """
    bins = np.linspace(-0.4, 1.0, 57)
    with plt.rc_context(_STYLE):
        figure, all_axes = plt.subplots(
            1,
            len(pairs),
            figsize=(4.6 * len(pairs), 4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (name, (queries, documents)) in zip(all_axes[0], pairs.items(), strict=True):
            queries, documents = normalize(queries, dim=1), normalize(documents, dim=1)
            # A shift pairs every query with one document that is not its own.
            shift = int(np.random.default_rng(seed).integers(1, max(len(documents), 2)))
            positive = (queries * documents).sum(dim=1).numpy()
            negative = (queries * documents.roll(shift, dims=0)).sum(dim=1).numpy()
            for values, color, label in (
                (negative, _COLORS[1], "another function's document"),
                (positive, _COLORS[0], "its own document"),
            ):
                axes.hist(values, bins, density=True, color=color, alpha=0.6, label=label)
                axes.axvline(float(np.median(values)), color=color, linestyle="--", linewidth=1.2)
            # How often a positive pair is closer than a random one.
            rank = np.searchsorted(np.sort(negative), positive).mean() / len(negative)
            axes.set(xlabel="cosine similarity", title=f"{name} (AUC {rank:.3f})")
        all_axes[0, 0].set_ylabel("density")
        handles, labels = all_axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title="similarity of the summary of a held-out function and",
            loc="outside lower center",
            ncols=2,
        )
        _save(figure, path)


def plot_embedding_space(
    embeddings: Tensor, packages: Sequence[str], path: Path, *, seed: int = 0
) -> None:
    """Two principal components of the embeddings, coloured by package.

    Args:
        embeddings: (M, D).
        packages: the package of each row; the seven largest have their own panel and colour.
        path: PNG to write.
        seed: of the order in which points are drawn.
    """
    flat = PCA(n_components=2, random_state=seed).fit_transform(
        normalize(embeddings, dim=1).numpy()
    )
    names = np.array(packages)
    largest = [name for name, _ in Counter(packages).most_common(len(_COLORS))]
    colors = dict(zip(largest, _COLORS, strict=False))
    low, high = np.percentile(flat, [0.2, 99.8], axis=0)
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        columns = min(4, 1 + len(largest))
        rows = -(-(1 + len(largest)) // columns)
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(3 * columns, 3 * rows + 0.4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        order = np.random.default_rng(seed).permutation(len(flat))
        _scatter(grid[0, 0], flat[order], [colors.get(name, _GREY) for name in names[order]], 0.35)
        grid[0, 0].set_title(f"all {len(flat):,} functions")
        for axes, name in zip(grid.flat[1:], largest, strict=False):
            _scatter(axes, flat, "#E4E4E4", 1.0)
            own = flat[names == name]
            _scatter(axes, own, colors[name], 0.5)
            axes.set_title(f"{name} ({len(own):,})", color=colors[name])
        for axes in grid.flat[1 + len(largest) :]:
            axes.set_visible(False)
        for axes in grid.flat:
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        figure.suptitle("Documents in embedding space: two principal components", weight="bold")
        _save(figure, path)


def _scatter(axes: Axes, points: np.ndarray, color: Any, alpha: float) -> None:
    axes.scatter(
        points[:, 0], points[:, 1], c=color, s=2, alpha=alpha, linewidths=0, rasterized=True
    )


def _evaluations(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    by_step = {entry["step"]: entry for entry in log if "eval_alignment" in entry}
    return [by_step[step] for step in sorted(by_step)]


def _kind(entry: Mapping[str, Any]) -> str:
    anchor, positive, *_ = str(entry["kind"]).split("-")
    return f"{anchor} → {positive}"


def _mrr(entry: Mapping[str, Any]) -> float:
    return next(float(value) for key, value in entry.items() if key.endswith("mrr@10"))


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as scratch:
        figure.savefig(scratch)
    plt.close(figure)
