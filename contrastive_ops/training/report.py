"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .folder import RunFolder

_COLUMNS = ("mrr@10", "recall@10", "alignment", "uniformity")
_HEADINGS = ("MRR@10", "recall@10", "alignment", "uniformity")


def report(metrics: Mapping[str, Any], folder: RunFolder) -> str:
    """What a run found, as text.

    Args:
        metrics: content of metrics.json.
        folder: of the run.
    """
    lines = []
    for title, result in metrics["results"].items():
        lines += ["", *_table(title, result, metrics)]
    lines += ["", "BM25's weight beside the model was chosen on other queries than these."]
    training, loss = metrics["training_seconds"], metrics["loss_seconds"]
    step = metrics["loss_step_seconds"]
    settings = metrics["settings"]
    dense = training - loss + metrics["steps"] * step["dense"]
    lines += [
        "",
        f"model     {folder.model}",
        f"index     {folder.index}",
        f"metrics   {folder.metrics}",
        f"plots     {folder.plots}/*.png",
        "",
        f"Training took {training:.0f} s: {metrics['steps']} steps of "
        f"{settings['batch_size']:,} pairs; {loss / training:.0%} of it, {loss:.0f} s, in the loss "
        f"({1000 * loss / metrics['steps']:.0f} ms a step).",
        f"With the dense PyTorch loss, {1000 * step['dense']:.0f} ms a step at this batch "
        f"(ours {1000 * step['ours']:.0f} ms beside it; medians of 3 steps each), "
        f"it would have taken {dense:.0f} s.",
    ]
    return "\n".join(lines)


def _table(title: str, result: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    systems = result["systems"]
    width = max(len(name) for name in systems)
    lines = [
        f"{title}: {metrics['held_out_queries']:,} held-out queries, "
        f"{metrics['functions']:,} candidates",
        " " * width + "".join(f"{heading:>12}" for heading in _HEADINGS) + "   MRR / BM25",
    ]
    for name, values in systems.items():
        cells = (f"{values[key]:.3f}" if key in values else "–" for key in _COLUMNS)
        ratio = values["mrr@10"] / systems["BM25"]["mrr@10"] if systems["BM25"]["mrr@10"] else 0.0
        lines.append(f"{name:<{width}}" + "".join(f"{c:>12}" for c in cells) + f"{ratio:>13.2f}")
    return lines
