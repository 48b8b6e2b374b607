"""``contrastive-ops index``: documents to search in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .encode_command import add_encoding

HELP = """\
Makes a folder to search in: documents, their embeddings, and which model encodes queries. The same
command goes on where an interrupted one stopped.

    contrastive-ops index runs/static documents.tsv:text --output runs/documents
    contrastive-ops search --index runs/documents "what to look for"

The documents' other columns are kept and shown. `--embeddings` takes what `contrastive-ops encode`,
or another program, has computed before.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a sentence-transformers model, or a run")
    parser.add_argument("documents", metavar="TABLE", help="documents; PATH:COLUMN names the text")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the index")
    parser.add_argument(
        "--embeddings",
        metavar="PATH",
        help="a .npy, .safetensors or folder of shards to use in place, row by row the documents'",
    )
    add_encoding(parser)


def run(args: argparse.Namespace) -> int:
    """Builds an index. Returns the exit code."""
    if Path(args.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..tables import read_columns
    from .index import Index

    table, (column,) = read_columns(args.documents, "sentence")
    index = Index.build(
        args.output,
        args.model,
        table,
        column,
        embeddings=args.embeddings,
        dtype=args.dtype,
        batch_size=args.batch_size,
        shard_rows=args.shard_rows,
        device=args.device,
    )
    print(f"{index.rows:,} documents -> {args.output}")
    return 0
