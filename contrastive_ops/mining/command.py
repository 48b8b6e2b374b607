"""``contrastive-ops mine``: hard negatives for a training set of texts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = """\
Mines hard negatives for pairs of texts: candidates that a model finds similar to a query and that
are not among its positives. The search is exact, in bounded memory, and the same on every run.

A table of texts is a .tsv (no quoting) or .csv with a header row, a .txt, a .jsonl, a .parquet, or
the folder or name of a dataset; `PATH:COLUMN,COLUMN` names its columns, else the first ones are
taken.

With the model and corpus that `contrastive-ops train docs` leaves:

    contrastive-ops mine --queries runs/docs/corpus.parquet:summary,code --model runs/docs/model \\
        --num-negatives 5 --relative-margin 0.05 --output runs/docs/negatives.jsonl
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    data = parser.add_argument_group("texts")
    data.add_argument(
        "--queries", required=True, metavar="TABLE", help="pairs: a query and its positive"
    )
    data.add_argument(
        "--corpus", metavar="TABLE", help="further candidates besides all the positives"
    )
    data.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .jsonl file, or the folder of a dataset",
    )
    data.add_argument(
        "--format",
        default="triplet",
        choices=("triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding"),
        help="of the output: sentence-transformers' four or FlagEmbedding's (default: %(default)s)",
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model", required=True, metavar="PATH", help="any sentence-transformers model"
    )
    models.add_argument(
        "--cross-encoder", metavar="PATH", help="scores the candidates anew for all score filters"
    )
    models.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="texts at a time (default: 64)"
    )
    models.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keeps embeddings, so that an interrupted run goes on",
    )
    rules = parser.add_argument_group("rules")
    rules.add_argument(
        "--num-negatives", type=int, default=5, metavar="N", help="for each query (default: 5)"
    )
    rules.add_argument(
        "--range-min", type=int, default=0, metavar="N", help="leave out the best N (default: 0)"
    )
    rules.add_argument(
        "--range-max", type=int, metavar="N", help="look no deeper (default: as deep as it takes)"
    )
    rules.add_argument("--absolute-margin", type=float, metavar="M", help="drop above positive - M")
    rules.add_argument(
        "--relative-margin", type=float, metavar="M", help="drop above positive - |positive| * M"
    )
    rules.add_argument("--max-score", type=float, metavar="S", help="drop above S")
    rules.add_argument("--min-score", type=float, metavar="S", help="drop below S")
    rules.add_argument(
        "--sampling",
        default="top",
        choices=("top", "random"),
        help="the best that pass, or a uniform draw (default: %(default)s)",
    )
    rules.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    rules.add_argument(
        "--dot", action="store_true", help="score by dot products (default: cosine similarity)"
    )
    rules.add_argument("--backend", metavar="NAME", help="see `contrastive-ops info`")


def run(args: argparse.Namespace) -> int:
    """Mines; prints the statistics. Returns the exit code."""
    from .hard_negatives import Rules

    rules = Rules(
        args.num_negatives,
        args.range_min,
        args.range_max,
        args.absolute_margin,
        args.relative_margin,
        args.max_score,
        args.min_score,
        args.sampling,
        args.seed,
        not args.dot,
    )
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: got {args.batch_size}, expected at least 1")
    _check_writable(args.output)
    from ..tables import split_source

    for name, source in (("queries", args.queries), ("corpus", args.corpus)):
        path = Path(split_source(source)[0]) if source else None
        if path and path.exists() and args.output.exists() and path.samefile(args.output):
            raise ValueError(f"--output: got {args.output}, which --{name} reads")
    from .texts import TextPairs, read_texts

    queries, positives = read_texts(args.queries, 2)
    corpus = read_texts(args.corpus, 1)[0] if args.corpus else []
    pairs = TextPairs.of(queries, positives, corpus)
    print(
        f"{len(queries):,} pairs: {len(pairs.queries):,} distinct queries, "
        f"{len(pairs.corpus):,} distinct candidates"
    )
    if Path(args.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..training.atomic import remove
    from .pipeline import mine_texts

    # What is mined goes here shard by shard, and from here to the output.
    mined_file = args.output.with_name(args.output.name + ".mined.npz")
    mined = mine_texts(
        pairs,
        rules,
        args.model,
        cross_encoder=args.cross_encoder,
        batch_size=args.batch_size,
        cache=args.cache,
        backend=args.backend,
        output=None if args.cross_encoder else mined_file,
    )
    from .formats import rows_of, write_rows
    from .statistics import table

    count = write_rows(args.output, rows_of(pairs, mined, args.format))
    remove(mined_file)
    print(table(mined.statistics, mined.positive_scores, mined.scores))
    print(f"{count:,} rows of {args.format} -> {args.output}")
    return 0


def _check_writable(output: Path) -> None:
    """Before hours of work, not after; and nothing but an older output is replaced."""
    expected = "expected a .jsonl file, or the folder of a dataset"
    if output.suffix in (".json", ".tsv", ".csv", ".parquet", ".txt"):
        raise ValueError(f"--output: got {output}, {expected}")
    if output.suffix == ".jsonl":
        if output.is_dir():
            raise ValueError(f"--output: {output} is a folder, {expected}")
    elif output.is_file() or _holds_other(output):
        raise ValueError(f"--output: {output} is there and no dataset; choose another name")
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ValueError(f"--output: cannot write to {parent}")


def _holds_other(folder: Path) -> bool:
    """A folder with something in it, which is no saved dataset."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return bool(names) and "dataset_info.json" not in names
