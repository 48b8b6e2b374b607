"""Training on pairs: sentence-transformers' trainer, set up to be killed and resumed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from .. import metrics
from .atomic import remove
from .encoder import TokenCache
from .pair_loss import PairLoss
from .stopwatch import Stopwatch
from .trainer import Bar

# A share of all steps: how often the model is evaluated and saved.
_EVERY = 0.1
_STAGING = ".partial-checkpoints"


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a training run, besides the pairs.

    Attributes:
        epochs: passes over all pairs.
        batch_size: pairs a step; each is told from all the others.
        learning_rate: of Adam, after the warm-up of the first tenth and before the linear decay.
        temperature: divides the cosine similarities in the loss.
        token_dropout: probability that a token is left out of a key.
        seed: of everything random.
        backend: of the loss, or None to have it chosen.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    temperature: float
    token_dropout: float
    seed: int
    backend: str | None = None


class AlignmentUniformityEvaluator(BaseEvaluator):
    """Alignment of pairs of texts and uniformity of the second ones.

    Args:
        anchors, positives: texts, row by row a pair.
    """

    def __init__(self, anchors: list[str], positives: list[str]) -> None:
        super().__init__()
        self.anchors = anchors
        self.positives = positives

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: float = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        x, y = (
            model.encode(texts, convert_to_tensor=True, batch_size=1024, show_progress_bar=False)
            for texts in (self.anchors, self.positives)
        )
        return {
            "alignment": metrics.alignment(x, y).item(),
            "uniformity": metrics.uniformity(y).item(),
        }


class _TimedTrainer(SentenceTransformerTrainer):
    """Adds to every log entry the kind of pair, the seconds it took, and those in the loss.

    The entries are part of a checkpoint, so the sums survive an interruption.
    """

    def __init__(self, *, watch: Stopwatch, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._watch = watch
        self._logged = 0.0
        self._kind = ""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._logged = time.perf_counter()
        return super().train(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._kind = inputs.get("dataset_name", "")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        now = time.perf_counter()
        logs = {**logs, "seconds": now - self._logged, "loss_seconds": self._watch.seconds}
        if "loss" in logs:
            logs["kind"] = self._kind
        self._logged, self._watch.seconds = now, 0.0
        super().log(logs, start_time)


class _Publish(TrainerCallback):
    """Moves each checkpoint out of the staging folder once it is whole; keeps the newest."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        previous = get_last_checkpoint(self.checkpoints)
        name = f"checkpoint-{state.global_step}"
        remove(self.checkpoints / name)
        os.replace(Path(args.output_dir) / name, self.checkpoints / name)
        if previous is not None and Path(previous).name != name:
            remove(previous)


def fit(
    model: SentenceTransformer,
    pairs: DatasetDict,
    recipe: Recipe,
    *,
    cache: TokenCache,
    checkpoints: Path,
    evaluator: BaseEvaluator | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, from the newest checkpoint if there is one.

    A run that is interrupted and called again with the same arguments takes the same steps, batch
    by batch and token by token, as one that is not.

    Args:
        model: encoder of which the first module is a StaticEmbedding.
        pairs: as from `build_pairs`; each dataset must fill at least one batch.
        recipe: settings.
        cache: of the encoder's tokenizer.
        checkpoints: folder for checkpoints; only whole ones are ever in it.
        evaluator: run before the first step and at every tenth of the training.

    Returns:
        The log: one entry for each step and evaluation, with the seconds they took.

    Raises:
        ValueError: a batch larger than one of the datasets.
    """
    for kind, dataset in pairs.items():
        if len(dataset) < recipe.batch_size:
            raise ValueError(
                f"batch_size: expected at most {len(dataset)}, the number of {kind} pairs, "
                f"got {recipe.batch_size}"
            )
    # One example for the model card; without any, the trainer embeds thousands to choose some.
    model.model_card_data.widget = [{"text": next(iter(pairs.values()))[0]["anchor"]}]
    # Collator and evaluators tokenize through this; without it they would do so again every time.
    model[0].preprocess = cache
    checkpoints.mkdir(parents=True, exist_ok=True)
    staging = checkpoints / _STAGING
    remove(staging)
    resume_from = get_last_checkpoint(checkpoints)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(staging),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        dataloader_drop_last=True,
        learning_rate=recipe.learning_rate,
        warmup_steps=0.1,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        eval_strategy="no" if evaluator is None else "steps",
        eval_steps=_EVERY,
        eval_on_start=evaluator is not None and resume_from is None,
        save_steps=_EVERY,
        seed=recipe.seed,
        report_to="none",
        disable_tqdm=False,
        use_cpu=True,
    )
    loss = PairLoss(
        model,
        temperature=recipe.temperature,
        token_dropout=recipe.token_dropout,
        backend=recipe.backend,
    )
    trainer = _TimedTrainer(
        watch=loss.watch,
        model=model,
        args=arguments,
        train_dataset=pairs,
        loss=dict.fromkeys(pairs, loss),
        evaluator=evaluator,
        callbacks=[_Publish(checkpoints)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar())
    trainer.train(resume_from_checkpoint=resume_from)
    del model[0].preprocess
    remove(staging)
    return list(trainer.state.log_history)
