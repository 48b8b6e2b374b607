"""`contrastive-ops train RECIPE`: the demo on docstrings, and the published recipes."""

from __future__ import annotations

import argparse

from . import docs_command, recipe_command

HELP = """\
Train a sentence embedding model: `contrastive-ops train RECIPE --help` explains a recipe.

`docs` needs nothing: it learns semantic search from the docstrings of the installed packages. The
others train on your files or on datasets of the Hugging Face hub, each with published settings
that flags, a YAML file or any training argument of transformers change:

    contrastive-ops train static --data nli.tsv --evaluate sts-dev=stsb.tsv
    contrastive-ops train simcse-unsup --model bert-base-uncased --data wiki.txt \\
        --evaluate sts-dev=stsb.tsv --seeds 3 --learning_rate 1e-5 --bf16

Everything goes to one folder, in sentence-transformers' format. Interrupt it whenever you like: the
same command goes on where it stopped.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds a parser for each recipe."""
    recipes = parser.add_subparsers(dest="recipe", metavar="RECIPE", title="recipes", required=True)
    docs = recipes.add_parser(
        "docs",
        help="semantic search over the docstrings of installed packages",
        description=docs_command.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    docs_command.configure(docs)
    docs.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    docs.set_defaults(run_recipe=docs_command.run)
    for name, summary in recipe_command.SUMMARIES.items():
        recipe_command.configure(
            recipes.add_parser(
                name,
                help=summary,
                description=f"{summary[0].upper()}{summary[1:]}.\n\n{recipe_command.HELP}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            ),
            name,
        )


def run(args: argparse.Namespace) -> int:
    """Runs the recipe that was chosen. Returns the exit code."""
    return int(args.run_recipe(args))
