"""sentence-transformers' trainer with what it leaves out: the loss's own state, times, a log."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformerTrainer
from transformers import ProgressCallback, TrainerCallback

from .atomic import atomic_path, remove
from .losses import InfoNCE, RecipeLoss, SupCon

#: In a checkpoint, beside what the library writes there.
LOSS_STATE = "loss_state.pt"


class RecipeTrainer(SentenceTransformerTrainer):
    """The library's trainer for one :class:`RecipeLoss`.

    A checkpoint also holds the loss's own state. A logged entry also says where the time of a step
    went (the loss, the data, and the rest, which is the encoder and its optimizer), and what the
    last batch looked like to the loss.
    """

    loss: RecipeLoss

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._seconds = {"encoder": 0.0, "loss": 0.0, "data": 0.0}
        self._steps = 0
        self._began = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also begins the clock of a step."""
        self._began = time.perf_counter()
        found = super().get_batch_samples(*args, **kwargs)
        self._seconds["data"] += time.perf_counter() - self._began
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Also tells the loss when its gradients are there, and when it will be logged."""
        every = max(1, int(self.state.logging_steps))
        self.loss.wants_statistics = (self.state.global_step + 1) % every == 0
        found = super().training_step(*args, **kwargs)
        self.loss.after_backward()
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Also refuses a metric that is to choose the best model and is none of those found."""
        found: dict[str, float] = super().evaluate(*args, **kwargs)
        best = self.args.metric_for_best_model
        names = {name.removeprefix("eval_") for name in found}
        if self.args.load_best_model_at_end and best and best.removeprefix("eval_") not in names:
            speed = {"epoch", "runtime", "samples_per_second", "steps_per_second"}
            listed = ", ".join(sorted(names - speed))
            raise ValueError(f"metric_for_best_model: got {best!r}, expected one of {listed}")
        return found

    def end_step(self) -> None:
        """Adds up the times of a step."""
        self._steps += 1
        self._seconds["loss"] += self.loss.watch.seconds
        self._seconds["encoder"] += time.perf_counter() - self._began
        self.loss.watch.seconds = 0.0

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds to an entry of training steps."""
        if "loss" in logs and self._steps:
            spent = {name: value / self._steps for name, value in self._seconds.items()}
            spent["encoder"] = max(0.0, spent["encoder"] - spent["loss"] - spent["data"])
            logs = {**logs, **self.loss.statistics, "seconds": spent}
            if isinstance(self.loss, InfoNCE | SupCon):
                temperature = self.loss.temperature()
                logs["temperature"] = (
                    temperature if isinstance(temperature, float) else temperature.item()
                )
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._steps = 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        torch.save(self.loss.own_state(), Path(output_dir or self.args.output_dir) / LOSS_STATE)

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        super()._load_from_checkpoint(checkpoint_path, *args)
        path = Path(checkpoint_path) / LOSS_STATE
        if path.exists():
            self.loss.load_own_state(torch.load(path, map_location="cpu", weights_only=True))


class RunLog(TrainerCallback):
    """Writes ``log.jsonl`` and ``evaluation.jsonl``, and keeps the trainer's steps in order.

    The files are written anew from a checkpoint's history when a run is taken up: they never hold
    a step twice.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: RecipeTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes up the history."""
        if state.is_world_process_zero:
            for name, kind in (("log.jsonl", "loss"), ("evaluation.jsonl", "eval")):
                with atomic_path(self.folder / name) as scratch:
                    lines = [_line(entry) for entry in state.log_history if _is(entry, kind)]
                    scratch.write_text("".join(lines), encoding="utf-8")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Averages the gradients of the loss's own parameters over all ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        assert self.trainer is not None
        for parameter in self.trainer.loss.own_parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint ends a stretch of the log, and the last step is evaluated."""
        assert self.trainer is not None
        self.trainer.loss.after_step()
        self.trainer.end_step()
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
        if control.should_save or control.should_evaluate:
            # A run that starts at this checkpoint averages the losses that follow over equal steps.
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Appends what was logged."""
        if not state.is_world_process_zero or not state.log_history:
            return
        entry = state.log_history[-1]
        for name, kind in (("log.jsonl", "loss"), ("evaluation.jsonl", "eval")):
            if _is(entry, kind):
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.write(_line(entry))


def _is(entry: dict[str, Any], kind: str) -> bool:
    return "loss" in entry if kind == "loss" else any(name.startswith("eval_") for name in entry)


#: Of evaluations; the last is what the library makes of a list of them.
_NO_METRICS = (
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_sequential_score",
)


def _line(entry: dict[str, Any]) -> str:
    kept = {k.removeprefix("eval_"): v for k, v in entry.items() if k not in _NO_METRICS}
    return json.dumps(kept) + "\n"


class Bar(ProgressCallback):
    """transformers' progress bar with the loss beside it, in place of a line for each step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts where the training does."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")
            self.on_step_end(args, state, control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Shows the loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)


def newest_checkpoint(folder: Path, *, world_size: int = 1, clean: bool = False) -> str | None:
    """The last checkpoint that was written whole, whatever killed the run.

    The library writes the trainer's state last, after the model and the optimizer.

    Args:
        folder: of the checkpoints.
        world_size: ranks, each of which has its random states in a file.
        clean: whether to remove what is not whole.
    """
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole = path.name == f"checkpoint-{state['global_step']}"
            whole &= len(list(path.glob("rng_state*.pth"))) >= world_size
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            found[int(path.name.rpartition("-")[2])] = path
        elif clean:
            remove(path)
    return os.fspath(found[max(found)]) if found else None
