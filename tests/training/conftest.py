"""A corpus small enough to train on in seconds, with something to learn in it."""

from __future__ import annotations

import os
import random
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from contrastive_ops.training.corpus import Corpus
    from contrastive_ops.training.docstrings import Function

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Without the extra `train` only the metrics and the mining of sources can be tested.
if any(find_spec(name) is None for name in ("sentence_transformers", "bm25s", "matplotlib")):
    collect_ignore_glob = ["test_[!dm]*.py", "test_docs_recipe.py"]

VERBS = {
    "read": ["load", "fetch", "open"],
    "write": ["save", "store", "dump"],
    "sort": ["order", "arrange", "rank"],
    "join": ["merge", "combine", "concat"],
    "count": ["tally", "total", "number"],
    "remove": ["delete", "drop", "discard"],
}
NOUNS = {
    "file": ["disk", "path", "stream"],
    "matrix": ["rows", "columns", "array"],
    "graph": ["nodes", "edges", "vertices"],
    "socket": ["host", "port", "packet"],
    "image": ["pixels", "colour", "bitmap"],
    "table": ["records", "fields", "cells"],
    "string": ["letters", "text", "characters"],
}
ADJECTIVES = [
    "large",
    "small",
    "empty",
    "nested",
    "local",
    "remote",
    "cached",
    "frozen",
    "lazy",
    "random",
]


def make_functions() -> list[Function]:
    """One function for each verb, adjective and noun.

    Summaries speak of them in one set of words; names, docstrings and code in others, from which
    only the adjective can be recognised without having learned anything.
    """
    from contrastive_ops.training.docstrings import Function

    draw = random.Random(0)
    functions = []
    for verb, verb_words in VERBS.items():
        for noun, noun_words in NOUNS.items():
            for adjective in ADJECTIVES:
                number = len(functions)
                name = f"{verb_words[0]}_{adjective}_{noun_words[0]}"
                verbs, nouns = draw.sample(verb_words, 2), draw.sample(noun_words, 2)
                calls = ".".join([*verbs, adjective, *nouns])
                functions.append(
                    Function(
                        package=f"package_{number % 3}",
                        name=name,
                        path=f"module.py:{number}",
                        summary=f"{verb.title()} the {adjective} {noun} at hand.",
                        rest=f"It will {' '.join(verbs)} any {adjective} {' '.join(nouns)}.",
                        code=f"def {name}(self):\n    return self.{calls}",
                    )
                )
    return functions


@pytest.fixture(scope="session")
def functions() -> list[Function]:
    return make_functions()


@pytest.fixture(scope="session")
def corpus(functions: list[Function]) -> Corpus:
    from contrastive_ops.training.corpus import build_corpus

    return build_corpus(functions, queries=40, seed=0)
