"""``contrastive-ops evaluate``: how good a model's embeddings are, on tables of texts."""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HELP = """\
Evaluates models on tables of texts. Every option may be given again.

    contrastive-ops evaluate runs/static --sts stsb/dev.tsv --json scores.json
    contrastive-ops evaluate runs/static base-model --retrieval squad/dev.tsv:question,sentence

A table is a .tsv or .csv with a header row, a .txt of one text a line, a .jsonl, a .parquet, or the
folder or name of a dataset (NAME@SPLIT). `PATH:COLUMN,COLUMN` names its columns, in the order given
below; without names they are found by their usual ones.

Several files of one --sts are scored together, as all their pairs, beside each one's own score.
On several devices: torchrun --nproc-per-node N -m contrastive_ops.cli evaluate ...
"""

# All are in the JSON; a table that shows all is not read.
_REDUNDANT = re.compile(r"(mrr|ndcg|map)@1|map@10|(mrr|ndcg)@100")

TABLES = (
    ("--sts", "+", "pairs with gold scores: SENTENCE1,SENTENCE2,SCORE"),
    ("--retrieval", None, "queries and their answers: ANCHOR,POSITIVE; or a folder like BEIR's"),
    ("--triplets", None, "ANCHOR,POSITIVE,NEGATIVE"),
    ("--knn", "+", "TRAIN [TEST], each LABEL,TEXT: nearest neighbours classify (or leave one out)"),
    ("--clustering", None, "LABEL,TEXT: v-measure of k-means"),
    ("--geometry", None, "pairs as for --sts or --retrieval: alignment, uniformity, ..."),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="name or folder of a sentence-transformers model, or folder of a run",
    )
    tables = parser.add_argument_group("tables")
    for option, nargs, text in TABLES:
        tables.add_argument(
            option, nargs=nargs, action="append", default=[], metavar="TABLE", help=text
        )
    tables.add_argument(
        "--corpus", metavar="TABLE", help="further documents for every --retrieval: TEXT"
    )
    how = parser.add_argument_group("settings")
    how.add_argument(
        "--similarity",
        choices=("cosine", "dot", "euclidean", "manhattan"),
        help="of --sts, --retrieval and --triplets (default: the model's own)",
    )
    how.add_argument(
        "--neighbors", type=int, default=10, metavar="K", help="that vote in --knn (default: 10)"
    )
    how.add_argument("--seed", type=int, default=0, help="of --clustering (default: 0)")
    how.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="texts at a time (default: 64)"
    )
    how.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    how.add_argument("--backend", metavar="NAME", help="see `contrastive-ops info`")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the scores there")


def run(args: argparse.Namespace) -> int:
    """Evaluates; prints a table. Returns the exit code."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: got {args.batch_size}, expected at least 1")
    if args.neighbors < 1:
        raise ValueError(f"--neighbors: got {args.neighbors}, expected at least 1")
    if not any(getattr(args, option.removeprefix("--")) for option, *_ in TABLES):
        raise ValueError("got no table; expected one of " + ", ".join(o for o, *_ in TABLES))
    if args.corpus and not args.retrieval:
        raise ValueError("--corpus: expected --retrieval with it")
    if all(Path(model).exists() for model in args.models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tasks = _tasks(args)  # all tables are read and checked before any model is

    from .evaluator import evaluate, load_model

    first, joined = _join_ranks()
    results: dict[str, dict[str, dict[str, float]]] = {}
    seconds = {}
    for name in args.models:
        model = load_model(name, device=args.device)
        start = time.perf_counter()
        results[name] = {kind: evaluate(model, [evaluator]) for kind, evaluator in tasks.items()}
        seconds[name] = time.perf_counter() - start
    if first:
        print(table(results))
        if args.json is not None:
            from ..training.atomic import write_json

            write_json(args.json, _record(results, seconds))
    if joined:
        import torch.distributed as dist

        dist.destroy_process_group()
    return 0


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    from . import tasks as read

    options: dict[str, Any] = {"batch_size": args.batch_size, "progress": None, "name": ""}
    scored = options | {"similarity": args.similarity}
    made: dict[str, Any] = {}

    def add(kind: str, sources: Sequence[Any], build: Callable[[Any], Any]) -> None:
        for source in sources:
            named = [source] if isinstance(source, str) else source
            name = read._common_name(named if kind == "sts" else named[-1:])
            key = f"{kind} {name}"
            if key in made:
                raise ValueError(f"--{kind}: got {name} twice")
            made[key] = build(source)

    add("sts", args.sts, lambda s: read.read_sts(s, **scored))
    add(
        "retrieval",
        args.retrieval,
        lambda s: read.read_retrieval(s, args.corpus, backend=args.backend, **scored),
    )
    add("triplets", args.triplets, lambda s: read.read_triplets(s, **scored))
    add(
        "knn",
        args.knn,
        lambda s: read.read_knn(s, k=args.neighbors, backend=args.backend, **options),
    )
    add("clustering", args.clustering, lambda s: read.read_clustering(s, seed=args.seed, **options))
    add("geometry", args.geometry, lambda s: read.read_geometry(s, **options))
    return made


def _join_ranks() -> tuple[bool, bool]:
    """Joins the ranks that torchrun started, if it did.

    Returns:
        Whether this rank reports, and whether it joined just now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True, False
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return dist.get_rank() == 0, False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group()
    return dist.get_rank() == 0, True


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """As text: a line for each score, a column for each model."""
    models = list(results)
    rows = [
        (kind, score, [results[model][kind][score] for model in models])
        for kind, scores in results[models[0]].items()
        for score in scores
        if not _REDUNDANT.fullmatch(score)
    ]
    names = [model.rstrip("/") for model in models]
    widths = [max(len(name), 9) for name in names]
    kinds, scores = (max(len(row[i]) for row in rows) for i in (0, 1))
    heading = "".join(f"  {name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [" " * (kinds + 2 + scores) + heading]
    before = ""
    for kind, score, values in rows:
        cells = "".join(f"  {value:>{w}.4f}" for value, w in zip(values, widths, strict=True))
        lines.append(f"{'' if kind == before else kind:<{kinds}}  {score:<{scores}}{cells}")
        before = kind
    return "\n".join(lines)


def _record(
    results: dict[str, dict[str, dict[str, float]]], seconds: dict[str, float]
) -> dict[str, Any]:
    from importlib.metadata import version

    from .. import __version__

    packages = ("torch", "transformers", "sentence-transformers")
    return {
        "versions": {"contrastive-ops": __version__} | {name: version(name) for name in packages},
        "models": [
            {
                "model": model,
                "seconds": seconds[model],
                "scores": {
                    kind: {k: v if math.isfinite(v) else None for k, v in scores.items()}
                    for kind, scores in found.items()
                },
            }
            for model, found in results.items()
        ],
    }
