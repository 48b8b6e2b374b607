"""The command line: ``contrastive-ops COMMAND``.

A command is a module with ``HELP`` (its description), ``configure(parser)`` (its arguments) and
``run(args)`` (its exit code). One that sets the default ``passes_on`` finds in ``args.rest`` what
the parser does not know; to the others it is an error. Only the module of the command that was
asked for is imported, so that ``contrastive-ops info`` works where the packages that training needs
are missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from . import __version__


@dataclass(frozen=True)
class Command:
    """A command's module, its line in the overview, and the extra that installs what it needs."""

    module: str
    summary: str
    extra: str | None = None


COMMANDS = {
    "info": Command("contrastive_ops.info", "show versions, the CPU, and which backends work"),
    "train": Command("contrastive_ops.training.train", "train a sentence embedding model", "train"),
    "report": Command("contrastive_ops.report.command", "write the page of a run", "train"),
    "mine": Command(
        "contrastive_ops.mining.command", "mine hard negatives for pairs of texts", "train"
    ),
    "evaluate": Command(
        "contrastive_ops.evaluation.command", "score models on tables of texts", "train"
    ),
    "encode": Command(
        "contrastive_ops.search.encode_command", "write the embeddings of texts to a file", "train"
    ),
    "index": Command("contrastive_ops.search.index_command", "make documents searchable", "train"),
    "search": Command("contrastive_ops.search.command", "ask an index or a trained model", "train"),
    "bench": Command(
        "contrastive_ops.benchmarks.command", "measure speed, memory and error", "bench"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser = _build_parser(name)
        args, rest = parser.parse_known_args(arguments)
        if rest and not getattr(args, "passes_on", False):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = rest
        if args.command is None:
            parser.print_help()
            return 0
        return int(args.run(args))
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        message = _explain_missing(name, error)
        if message is None or "--traceback" in arguments:
            raise
        return _fail(name, message, 2)
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        return _fail(name, f"error: {error}", 2)


def _build_parser(name: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="contrastive-ops",
        description="Contrastive losses without the similarity matrix.",
        epilog="`contrastive-ops COMMAND --help` explains a command and its arguments.",
    )
    parser.add_argument("--version", action="version", version=f"contrastive-ops {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for key, command in COMMANDS.items():
        sub = commands.add_parser(
            key, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if key != name:
            continue
        module: ModuleType = importlib.import_module(command.module)
        sub.description = module.HELP
        module.configure(sub)
        sub.add_argument(
            "--traceback", action="store_true", help="show where in the code an error arose"
        )
        sub.set_defaults(run=module.run)
    return parser


def _explain_missing(name: str | None, error: ImportError) -> str | None:
    """One line about a package that is not installed; None if the fault is in our own code."""
    extra = COMMANDS[name].extra if name in COMMANDS else None
    package = (error.name or "").partition(".")[0]
    if extra is None or package == "contrastive_ops":
        return None
    if isinstance(error, ModuleNotFoundError) and package:
        what = f"the package {package!r} is missing"
    else:
        what = str(error)
    return f"{what}; to add what this command needs: pip install 'contrastive-ops[{extra}]'"


def _fail(name: str | None, message: str, code: int) -> int:
    program = "contrastive-ops" if name is None else f"contrastive-ops {name}"
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
