"""The measured parts of `docs/training.md`: commands that were run, the study, the ablation.

A part stands between `<!-- measured: NAME -->` and `<!-- end -->`; `contrastive_ops.benchmarks.
report` rewrites it from the JSON files of `recipe_examples`, `training_study` and
`augmentation_ablation`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

_PART = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->", re.DOTALL)

#: Parts of the study, and the scores of each that are shown; a lower distance is better.
_STUDY = {
    "static": ("sts-dev_spearman",),
    "sup_con": ("clinc-val_accuracy",),
    "mined": ("squad-dev_mrr@10", "squad-dev_recall@1"),
    "not_mined": ("squad-dev_mrr@10", "squad-dev_recall@1"),
    "simcse_sup": ("sts-dev_spearman", "alignment", "uniformity"),
    "simcse_unsup": ("sts-dev_spearman", "alignment", "uniformity"),
}
_MISSING = "Not here: synonyms (77.4) and words filled in by a masked language model (62.2)."
Results = dict[str, Any]


def rewrite(text: str, folder: Path) -> str:
    """The page with each part in place of what is there.

    Raises:
        ValueError: a part that no results tell about, or results without a place.
    """
    parts = render(folder)
    places = _PART.findall(text)
    if sorted(places) != sorted(parts):
        raise ValueError(
            f"training.md: got places for {', '.join(places)}, expected {', '.join(parts)}"
        )
    return _PART.sub(lambda m: f"<!-- measured: {m[1]} -->\n{parts[m[1]]}\n<!-- end -->", text)


def render(folder: Path) -> dict[str, str]:
    """Every part by its name."""
    parts: dict[str, str] = {}
    if (recipes := folder / "recipes.json").is_file():
        kept = json.loads(recipes.read_text(encoding="utf-8"))
        parts |= {name: run(found) for name, found in kept["runs"].items()}
        parts["tables"] = tables(kept["tables"])
    if (study_file := folder / "training.json").is_file():
        parts["study"] = study(json.loads(study_file.read_text(encoding="utf-8"))["parts"])
    if (ablation := folder / "augmentation.json").is_file():
        kept = json.loads(ablation.read_text(encoding="utf-8"))
        parts["augmentation"] = f"{augmentations(kept)}\n\n{_machine([kept])}."
    return parts


def tables(about: dict[str, str]) -> str:
    """What the commands read."""
    rows = [f"| `{name}` | {what} |" for name, what in about.items()]
    return "\n".join(["| file | what |", "|---|---|", *rows])


def run(found: Results) -> str:
    """A command, what it took and what came out."""
    lines = ["```", *_wrapped(found["command"]), "```", ""]
    names = [found["metric"]]
    names += [n for n in ("alignment", "uniformity") if n in found["trained"]]
    scores = ", ".join(
        f"{_named(name)} {_number(name, found['untrained'][name])} → "
        f"**{_number(name, found['trained'][name])}**"
        for name in names
    )
    lines.append(
        f"{found['steps']} steps, {found['seconds']:.0f} s from start to report on "
        f"{found['machine']['threads']} threads. Loss {found['first_loss']:.3g} → "
        f"{found['last_loss']:.3g}; {scores}."
    )
    return "\n".join(lines)


def _wrapped(command: str, width: int = 96) -> list[str]:
    """A command over several lines, broken before its flags."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    pieces: list[str] = []
    for word in words:
        if word.startswith("--") or not pieces:
            pieces.append(word)
        else:
            pieces[-1] += f" {word}"
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"    {piece}")
        else:
            lines[-1] += f" {piece}"
    return lines


def study(parts: Results) -> str:
    """A line a score, and what the loss takes of a step."""
    lines = [
        "| recipe and data | score | untrained | trained | loss | seconds of training | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, scores in _STUDY.items():
        if name not in parts:
            continue
        found = parts[name]
        for place, score in enumerate(scores):
            before, after = (_spread(score, found[key][score]) for key in ("untrained", "trained"))
            about = ["", "", "", ""]
            if place == 0:
                first, last = (_mean(found[key]) for key in ("first_loss", "last_loss"))
                seconds = f"{_mean(found['training_seconds']):.0f}"
                about = [f"`{name}`: {found['note']}", f"{first:.2f} → {last:.2f}", seconds]
                about.append(str(len(found["seeds"])))
            lines.append(
                f"| {about[0]} | {_named(score)} | {before} | **{after}** "
                f"| {about[1]} | {about[2]} | {about[3]} |"
            )
    if "loss_share" in parts:
        share = parts["loss_share"]
        batches = [key for key in share if key.startswith("batch_")]
        told = " and ".join(
            f"{share[key]['share_median']:.2%} of a step at batch {key.removeprefix('batch_')}"
            for key in batches
        )
        lines += ["", f"The loss takes {told}: {share['note']}."]
    lines += ["", f"Means and standard deviations over seeds. {_machine(list(parts.values()))}."]
    return "\n".join(lines)


def augmentations(kept: Results) -> str:
    """A line for each change of the positive."""
    lines = [
        "| the positive is the sentence with | STS-B dev | alignment | uniformity | paper |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in kept["augmentations"]:
        cells = [row["name"], _spread("spearman", row["spearman"])]
        cells += [_number(name, row[name]["mean"]) for name in ("alignment", "uniformity")]
        cells.append("" if row["paper"] is None else f"{row['paper']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    about = f"Untrained: {_number('spearman', kept['untrained'])}. {_MISSING} {kept['caveat']}"
    return "\n".join([*lines, "", about.rstrip()])


def _machine(measured: list[Results]) -> str:
    first = measured[0]
    sets = first["machine"]["instruction_sets"]
    packages = ", ".join(
        f"{name} {' and '.join(dict.fromkeys(m['versions'][name] for m in measured))}"
        for name in ("torch", "sentence-transformers", "transformers")
    )
    commits = ", ".join(dict.fromkeys(m["commit"] for m in measured))
    return (
        f"{first['machine']['cpu']}, {first['machine']['threads']} threads, "
        f"{sets[-1] if sets else 'plain'}; {packages}; commit {commits}"
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _is_geometry(name: str) -> bool:
    return name in ("alignment", "uniformity")


def _named(name: str) -> str:
    """``Spearman (sts-dev)``."""
    data, _, score = name.rpartition("_")
    shown = {"spearman": "Spearman", "mrr@10": "MRR@10", "accuracy": "kNN accuracy"}
    return f"{shown.get(score, score)} ({data})" if data else name


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if _is_geometry(name) else f"{100 * value:.2f}"


def _spread(name: str, found: dict[str, Any]) -> str:
    mean = _number(name, found["mean"])
    return f"{mean} ± {_number(name, found['std'])}" if found["std"] else mean
