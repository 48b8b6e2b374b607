"""The recipe `docs`, stage by stage: mine, split, tokenize, train, evaluate, draw.

Each stage writes its result whole and is skipped when the result is there, so that an interrupted
run goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Nothing is downloaded: not the model, not the data, not a template for its card.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator
from torch import Tensor
from torch.nn.functional import normalize

from .. import metrics
from ..engine.backends import choose
from . import plots
from .atomic import atomic_path, remove, write_json
from .corpus import Corpus, build_corpus
from .dense import time_losses
from .docstrings import mine_functions
from .encoder import TokenCache, build_encoder, embed, train_tokenizer
from .fit import AlignmentUniformityEvaluator, Recipe, fit
from .folder import RunFolder
from .index import save_index
from .pairs import build_pairs
from .report import report
from .retrieval import BM25, Task, choose_weight, dense_scores, evaluate, fused_scores

# Documents that the uniformity in the report looks at; it takes all pairs of them.
_UNIFORMITY_SAMPLE = 8192


@dataclass(frozen=True)
class DocsSettings:
    """What decides the result of the recipe; see `contrastive-ops train --help`."""

    packages: tuple[str, ...]
    queries: int
    vocabulary: int
    dim: int
    epochs: float
    batch_size: int
    temperature: float
    learning_rate: float
    token_dropout: float
    seed: int
    backend: str | None

    def recipe(self) -> Recipe:
        """The part that concerns the training."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            token_dropout=self.token_dropout,
            seed=self.seed,
            backend=self.backend,
        )


class _Timer:
    """Says what is being done, and keeps the seconds of each stage across interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )

    @contextmanager
    def stage(self, key: str, message: str) -> Iterator[None]:
        print(message, flush=True)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[key] = self.seconds.get(key, 0.0) + spent
            write_json(self._path, self.seconds)


def train_docs(output: Path, settings: DocsSettings, *, restart: bool = False) -> dict[str, Any]:
    """Run the recipe in a folder, or what is left of it; print and return its metrics.

    Args:
        output: folder of the run; see `RunFolder` for what is in it.
        settings: of the run.
        restart: forget an earlier run in the folder.

    Raises:
        ValueError: the folder belongs to other settings, or the corpus is too small for them.
    """
    choose(settings.backend, torch.device("cpu"))  # a name that does not work is no run
    folder = RunFolder(output)
    folder.open(asdict(settings), restart=restart)
    if not folder.metrics.exists():
        with _quiet():
            _run(folder, settings)
    remove(folder.checkpoints)
    result: dict[str, Any] = json.loads(folder.metrics.read_text(encoding="utf-8"))
    print(report(result, folder))
    return result


def _run(folder: RunFolder, settings: DocsSettings) -> None:
    timer = _Timer(folder.timings)
    corpus = _mine(folder, settings, timer)
    untrained, cache = _untrained(folder, settings, corpus, timer)
    model, log = _train(folder, settings, corpus, cache, timer)

    with timer.stage("evaluate", "Embedding the corpus with both models"):
        views = {
            (name, view): embed(encoder, cache, corpus.view(view))
            for view in ("summary", "name", "document")
            for name, encoder in (("untrained", untrained), ("trained", model))
        }
        save_index(folder, views["trained", "summary"], views["trained", "document"])
        results = {
            title: _search_results(corpus, views, query, document)
            for title, query, document in (
                ("summary → document", "summary", "document"),
                ("name → summary", "name", "summary"),
            )
        }
    with timer.stage("dense", "Timing the dense loss"):
        loss_times = _time_dense(settings, corpus, views)
    with timer.stage("plots", "Drawing"):
        _draw(folder, corpus, views, log)

    steps = [entry for entry in log if "loss" in entry]
    write_json(
        folder.metrics,
        {
            "settings": asdict(settings),
            "versions": _versions(settings.packages),
            "threads": torch.get_num_threads(),
            "functions": len(corpus.functions),
            "training_functions": len(corpus.rows("train")),
            "held_out_queries": len(corpus.rows("test")),
            "results": results,
            "steps": len(steps),
            "pairs_seen": len(steps) * settings.batch_size,
            "training_seconds": sum(entry["seconds"] for entry in log),
            "loss_seconds": sum(entry["loss_seconds"] for entry in steps),
            "loss_step_seconds": loss_times,
            "stage_seconds": timer.seconds,
        },
    )


def _mine(folder: RunFolder, settings: DocsSettings, timer: _Timer) -> Corpus:
    if not folder.corpus.exists():
        with timer.stage("mine", "Mining documented functions"):
            functions = mine_functions(settings.packages)
            corpus = build_corpus(functions, queries=settings.queries, seed=settings.seed)
            corpus.save(folder.corpus)
    corpus = Corpus.load(folder.corpus)
    print(
        f"{len(corpus.functions):,} functions, {len(corpus.rows('train')):,} of them to train on, "
        f"{len(corpus.rows('dev')):,} to choose settings, {len(corpus.rows('test')):,} to report"
    )
    return corpus


def _untrained(
    folder: RunFolder, settings: DocsSettings, corpus: Corpus, timer: _Timer
) -> tuple[SentenceTransformer, TokenCache]:
    if not folder.untrained.exists():
        with timer.stage("tokenizer", f"Training a tokenizer of {settings.vocabulary:,} pieces"):
            rows = corpus.rows("train")
            texts = [*corpus.view("document", rows), *corpus.view("summary", rows)]
            cache = TokenCache(train_tokenizer(texts, vocabulary=settings.vocabulary))
            model = build_encoder(cache, texts, dim=settings.dim, seed=settings.seed)
            with atomic_path(folder.untrained) as scratch:
                model.save(str(scratch), create_model_card=False)
        return model, cache
    model = _load(folder.untrained)
    return model, TokenCache(model.tokenizer)


def _train(
    folder: RunFolder,
    settings: DocsSettings,
    corpus: Corpus,
    cache: TokenCache,
    timer: _Timer,
) -> tuple[SentenceTransformer, list[dict[str, Any]]]:
    if not folder.log.exists():
        with timer.stage("train", "Training"):
            rows = corpus.rows("dev")
            queries, documents = corpus.view("summary", rows), corpus.view("document", rows)
            task = Task("development", queries, documents, list(range(len(rows))))
            model = _load(folder.untrained)
            log = fit(
                model,
                build_pairs(corpus),
                settings.recipe(),
                cache=cache,
                checkpoints=folder.checkpoints,
                evaluator=SequentialEvaluator(
                    [task.evaluator("dev"), AlignmentUniformityEvaluator(queries, documents)]
                ),
            )
            with atomic_path(folder.model) as scratch:
                model.save(str(scratch))
            write_json(folder.log, log)
    return _load(folder.model), json.loads(folder.log.read_text(encoding="utf-8"))


def _search_results(
    corpus: Corpus,
    views: dict[tuple[str, str], Tensor],
    query_view: str,
    document_view: str,
) -> dict[str, Any]:
    """Every system on one task: the fusion's weight from the dev split, the rest from test."""
    documents = corpus.view(document_view)
    bm25 = BM25(documents)
    rows: dict[str, dict[str, float]] = {}
    weight = 0.0
    for split in ("dev", "test"):
        held_out = corpus.rows(split)
        queries = corpus.view(query_view, held_out)
        task = Task(split, queries, documents, held_out)
        dense = {
            name: dense_scores(views[name, query_view][held_out], views[name, document_view])
            for name in ("untrained", "trained")
        }
        lexical = bm25.scores(queries)
        if split == "dev":
            weight = choose_weight(task, dense["trained"], lexical)
            continue
        rows = {
            "untrained": evaluate(task, dense["untrained"]),
            "BM25": evaluate(task, lexical),
            "trained": evaluate(task, dense["trained"]),
            "trained + BM25": evaluate(task, fused_scores(dense["trained"], lexical, weight)),
        }
        for name in ("untrained", "trained"):
            x, y = views[name, query_view][held_out], views[name, document_view]
            rows[name]["alignment"] = metrics.alignment(x, y[held_out]).item()
            sample = torch.linspace(0, len(y) - 1, min(len(y), _UNIFORMITY_SAMPLE)).long()
            rows[name]["uniformity"] = metrics.uniformity(y[sample]).item()
    return {"bm25_weight": weight, "systems": rows}


def _time_dense(
    settings: DocsSettings, corpus: Corpus, views: dict[tuple[str, str], Tensor]
) -> dict[str, float]:
    """One batch of trained embeddings through the dense loss and through ours."""
    rows = corpus.rows("train")[: settings.batch_size]
    query, key = (views["trained", view][rows] for view in ("summary", "document"))
    return time_losses(
        query,
        key,
        torch.arange(len(rows)),
        temperature=settings.temperature,
        backend=settings.backend,
    )


def _draw(
    folder: RunFolder,
    corpus: Corpus,
    views: dict[tuple[str, str], Tensor],
    log: Sequence[dict[str, Any]],
) -> None:
    held_out = corpus.rows("test")
    plots.plot_loss(log, folder.plots / "loss.png")
    plots.plot_alignment_uniformity(log, folder.plots / "alignment_uniformity.png")
    plots.plot_similarities(
        {
            name: (views[name, "summary"][held_out], views[name, "document"][held_out])
            for name in ("untrained", "trained")
        },
        folder.plots / "similarities.png",
    )
    plots.plot_embedding_space(
        normalize(views["trained", "document"], dim=1),
        [function.package for function in corpus.functions],
        folder.plots / "embedding_space.png",
    )


def _load(path: Path) -> SentenceTransformer:
    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    names = {"contrastive-ops", "sentence-transformers", "tokenizers", "bm25s", *packages}
    found = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            found[name] = version({"sklearn": "scikit-learn"}.get(name, name))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' notes for developers off the screen; warnings of ours stay."""
    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
