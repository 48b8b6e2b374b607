"""`contrastive-ops train docs`: learn a semantic search model from text that every machine has."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from .docstrings import DEFAULT_PACKAGES

HELP = """\
Train a small semantic-search model.

The recipe `docs` mines documented functions from the standard library and installed packages,
and teaches an encoder that the summary, the rest of the docstring, the code and the name of a
function belong together. Held-out functions, never seen in training, tell how well it searches.

Everything goes to one folder: the model (sentence-transformers format), a search index, metrics
and plots. Interrupt it whenever you like: the same command goes on where it stopped, and shows the
results again once it is finished. Then ask it something:

    contrastive-ops search --model runs/docs "read a file line by line"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train docs`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/docs"),
        metavar="FOLDER",
        help="folder of the run (default: runs/docs)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget an earlier run in the folder and start anew"
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--packages",
        nargs="+",
        default=list(DEFAULT_PACKAGES),
        metavar="NAME",
        help="packages to mine, by import name; 'stdlib' is the standard library; those that are "
        f"not installed are skipped (default: {' '.join(DEFAULT_PACKAGES)})",
    )
    data.add_argument(
        "--queries",
        type=int,
        default=2000,
        metavar="N",
        help="functions to hold out for choosing settings, and as many for the report "
        "(default: 2000)",
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--vocabulary", type=int, default=16000, metavar="N", help="word pieces (default: 16000)"
    )
    model.add_argument(
        "--dim", type=int, default=512, metavar="N", help="width of an embedding (default: 512)"
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=float, default=2.0, metavar="N", help="passes over all pairs (default: 2)"
    )
    training.add_argument(
        "--batch-size",
        type=int,
        default=4096,
        metavar="N",
        help="pairs in a step; each learns from telling its own text from N - 1 others "
        "(default: 4096)",
    )
    training.add_argument(
        "--temperature",
        type=float,
        default=0.05,
        metavar="T",
        help="divides the similarities; lower looks harder at the nearest wrong answers "
        "(default: 0.05)",
    )
    training.add_argument(
        "--learning-rate", type=float, default=0.05, metavar="LR", help="of Adam (default: 0.05)"
    )
    training.add_argument(
        "--token-dropout",
        type=float,
        default=0.1,
        metavar="P",
        help="share of tokens to hide in every key while training (default: 0.1)",
    )
    training.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    training.add_argument(
        "--backend",
        metavar="NAME",
        help="backend of the loss, see `contrastive-ops info` (default: the fastest that works)",
    )


def run(args: argparse.Namespace) -> int:
    """Train; print a table of results. Returns the exit code."""
    # The libraries behind it take seconds to import: not for --help or a bad argument.
    _check(args)
    from .docs_recipe import DocsSettings, train_docs

    settings = DocsSettings(
        packages=tuple(args.packages),
        queries=args.queries,
        vocabulary=args.vocabulary,
        dim=args.dim,
        epochs=args.epochs,
        batch_size=args.batch_size,
        temperature=args.temperature,
        learning_rate=args.learning_rate,
        token_dropout=args.token_dropout,
        seed=args.seed,
        backend=args.backend,
    )
    try:
        train_docs(args.output, settings, restart=args.restart)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where it stopped.")
        return 130
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("queries", "vocabulary", "dim", "batch_size", "epochs", "temperature"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: expected a positive number, got {value}")
    if not 0 < args.learning_rate < math.inf:
        raise ValueError(f"--learning-rate: expected a positive number, got {args.learning_rate}")
    if not 0 <= args.token_dropout < 1:
        raise ValueError(f"--token-dropout: expected 0 <= P < 1, got {args.token_dropout}")
