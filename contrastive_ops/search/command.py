"""`contrastive-ops search`: ask for documents, or for functions, by what they are about."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

HELP = """\
Search by meaning, exactly: in an index made by `contrastive-ops index`, or among the functions that
a model made by `contrastive-ops train docs` has learned from.

    contrastive-ops search --index runs/documents "what to look for"
    contrastive-ops search --model runs/docs "read a file line by line"
    contrastive-ops search --index runs/documents --queries questions.tsv --output answers.jsonl
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `search`."""
    parser.add_argument("query", nargs="?", help="what to look for, in plain words")
    parser.add_argument(
        "--index",
        "--model",
        dest="folder",
        type=Path,
        default=Path("runs/docs"),
        metavar="FOLDER",
        help="folder of an index, or of a finished run of `train docs` (default: runs/docs)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="answers to show (default: 5)"
    )
    parser.add_argument("--queries", metavar="TABLE", help="look for many texts, in an index")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="a .jsonl for the answers to --queries"
    )


def run(args: argparse.Namespace) -> int:
    """Print the nearest documents, best first. Returns the exit code."""
    if (args.query is None) == (args.queries is None):
        raise ValueError("query: expected a query or --queries, and only one of them")
    if (args.queries is None) != (args.output is None):
        raise ValueError("--output: expected it with --queries, and only then")
    if (args.folder / "index.json").is_file() or args.queries is not None:
        return _search_index(args)
    if any((args.folder / name).is_file() for name in ("run.json", "modules.json")):
        raise ValueError(
            f"{args.folder}: holds a model, but nothing to search in; `contrastive-ops index "
            f"{args.folder} TABLE --output FOLDER` makes an index of documents"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..training.folder import RunFolder
    from ..training.index import search

    for hit in search(RunFolder(args.folder), args.query, top=args.top):
        function = hit.function
        _show(hit.score, f"{function.name}   {function.package}, {function.path}", function.summary)
    return 0


def _search_index(args: argparse.Namespace) -> int:
    from ..tables import read_columns
    from .index import Index

    index = Index.open(args.folder)
    if args.queries is None:
        found = index.search([args.query], top=args.top)
        rows = found.indices[0].tolist()
        for score, row, document in zip(
            found.scores[0].tolist(), rows, index.documents(rows), strict=True
        ):
            others = [f"{k}: {v}" for k, v in document.items() if k != index.column and v]
            _show(score, "   ".join([f"row {row + 1}", *others]), str(document[index.column]))
        return 0
    table, (column,) = read_columns(args.queries, "query")
    queries = table.texts(column)
    found = index.search(queries, top=args.top)
    from ..training.atomic import atomic_path

    every = sorted(set(found.indices.flatten().tolist()))
    text_of = dict(zip(every, index.documents(every), strict=True))
    with atomic_path(args.output) as scratch, open(scratch, "w", encoding="utf-8") as file:
        for query, scores, rows in zip(
            queries, found.scores.tolist(), found.indices.tolist(), strict=True
        ):
            hits: list[dict[str, Any]] = [
                {"row": row + 1, "score": score, "document": text_of[row]}
                for score, row in zip(scores, rows, strict=True)
            ]
            file.write(json.dumps({"query": query, "hits": hits}, ensure_ascii=False) + "\n")
    print(f"{len(queries):,} queries, {found.indices.shape[1]} answers each -> {args.output}")
    return 0


def _show(score: float, heading: str, text: str) -> None:
    width = max(min(shutil.get_terminal_size().columns, 100) - 7, 20)
    line = " ".join(heading.splitlines())
    print(f"{score:.3f}  {line if len(line) <= width else line[: width - 1] + '…'}")
    print(textwrap.indent(textwrap.fill(text, width), " " * 7))
