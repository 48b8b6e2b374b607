"""What the evaluations share: encoding, names of scores, and running on all ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util import SimilarityFunction
from sentence_transformers.util.distributed import distributed_evaluation
from torch import Tensor

Scores = dict[str, float]
Side = Literal["plain", "query", "document"]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


class Evaluator(BaseEvaluator):
    """Base of the evaluations: one for a trainer or :func:`evaluate`, or to be called on a model.

    A call returns ``{name}_{score}`` (or ``{score}`` where `name` is empty) and leaves the scores
    in the model card, as sentence-transformers' evaluators do. ``primary_metric`` is what a trainer
    chooses the best checkpoint by.

    Args:
        main: the score that ``primary_metric`` refers to.
        name: put before the scores.
        batch_size: texts at a time.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``; the model's own by
            default.
        progress: whether encoding shows a bar; None: where there is a terminal.
    """

    def __init__(
        self,
        main: str,
        *,
        name: str = "",
        batch_size: int = 64,
        similarity: str | None = None,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        if similarity is not None and similarity not in SIMILARITIES:
            expected = ", ".join(SIMILARITIES)
            raise ValueError(f"similarity: got {similarity!r}, expected one of {expected}")
        self.name, self.batch_size, self.progress = name, batch_size, progress
        self.similarity = similarity
        self.primary_metric: str | None = f"{name}_{main}" if name else main

    def scores(self, model: SentenceTransformer) -> Scores:
        """The scores of a model, by their plain names."""
        raise NotImplementedError

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: float = -1,
        steps: int = -1,
    ) -> Scores:
        found: Scores = self.prefix_name_to_metrics(self.scores(model), self.name)
        self.store_metrics_in_model_card_data(model, found, epoch, steps)
        return found

    def embed(
        self, model: SentenceTransformer, texts: Sequence[str], side: Side = "plain"
    ) -> Tensor:
        """:func:`embed` with the evaluator's settings."""
        return embed(model, texts, side, batch_size=self.batch_size, progress=self.progress)

    def similarity_of(self, model: SentenceTransformer) -> str:
        """The similarity to score by."""
        return self.similarity or str(SimilarityFunction(model.similarity_fn_name).value)


def embed(
    model: SentenceTransformer,
    texts: Sequence[str],
    side: Side = "plain",
    *,
    batch_size: int = 64,
    progress: bool | None = False,
) -> Tensor:
    """(N, D) embeddings on the model's device, float32 at least; each distinct text runs once.

    Args:
        model: any SentenceTransformer.
        texts: N >= 1 of them.
        side: ``"query"`` and ``"document"`` choose the prompts of a model that has such.
        batch_size: texts at a time.
        progress: whether to show a bar; None: where there is a terminal.
    """
    progress = sys.stderr.isatty() if progress is None else progress
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    encode = {
        "plain": model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }[side]
    found: Tensor = encode(
        list(place), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=progress
    )
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    if len(place) == len(texts):
        return found
    return found[torch.tensor([place[text] for text in texts], device=found.device)]


def evaluate(model: SentenceTransformer, evaluators: Iterable[Evaluator]) -> Scores:
    """The scores of several evaluations, the same on every rank.

    Where ``torch.distributed`` is initialised every rank must call this, with equal arguments: the
    texts are encoded by all ranks, in equal shares.

    Args:
        model: on each rank the same weights.
        evaluators: any of this package's, or of sentence-transformers.
    """
    found: Scores = {}
    # Shares out `model.encode` of the first rank; on the others it serves until that is done.
    with distributed_evaluation(model) as first:
        if first:
            for evaluator in evaluators:
                found.update(evaluator(model))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parcel = [found]
        dist.broadcast_object_list(parcel, src=0)
        found = parcel[0]
    return found


def load_model(name: str, **options: Any) -> SentenceTransformer:
    """A model by its name, its folder, or the folder of a run that holds it as ``model``.

    Raises:
        ValueError: no such model, or a folder without one.
    """
    folder = Path(name)
    local = folder.is_dir()
    if local and not any(folder.glob("*config*.json")) and not (folder / "modules.json").exists():
        if not (folder / "model").is_dir():
            seeds = sorted(str(path.parent) for path in folder.glob("seed-*/model"))
            what = f"; expected {' or '.join(seeds)}" if seeds else ""
            run = (folder / "run.json").is_file() or (folder / "settings.json").is_file()
            raise ValueError(f"{name}: holds {'an unfinished run' if run else 'no model'}{what}")
        name = str(folder / "model")
    try:
        return SentenceTransformer(name, local_files_only=local, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {name!r}: {error}") from error
