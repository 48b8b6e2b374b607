"""`contrastive-ops search`: ask a trained model for functions by what they do."""

from __future__ import annotations

import argparse
import os
import shutil
import textwrap
from pathlib import Path

HELP = """\
Search documented functions by meaning, with a model made by `contrastive-ops train docs`.

    contrastive-ops search --model runs/docs "read a file line by line"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `search`."""
    parser.add_argument("query", help="what to look for, in plain words")
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("runs/docs"),
        metavar="FOLDER",
        help="folder of a finished run (default: runs/docs)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="answers to show (default: 5)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the nearest functions, best first. Returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from .folder import RunFolder
    from .index import search

    width = min(shutil.get_terminal_size().columns, 100)
    for hit in search(RunFolder(args.model), args.query, top=args.top):
        function = hit.function
        print(f"{hit.score:.3f}  {function.name}   {function.package}, {function.path}")
        print(textwrap.indent(textwrap.fill(function.summary, width - 7), " " * 7))
    return 0
