"""A mining run in shards of queries, which a killed process goes on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..training.atomic import atomic_path, remove, remove_partial, write_json
from .corpus import Corpus
from .hard_negatives import HardNegatives
from .statistics import MiningStatistics


def run_in_shards(
    mine: Callable[[int, int], HardNegatives],
    n: int,
    shard_rows: int,
    output: str | os.PathLike[str] | None,
    facts: dict[str, Any],
    identity: tuple[Tensor | Corpus, ...],
    progress: bool | None,
) -> HardNegatives:
    """All queries, shard by shard; with ``output``, each kept on disk until the result is there."""
    from tqdm import tqdm

    store = None if output is None else _Store(Path(output), facts, identity)
    parts = []
    with tqdm(
        total=n,
        desc="mining",
        unit="query",
        disable=None if progress is None else not progress,
        leave=False,
    ) as bar:
        for start in range(0, n, shard_rows):
            stop = min(n, start + shard_rows)
            part = None if store is None else store.load(start)
            if part is None:
                part = mine(start, stop)
                if store is not None:
                    store.save(start, part)
            parts.append(part)
            bar.update(stop - start)
    whole = HardNegatives(
        torch.cat([part.indices for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.positive_scores for part in parts]),
        MiningStatistics.total(part.statistics for part in parts),
    )
    if store is not None:
        store.finish(whole)
    return whole


def read_result(path: str | os.PathLike[str]) -> HardNegatives:
    """What :func:`mine_hard_negatives` wrote to ``output``."""
    with np.load(path) as file:
        statistics = json.loads(str(file["statistics"]))
        return HardNegatives(
            torch.from_numpy(file["indices"]),
            torch.from_numpy(file["scores"]),
            torch.from_numpy(file["positive_scores"]),
            MiningStatistics(**statistics),
        )


def _write_result(path: Path, part: HardNegatives) -> None:
    with atomic_path(path) as scratch:
        np.savez(
            scratch,
            indices=part.indices.cpu().numpy(),
            scores=part.scores.cpu().numpy(),
            positive_scores=part.positive_scores.cpu().numpy(),
            statistics=json.dumps(dataclasses.asdict(part.statistics)),
        )


class _Store:
    """The shards beside a result file, and what they were mined from."""

    def __init__(
        self, path: Path, facts: dict[str, Any], identity: tuple[Tensor | Corpus, ...]
    ) -> None:
        if path.suffix != ".npz":
            raise ValueError(f"output: got {str(path)!r}, expected a file name that ends in .npz")
        self.path, self.folder = path, path.with_name(path.name + ".shards")
        wanted = json.loads(json.dumps({**facts, "inputs": _fingerprint(identity)}))
        settings = self.folder / "settings.json"
        if settings.exists():
            found = json.loads(settings.read_text(encoding="utf-8"))
            if found != wanted:
                changed = [key for key in wanted if found.get(key) != wanted[key]]
                raise ValueError(
                    f"output: {self.folder} holds shards of another run ({', '.join(changed)} "
                    "differ); remove it or choose another file"
                )
            remove_partial(self.folder)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(settings, wanted)

    def load(self, start: int) -> HardNegatives | None:
        path = self._shard(start)
        return read_result(path) if path.exists() else None

    def save(self, start: int, part: HardNegatives) -> None:
        _write_result(self._shard(start), part)

    def finish(self, whole: HardNegatives) -> None:
        _write_result(self.path, whole)
        remove(self.folder)

    def _shard(self, start: int) -> Path:
        return self.folder / f"{start:012d}.npz"


def _fingerprint(identity: tuple[Tensor | Corpus, ...]) -> str:
    """A hash of the queries, positives and exclusions, and of some rows of the corpus."""
    digest = hashlib.sha256()
    for item in identity:
        if isinstance(item, Corpus):
            if not item.is_whole:
                continue
            count = len(item)
            rows = torch.linspace(0, count - 1, min(count, 256), dtype=torch.float64).long()
            digest.update(str(count).encode())
            item = item.rows(rows)
        digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
        digest.update(item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
