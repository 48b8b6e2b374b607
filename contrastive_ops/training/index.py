"""What a finished run leaves to search in: the corpus, and an embedding for each function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from ..mining.topk import topk_similarity
from .atomic import atomic_path
from .corpus import Corpus
from .docstrings import Function
from .folder import RunFolder


@dataclass(frozen=True)
class Hit:
    """A function that was found, and the cosine of its embedding with the query's."""

    function: Function
    score: float


def save_index(folder: RunFolder, summaries: Tensor, documents: Tensor) -> None:
    """Write one embedding for each function: the mean of two of its views, each of length one.

    Args:
        folder: of the run, which holds the corpus.
        summaries, documents: (M, D) embeddings in the corpus's order.
    """
    mean = normalize(normalize(summaries, dim=1) + normalize(documents, dim=1), dim=1)
    # Half precision moves a cosine by less than 0.001 and halves the file.
    with atomic_path(folder.index) as scratch:
        np.save(scratch, mean.half().numpy())


def search(folder: RunFolder, query: str, *, top: int) -> list[Hit]:
    """The functions nearest to a query, best first.

    Args:
        folder: of a finished run.
        query: any text.
        top: how many; at least 1.

    Raises:
        ValueError: no finished run in the folder, an empty query, or `top` below 1.
    """
    if not query.strip():
        raise ValueError("query: expected some text, got none")
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    folder.require_finished()
    functions = Corpus.load(folder.corpus).functions
    embeddings = torch.from_numpy(np.load(folder.index)).float()
    model = SentenceTransformer(str(folder.model), device="cpu", local_files_only=True)
    embedding = model.encode(query, convert_to_tensor=True, show_progress_bar=False)
    if not embedding.any():
        raise ValueError(f"query: expected letters or digits to search for, got {query!r}")
    found = topk_similarity(embedding[None], embeddings, min(top, len(embeddings)))
    hits = zip(found.scores[0].tolist(), found.indices[0].tolist(), strict=True)
    return [Hit(functions[row], score) for score, row in hits]
