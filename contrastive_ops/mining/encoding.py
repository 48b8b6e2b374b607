"""Embeddings and cross-encoder scores of texts, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..training.atomic import atomic_path
from .hard_negatives import HardNegatives, Rules, choose
from .texts import TextPairs

_QUERIES_AT_ONCE = 256
_TEXTS_A_FILE = 8192


def embed(
    model: Any,
    texts: Sequence[str],
    role: str,
    *,
    batch_size: int,
    cache: Path | None = None,
    model_name: str = "",
    progress: bool | None = None,
) -> Tensor:
    """(N, D) float32 embeddings by a sentence-transformers model.

    Args:
        model: a ``SentenceTransformer``.
        texts: what to encode.
        role: ``"query"`` or ``"document"``, which chooses the model's prompt.
        batch_size: texts at a time.
        cache: folder that keeps the embeddings, 8192 texts a file, under a hash of the texts, role
            and model: a run that was killed goes on behind its last file.
        model_name: what tells one model from another there.
        progress: a progress bar; None: where standard error is a terminal.
    """
    from tqdm import tqdm

    parts = []
    hidden = None if progress is None else not progress
    with tqdm(total=len(texts), desc=f"{role} texts", unit="text", disable=hidden) as bar:
        for start in range(0, len(texts), _TEXTS_A_FILE):
            some = list(texts[start : start + _TEXTS_A_FILE])
            path = None
            if cache is not None:
                digest = hashlib.sha256(json.dumps([model_name, role, some]).encode())
                path = cache / f"{role}-{digest.hexdigest()[:32]}.npy"
            if path is not None and path.exists():
                part = np.load(path)
            else:
                encode = model.encode_query if role == "query" else model.encode_document
                found = encode(
                    some, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False
                )
                part = np.asarray(found, dtype=np.float32)
                if path is not None:
                    with atomic_path(path) as scratch:
                        np.save(scratch, part)
            parts.append(part)
            bar.update(len(some))
    return torch.from_numpy(np.concatenate(parts))


def model_identity(name: str) -> str:
    """A model's name; of a folder also what its weights' files weigh and when they were written."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return json.dumps([str(folder.resolve()), facts])


def rescored(
    cross_encoder: Any, pairs: TextPairs, indices: Tensor, rules: Rules, *, batch_size: int
) -> HardNegatives:
    """Negatives among candidates (N, W), filtered and ranked by a cross-encoder's scores.

    Its scores take the place of similarities in every rule but the rank window.
    """
    from tqdm import tqdm

    scores = torch.full(indices.shape, -torch.inf)
    positive = torch.full((len(indices),), torch.nan)
    blocks = range(0, len(indices), _QUERIES_AT_ONCE)
    for start in tqdm(blocks, desc="rescoring", unit="block", disable=None, leave=False):
        jobs: list[tuple[str, str]] = []
        at: list[tuple[int, int]] = []  # column -1: a positive
        for i in range(start, min(len(indices), start + _QUERIES_AT_ONCE)):
            for p in pairs.positives[i]:
                jobs.append((pairs.queries[i], pairs.corpus[p]))
                at.append((i, -1))
            for column, j in enumerate(indices[i].tolist()):
                if j >= 0:
                    jobs.append((pairs.queries[i], pairs.corpus[j]))
                    at.append((i, column))
        found = cross_encoder.predict(jobs, batch_size=batch_size, show_progress_bar=False)
        found = np.asarray(found)
        if found.shape != (len(jobs),):
            raise ValueError(
                f"cross_encoder: got scores of shape {found.shape} for {len(jobs)} pairs, expected "
                "one of each: a model with one label"
            )
        for (i, column), score in zip(at, found.tolist(), strict=True):
            if column >= 0:
                scores[i, column] = score
            else:
                positive[i] = score if positive[i].isnan() else min(score, float(positive[i]))
    return choose(scores, indices, positive, rules)
