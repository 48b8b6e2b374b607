"""Flags of a recipe: its settings, and every training argument of transformers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .settings import Settings, load, read_yaml

SUMMARIES = {
    "simcse-unsup": "unsupervised SimCSE: a sentence against itself with other dropout",
    "simcse-sup": "supervised SimCSE: NLI triplets with hard negatives",
    "sbert-softmax": "Sentence-BERT's classification of NLI pairs",
    "sbert-cosine": "Sentence-BERT's regression of a pair's cosine on its score",
    "sbert-triplet": "Sentence-BERT's triplet loss, on triplets or on texts with labels",
    "static": "an averaging encoder from nothing, in seconds on a CPU",
    "distill": "a student learns a teacher's embeddings, also across languages",
    "contrastive": "anything contrastive: guide, mined negatives, queue, labels, prefixes",
}

HELP = """\
Settings come from the recipe, then from --config, then from the flags. Any argument of
sentence-transformers' training arguments may follow, under its own name: --learning_rate 1e-5
--per_device_train_batch_size 128 --num_train_epochs 2 --bf16 --gradient_accumulation_steps 4
--lr_scheduler_type cosine --report_to tensorboard --seed 1. Start it under torchrun or
`accelerate launch` (-m contrastive_ops.cli train ...) for several processes."""

_GROUPS = ("data", "model", "objective", "views")


def configure(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Adds a recipe's arguments."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs") / recipe,
        metavar="FOLDER",
        help=f"folder of the run (default: runs/{recipe})",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, a YAML file")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="train with N seeds; report mean and spread"
    )
    parser.add_argument("--restart", action="store_true", help="forget an earlier run's files")
    parser.add_argument(
        "--export", action="store_true", help="also save the backbone for transformers alone"
    )
    parser.add_argument("--no-report", action="store_true", help="draw no report.html")
    parser.add_argument(
        "--show", action="store_true", help="print all settings as YAML and do nothing"
    )
    parser.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    for spec in dataclasses.fields(Settings):
        if spec.metadata.get("group"):
            _add(groups[spec.metadata["group"]], spec)
    parser.set_defaults(recipe=recipe, run_recipe=run, passes_on=True)


def run(args: argparse.Namespace) -> int:
    """Trains; prints what came out. Returns the exit code."""
    given = {
        spec.name: getattr(args, spec.name)
        for spec in dataclasses.fields(Settings)
        if spec.name != "recipe" and hasattr(args, spec.name)
    }
    changes = [read_yaml(args.config)] if args.config else []
    settings = load(args.recipe, *changes, given, {"trainer": training_arguments(args.rest)})
    if args.show:
        import yaml

        print(yaml.safe_dump(settings.to_dict(), sort_keys=False), end="")
        return 0
    # The libraries behind it take seconds to import: not for --help or a bad argument.
    from .run import train, train_seeds

    options: dict[str, Any] = {"restart": args.restart, "export": args.export}
    options["report"] = not args.no_report
    try:
        if args.seeds is not None:
            summary = train_seeds(settings, args.output, args.seeds, **options)
            metrics, untrained = summary["metrics"], summary["untrained"]
        else:
            result = train(settings, args.output, **options)
            metrics, untrained = result.metrics, result.untrained
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where it stopped.")
        return 130
    if os.environ.get("RANK", "0") == "0":  # of those that torchrun started
        _print(metrics, untrained)
        print(f"\n{args.output}")
    return 0


def training_arguments(words: Sequence[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value``, ``--name a b`` and ``--flag`` as a mapping.

    Raises:
        ValueError: a word before the first name.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = _plain(value) if equals else True
        elif not name:
            raise ValueError(f"{word}: expected the name of a setting, as in --data {word}")
        elif found[name] is True:
            found[name] = _plain(word)
        else:
            before = found[name] if isinstance(found[name], list) else [found[name]]
            found[name] = [*before, _plain(word)]
    return found


def _plain(word: str) -> Any:
    """A number, truth value or mapping where the word is one; they are what YAML would give."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def _add(group: Any, spec: dataclasses.Field[Any]) -> None:
    made: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _escaped(spec.metadata["help"])}
    kind = str(spec.type).removesuffix(" | None")
    if kind == "bool":
        made["action"] = argparse.BooleanOptionalAction
    elif spec.metadata["choices"]:
        made["choices"] = [choice for choice in spec.metadata["choices"] if choice]
        made["metavar"] = "NAME"
        made["help"] += ": " + ", ".join(made["choices"])
    elif kind.startswith("list"):
        made |= {"nargs": "*", "type": {"str": str, "int": int, "float": float}[kind[5:-1]]}
        made["metavar"] = {"str": "NAME", "int": "N", "float": "X"}[kind[5:-1]]
    elif kind.startswith("dict"):
        made |= {"type": _mapping, "metavar": "{NAME: VALUE}"}
    else:
        made |= {"type": {"str": str, "int": int, "float": float}[kind]}
        made["metavar"] = {"str": "NAME", "int": "N", "float": "X"}[kind]
    if spec.metadata["metavar"]:
        made["metavar"] = spec.metadata["metavar"]
    group.add_argument(f"--{spec.name.replace('_', '-')}", **made)
    if "_" in spec.name:  # as training arguments are written
        group.add_argument(f"--{spec.name}", **made | {"help": argparse.SUPPRESS})


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a mapping such as '{{r: 16}}'")
    return found


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _print(metrics: Mapping[str, Any], untrained: Mapping[str, Any]) -> None:
    """A line for each score: of one run a number, of several the mean and the spread."""
    for name, found in metrics.items():
        before = untrained.get(name)
        if isinstance(found, dict):
            line = f"{found['mean']:8.4f} ± {found['std']:.4f}"
            before = before and before["mean"]
        else:
            line = f"{found:8.4f}"
        more = "" if before is None else f"   untrained {before:.4f}"
        print(f"{name:32} {line}{more}")
