"""The one function behind all recipes: settings and data in, a trained model's folder out."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import logging
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import (
    HfArgumentParser,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from .. import __version__
from ..engine.backends import choose
from ..evaluation import Evaluator, load_model
from ..info import describe_machine
from ..tables import split_source
from .atomic import atomic_path, remove, remove_partial, write_json
from .collator import RecipeCollator
from .data import Data, read_data
from .evaluators import build_evaluators, split_name
from .losses import LOSSES, RecipeLoss
from .mined import with_mined_negatives
from .poolers import build_model, check_export, export_plain
from .settings import Settings
from .trainer import Bar, RecipeTrainer, RunLog, newest_checkpoint

_BEFORE = "space-before.npz"
_RUN_FILES = ("log.jsonl", "evaluation.jsonl", "mined.json", _BEFORE, "space.npz", "report.html")
_RUN_FOLDERS = ("checkpoints", "model", "plots", "huggingface")


@dataclass(frozen=True)
class Result:
    """What a run left.

    Attributes:
        folder: of the run; the model is in ``folder / "model"``.
        metrics: of the model, that is of the best checkpoint or the last, by name.
        untrained: the same before training; empty where it was not evaluated.
        log: an entry for each logged step.
    """

    folder: Path
    metrics: dict[str, float]
    untrained: dict[str, float]
    log: list[dict[str, Any]]

    def load(self) -> SentenceTransformer:
        """The trained model."""
        return load_model(str(self.folder / "model"))


def train(
    settings: Settings,
    output: str | Path,
    *,
    restart: bool = False,
    export: bool = False,
    report: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    command: str = "",
) -> Result:
    """Trains a model, or takes up the training that was interrupted in the folder.

    A run that was killed at any moment and is started again takes the steps from its last
    checkpoint on to the same losses as one that was not. A finished one is only read again, and
    gets the export or the report that it lacks.

    Args:
        settings: see :class:`Settings` and :func:`contrastive_ops.training.settings.load`.
        output: folder of the run.
        restart: forget what is in the folder.
        export: also save the backbone for transformers' own classes, in ``output/huggingface``.
        report: also draw ``output/report.html``.
        callbacks: for the trainer.
        command: what to note as the command line (default: this process's).

    Raises:
        ValueError: data or settings that are wrong, before any training; or a folder that holds a
            run with other settings.
    """
    output = Path(output)
    arguments = _arguments(settings, output)
    choose(settings.backend, arguments.device)  # a name that does not work is no run
    main = arguments.process_index == 0
    with arguments.main_process_first(local=False, desc="opening the folder"):
        if main:
            _open(output, settings, command, restart=restart)
    if (output / "model").is_dir():
        if main:
            _complete(output, settings, export=export, report=report)
        return read_result(output)
    with arguments.main_process_first(local=False, desc="mining"):
        data = with_mined_negatives(settings, read_data(settings), output)
    if settings.gather_across_devices and arguments.world_size > 1 and isinstance(data.train, dict):
        raise ValueError(
            "gather_across_devices: got true with batches of one source each, which differ from "
            "process to process; expected one source, or them mixed"
        )
    evaluators = _evaluators(settings, data)
    arguments = _with_evaluation(arguments, settings, evaluators)
    set_seed(arguments.seed)
    model = build_model(settings, _every_text(data))
    if export:
        check_export(model)
    loss, collator = _loss(settings, model, data, arguments.prompts)
    resume = newest_checkpoint(output / "checkpoints", world_size=arguments.world_size, clean=main)
    if resume is not None:
        arguments.eval_on_start = False
    _check_batch(arguments, data)
    # One example for the model card; without any, the trainer embeds thousands to choose some.
    example = next(iter(_parts(data.train)))[0][data.texts[0]]
    model.model_card_data.widget = [{"text": example}]
    sources = [Path(split_source(source)[0]).name for source in settings.data]
    if not isinstance(data.train, dict):
        sources = [" and ".join(sources)]
    model.model_card_data.train_datasets = [{"name": source} for source in sources]
    run_log = RunLog(output)
    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        loss=loss,
        evaluator=evaluators or None,
        data_collator=collator,
        callbacks=[run_log, *callbacks],
    )
    run_log.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # all of it is in log.jsonl
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar())
    if report and main:
        _keep_space(model, output, settings)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        _save(trainer, output, settings, evaluators, export=export)
        _complete(output, settings, export=export, report=report)
    trainer.accelerator.wait_for_everyone()
    return read_result(output)


def train_seeds(
    settings: Settings, output: str | Path, seeds: int, **options: Any
) -> dict[str, Any]:
    """Trains with several seeds, the first that of the settings, and sums up.

    Args:
        settings, options: see :func:`train`.
        output: folder; each run is in ``seed-N``, the summary in ``summary.json``.
        seeds: how many, at least 1.

    Returns:
        ``recipe``, ``seeds`` and ``metrics``: of each the mean, the standard deviation of a single
        run (0 for one seed) and the values; ``untrained`` likewise.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    output = Path(output)
    first = int(settings.trainer.get("seed", 42))
    numbers = list(range(first, first + seeds))
    results = []
    for seed in numbers:
        own = dataclasses.replace(settings, trainer=settings.trainer | {"seed": seed})
        results.append(train(own, output / f"seed-{seed}", **options))
    summary = {
        "recipe": settings.recipe,
        "seeds": numbers,
        "metrics": _spread([result.metrics for result in results]),
        "untrained": _spread([result.untrained for result in results]),
    }
    if os.environ.get("RANK", "0") == "0":  # of those that torchrun started
        write_json(output / "summary.json", summary)
        if options.get("report", True):
            _report(output)
    return summary


def read_result(folder: str | Path) -> Result:
    """A finished run.

    Raises:
        ValueError: the folder holds none.
    """
    folder = Path(folder)
    if not (folder / "model").is_dir() or not (folder / "run.json").exists():
        raise ValueError(f"{folder}: no finished run")
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    log = _lines(folder / "log.jsonl")
    evaluations = {entry["step"]: entry for entry in _lines(folder / "evaluation.jsonl")}
    best = run.get("best_step") or max(evaluations, default=0)
    return Result(folder, _metrics(evaluations.get(best)), _metrics(evaluations.get(0)), log)


def _metrics(entry: dict[str, Any] | None) -> dict[str, float]:
    return {k: v for k, v in (entry or {}).items() if k not in ("step", "epoch")}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _spread(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": statistics.fmean(values), "std": spread, "values": values}
    return found


class _Parser(HfArgumentParser):
    """Says what is wrong in one line, and not how all hundred arguments are used."""

    def error(self, message: str) -> Any:
        raise ValueError(f"trainer: {message}")


def _arguments(settings: Settings, output: Path) -> SentenceTransformerTrainingArguments:
    """The library's training arguments, of numbers and words as a command line has them."""
    values = {
        "output_dir": str(output / "checkpoints"),
        "report_to": "none",
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Left to itself the trainer takes ranks without an accelerator for runs of their own, and
        # refuses bf16.
        "use_cpu": not torch.accelerator.is_available(),
        **settings.trainer,
    }
    known = {spec.name for spec in dataclasses.fields(SentenceTransformerTrainingArguments)}
    words: list[str] = []
    for name, value in values.items():
        if name.removeprefix("no_") not in known:
            others = known | {spec.name for spec in dataclasses.fields(Settings)}
            near = difflib.get_close_matches(name, sorted(others), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name}: no setting, and no training argument{hint}")
        if value is None:
            continue
        words.append(f"--{name}")
        if isinstance(value, list | tuple):
            words += [str(v) for v in value]
        elif isinstance(value, dict):
            words.append(json.dumps(value))
        else:
            words.append(str(value))
    parser = _Parser(SentenceTransformerTrainingArguments, allow_abbrev=False)
    (arguments,) = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    assert isinstance(arguments, SentenceTransformerTrainingArguments)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}: got {getattr(arguments, name)}, expected at least 1")
    return arguments


def _with_evaluation(
    arguments: SentenceTransformerTrainingArguments, settings: Settings, evaluators: list[Evaluator]
) -> SentenceTransformerTrainingArguments:
    """Without development sets nothing is evaluated; with them the first one's score decides."""
    given = settings.trainer
    if not evaluators:
        arguments.eval_strategy = "no"
        arguments.load_best_model_at_end = False
        arguments.eval_on_start = False
    elif arguments.load_best_model_at_end and "metric_for_best_model" not in given:
        arguments.metric_for_best_model = f"eval_{evaluators[0].primary_metric}"
        arguments.greater_is_better = True
    return arguments


def _open(output: Path, settings: Settings, command: str, *, restart: bool) -> None:
    """Starts a run in the folder or takes up the one that is there."""
    path = output / "run.json"
    wanted = json.loads(json.dumps(settings.to_dict()))
    begun = any((output / name).exists() for name in (*_RUN_FILES, *_RUN_FOLDERS))
    if path.exists() and begun and not restart:
        found = json.loads(path.read_text(encoding="utf-8")).get("configuration", {})
        changed = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        if changed:
            listed = ", ".join(f"{key} = {found.get(key)!r}" for key in changed)
            raise ValueError(
                f"output: {output} holds a run with {listed}; choose another folder, or start "
                "afresh with --restart"
            )
        remove_partial(output)
        return
    for name in (*_RUN_FILES, *_RUN_FOLDERS):
        if (output / name).exists() and not path.exists():
            seeds = any(output.glob("seed-*/run.json"))
            what = "runs with several seeds" if seeds else f"files of something else, {name}"
            raise ValueError(f"output: {output} holds {what}; choose another folder")
        remove(output / name)
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "recipe": settings.recipe,
            "command": command or shlex.join(sys.argv),
            "configuration": wanted,
            "versions": versions(),
            "machine": describe_machine(),
            "seed": settings.trainer.get("seed", 42),
            "started": _now(),
            "model": settings.model or "static",
        },
    )


def versions() -> dict[str, str]:
    """Of everything that decides a result."""
    packages = ("torch", "sentence-transformers", "transformers", "datasets", "accelerate")
    found = {name: version(name) for name in packages}
    return {"contrastive-ops": __version__, "python": platform.python_version(), **found}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _evaluators(settings: Settings, data: Data) -> list[Evaluator]:
    known = None
    if data.classes and data.texts == ("sentence",):
        labels = [label for part in _parts(data.train) for label in part["label"]]
        known = data.columns()[0], labels
    return build_evaluators(settings.evaluate, known, data.classes)


def _parts(train: Dataset | DatasetDict) -> list[Dataset]:
    return list(train.values()) if isinstance(train, dict) else [train]


def _every_text(data: Data) -> list[str]:
    return [text for column in data.columns() for text in column]


def _loss(
    settings: Settings, model: SentenceTransformer, data: Data, prompts: Any
) -> tuple[RecipeLoss, RecipeCollator]:
    """The objective, and the collator that makes its batches."""
    frozen = None
    frozen_texts: tuple[str, ...] = ()
    if settings.objective == "distill":
        if not settings.teacher:
            raise ValueError("teacher: got none, expected a model to distill from")
        frozen, frozen_texts = load_model(settings.teacher, device="cpu"), data.texts[:1]
    elif settings.objective == "info_nce" and settings.guide:
        frozen, frozen_texts = load_model(settings.guide, device="cpu"), data.texts
    if frozen is not None:
        frozen.requires_grad_(False)
    if settings.gather_across_devices and settings.objective != "info_nce":
        raise ValueError(
            f"gather_across_devices: got true with the objective {settings.objective}, expected "
            "info_nce"
        )
    more = {"classes": len(data.classes)} if settings.objective == "softmax" else {}
    loss = LOSSES[settings.objective](model, settings, frozen, **more)
    collator = RecipeCollator(
        preprocess_fn=model.preprocess,
        prompts=prompts,
        texts=data.texts,
        with_ids=settings.objective == "info_nce",
        frozen_fn=None if frozen is None else frozen.preprocess,
        frozen_texts=frozen_texts,
    )
    assert isinstance(loss, RecipeLoss)
    return loss, collator


def _check_batch(arguments: SentenceTransformerTrainingArguments, data: Data) -> None:
    size = arguments.train_batch_size * arguments.world_size
    for part in _parts(data.train):
        if arguments.dataloader_drop_last and len(part) < size:
            raise ValueError(
                f"per_device_train_batch_size: got {size} rows a step, expected at most "
                f"{len(part)}, the rows of a source"
            )


def _save(
    trainer: RecipeTrainer,
    output: Path,
    settings: Settings,
    evaluators: list[Evaluator],
    *,
    export: bool,
) -> None:
    """Notes the end of the run; the model last of all, as the sign that it is finished."""
    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    run |= {"finished": _now(), "steps": trainer.state.global_step}
    if evaluators:
        run |= {"metric": evaluators[0].primary_metric}
        run |= {"dev": split_name(settings.evaluate[0])[1]}
    if trainer.args.load_best_model_at_end:
        run |= {"best_step": trainer.state.best_global_step}
    write_json(output / "run.json", run)
    if export:
        with atomic_path(output / "huggingface") as scratch:
            export_plain(trainer.model, scratch)
    remove(output / "report.html")  # one of the run before its end
    with atomic_path(output / "model") as scratch:
        trainer.model.save_pretrained(str(scratch))


def _complete(output: Path, settings: Settings, *, export: bool, report: bool) -> None:
    """Adds to a trained model what is not there: the run may have been killed just now."""
    if export and not (output / "huggingface").is_dir():
        if settings.lora:
            raise ValueError("export: adapters are merged by the run that trains them; --restart")
        with atomic_path(output / "huggingface") as scratch:
            export_plain(load_model(str(output / "model")), scratch)
    if report and not (output / "report.html").is_file():
        _report(output)


def _keep_space(model: SentenceTransformer, output: Path, settings: Settings) -> None:
    """Keeps the untrained model's space: the report shows it beside the trained one's."""
    path = output / _BEFORE
    if path.exists() or not settings.evaluate:
        return
    from ..report import compute_space

    try:
        compute_space(model, split_name(settings.evaluate[0])[1]).save(path)
    except Exception as error:  # as below
        logging.getLogger(__name__).warning("no space of %s: %s", output, error)


def _report(output: Path) -> None:
    from ..report import write_report

    try:
        write_report(output)
    except Exception as error:  # the model is there: a picture that fails must not lose the run
        logging.getLogger(__name__).warning("no report of %s: %s", output, error)
