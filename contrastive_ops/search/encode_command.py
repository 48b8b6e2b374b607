"""``contrastive-ops encode``: embeddings of texts, to a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

HELP = """\
Writes the embeddings of a table's texts to a file. Interrupt it whenever you like: the same command
goes on where it stopped, and the file appears when it is whole.

    contrastive-ops encode runs/static documents.tsv:text --output documents.npy

A table is a .tsv or .csv with a header row, a .txt of one text a line, a .jsonl, a .parquet, or the
folder or name of a dataset; `PATH:COLUMN` names the column.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a sentence-transformers model, or a run")
    parser.add_argument("texts", metavar="TABLE", help="texts to encode")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .npy, a .safetensors, or a folder of .npy shards",
    )
    parser.add_argument(
        "--side",
        default="document",
        choices=("document", "query", "plain"),
        help="which of the model's prompts (default: %(default)s)",
    )
    parser.add_argument("--normalize", action="store_true", help="divide rows by their length")
    add_encoding(parser)


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Arguments of whatever encodes."""
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16"),
        help="of the embeddings (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="texts at a time (default: 64)"
    )
    parser.add_argument(
        "--shard-rows",
        type=int,
        default=8192,
        metavar="N",
        help="texts that an interruption loses at most (default: 8192)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    """Encodes. Returns the exit code."""
    if Path(args.model).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..evaluation.evaluator import load_model
    from ..mining.encoding import model_identity
    from ..tables import read_columns
    from .embeddings import encode_to, read_embeddings

    table, (column,) = read_columns(args.texts, "sentence")
    texts = table.texts(column)
    encode_to(
        args.output,
        load_model(args.model, device=args.device),
        texts,
        model_name=model_identity(args.model),
        side=args.side,
        dtype=args.dtype,
        normalize=args.normalize,
        batch_size=args.batch_size,
        shard_rows=args.shard_rows,
    )
    blocks, rows = read_embeddings(args.output)
    first: Any = blocks[0] if isinstance(blocks, list) else blocks
    print(f"{rows:,} embeddings of width {first.shape[1]:,}, {args.dtype} -> {args.output}")
    return 0
