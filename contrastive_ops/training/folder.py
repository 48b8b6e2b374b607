"""The folder of a run: where everything is, and whether it belongs to the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import remove, remove_partial, write_json


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. Each file and folder appears whole, and the metrics last of all.

    Attributes:
        root: the folder itself.
    """

    root: Path

    @property
    def settings(self) -> Path:
        """What the run was started with."""
        return self.root / "settings.json"

    @property
    def corpus(self) -> Path:
        """The mined functions, a Parquet file."""
        return self.root / "corpus.parquet"

    @property
    def untrained(self) -> Path:
        """The encoder before training, in sentence-transformers' format."""
        return self.root / "untrained"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted training resumes from; gone when it is finished."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained encoder, in sentence-transformers' format."""
        return self.root / "model"

    @property
    def log(self) -> Path:
        """Loss and evaluations, step by step."""
        return self.root / "log.json"

    @property
    def timings(self) -> Path:
        """Seconds of each stage so far."""
        return self.root / "timings.json"

    @property
    def index(self) -> Path:
        """Embeddings of the corpus, row by row."""
        return self.root / "index.npy"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.root / "plots"

    @property
    def metrics(self) -> Path:
        """All that was measured; the sign of a finished run."""
        return self.root / "metrics.json"

    def open(self, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        """Start a run in this folder, or take up the one that was started with these settings.

        Args:
            settings: what decides the result.
            restart: forget what an earlier run left here.

        Raises:
            ValueError: the folder holds a run with other settings, or files of something else.
        """
        if restart and self.settings.exists():
            for path in self._parts():
                remove(path)
        wanted = json.loads(json.dumps(dict(settings)))
        if self.settings.exists():
            found = json.loads(self.settings.read_text(encoding="utf-8"))
            changed = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
            empty = (self.settings, self.plots, self.timings)  # there before any result is
            begun = any(path.exists() for path in self._parts() if path not in empty)
            if changed and begun:
                listed = ", ".join(f"{key} = {found.get(key)!r}" for key in changed)
                raise ValueError(
                    f"output: {self.root} holds a run with {listed}; "
                    "choose another folder, or start afresh with --restart"
                )
        elif any(path.exists() for path in self._parts()):
            raise ValueError(
                f"output: {self.root} holds files of something else; choose another folder"
            )
        for folder in (self.root, self.plots):
            remove_partial(folder)
        write_json(self.settings, wanted)

    def require_finished(self) -> None:
        """Raise ValueError unless a finished run is in the folder."""
        if not self.metrics.exists():
            what = "an unfinished run" if self.settings.exists() else "no trained model"
            raise ValueError(
                f"model: {self.root} holds {what}; `contrastive-ops train docs "
                f"--output {self.root}` {'finishes it' if self.settings.exists() else 'makes one'}"
            )

    def _parts(self) -> list[Path]:
        return [
            self.metrics,
            self.corpus,
            self.untrained,
            self.checkpoints,
            self.model,
            self.log,
            self.timings,
            self.index,
            self.plots,
            self.settings,
        ]
