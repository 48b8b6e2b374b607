"""The recipes on a tiny BERT: losses fall, scores rise, models come back, killed runs go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import world
from sentence_transformers import SentenceTransformer

from contrastive_ops import cli
from contrastive_ops.training import recipes
from contrastive_ops.training.run import Result, train
from contrastive_ops.training.settings import load

STEPS = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "logging_steps": 5}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return world.write_bert(tmp_path_factory.mktemp("bert"))


def settings_of(recipe: str, bert: Path, **more):
    trainer = STEPS | {"num_train_epochs": 3, "disable_tqdm": True} | more.pop("trainer", {})
    trainer = {"load_best_model_at_end": False} | trainer
    steps = {"eval_steps": 0.5, "save_steps": 0.5}
    return load(recipe, {"model": str(bert)}, more | {"trainer": steps | trainer})


# recipe, its sources, its changes, the score that has to rise
RUNS = {
    "simcse-unsup": ("simcse-unsup", "sentences.txt", {}, "uniformity"),
    "simcse-unsup-mlm": ("simcse-unsup", "sentences.txt", {"mlm_weight": 0.1}, "uniformity"),
    "simcse-sup": ("simcse-sup", "nli.csv", {"hard_negative_weight": 2.0}, "spearman"),
    "sbert-softmax": ("sbert-softmax", "pairs.tsv", {}, "spearman"),
    "sbert-cosine": (
        "sbert-cosine",
        "scores.tsv",
        {"trainer": {"num_train_epochs": 10}},
        "spearman",
    ),
    "sbert-triplet": ("sbert-triplet", "triplets.tsv", {}, "spearman"),
    "sbert-triplet-mined": (
        "sbert-triplet",
        "labels.tsv",
        {"trainer": {"batch_sampler": "group_by_label"}},
        "accuracy",
    ),
    "distill": ("distill", "parallel.tsv", {}, "spearman"),
    "gist": ("contrastive", "triplets.tsv", {"matryoshka_dims": [8, 32]}, "spearman"),
    "esimcse": (
        "contrastive",
        "flag.jsonl",
        {"queue": 64, "momentum": 0.99, "views": ["repeat", "delete:0.1"], "negatives": 2},
        "spearman",
    ),
    "mined": (
        "contrastive",
        "triplets.tsv:anchor,positive",
        {"mine": {"num_negatives": 2}},
        "spearman",
    ),
    "sup-con": ("contrastive", "labels.tsv", {"objective": "sup_con"}, "accuracy"),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_recipe_learns_and_its_model_comes_back(name, data, bert, tmp_path):
    recipe, source, changes, score = RUNS[name]
    changes = dict(changes)
    if name == "distill":
        teacher = recipes.static(
            data / "triplets.tsv",
            tmp_path / "teacher",
            dim=24,
            vocabulary=300,
            matryoshka_dims=[24],
            report=False,
            trainer=STEPS | {"num_train_epochs": 20, "disable_tqdm": True},
        )
        changes["teacher"] = str(teacher.folder)
    if name == "gist":
        changes["guide"] = str(bert)
    dev = "labels-dev.tsv" if score == "accuracy" else "dev.tsv"
    settings = settings_of(
        recipe, bert, data=[str(data / source)], evaluate=[f"dev={data / dev}"], **changes
    )
    result = train(settings, tmp_path / "run", report=False)
    losses = [entry["loss"] for entry in result.log]
    assert sum(losses[-2:]) < sum(losses[:2])
    if score == "uniformity":
        assert result.metrics[score] < result.untrained[score] - 0.1
    else:
        assert result.metrics[f"dev_{score}"] > result.untrained[f"dev_{score}"] + 0.02
    check_folder(result, recipe)


def check_folder(result: Result, recipe: str) -> None:
    """What a run leaves: its record, its log, and a model that the library alone loads."""
    run = json.loads((result.folder / "run.json").read_text())
    assert run["recipe"] == recipe
    assert run["versions"]["torch"] == torch.__version__
    assert run["steps"] == result.log[-1]["step"]
    seconds = result.log[-1]["seconds"]
    assert set(seconds) == {"encoder", "loss", "data"}
    assert all(value >= 0 for value in seconds.values())
    assert seconds["encoder"] > 0 < seconds["loss"]
    card = (result.folder / "model" / "README.md").read_text()
    assert "generated_from_trainer" in card
    assert f"#### {Path(run['configuration']['data'][0].partition(':')[0]).name}" in card
    texts = ["read the large file .", "store the nested graph ."]
    once = result.load().encode(texts)
    plain = SentenceTransformer(str(result.folder / "model"), device="cpu").encode(texts)
    assert (once == plain).all()


def test_static_learns_from_nothing(data, tmp_path, monkeypatch):
    settings = {
        "dim": 64,
        "vocabulary": 300,
        "matryoshka_dims": [64, 16],
        "evaluate": [f"sts-dev={data / 'dev.tsv'}"],
        "trainer": STEPS | {"num_train_epochs": 8, "disable_tqdm": True},
    }
    # What fails before it trains stands in nobody's way.
    with pytest.raises(ValueError, match="no such file"):
        recipes.static(data / "missing.tsv", tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="export: got a static model"):
        recipes.static(data / "triplets.tsv", tmp_path / "run", export=True, **settings)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    result = recipes.static(data / "triplets.tsv", tmp_path / "run", **settings)
    assert result.metrics["sts-dev_spearman"] > result.untrained["sts-dev_spearman"] + 0.05
    check_folder(result, "static")
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "static" in page
    assert "Before training" in page
    assert "After training" in page
    # Killed before its report was drawn.
    (result.folder / "report.html").unlink()
    drawn = []
    monkeypatch.setattr("contrastive_ops.report.write_report", drawn.append)
    again = recipes.static(data / "triplets.tsv", tmp_path / "run", **settings)
    assert again.metrics == result.metrics
    assert drawn == [tmp_path / "run"]


def test_in_training_only_head_is_not_in_the_model(data, bert, tmp_path):
    """And the saved backbone is one that transformers loads alone."""
    from transformers import AutoModel, AutoTokenizer

    settings = settings_of(
        "simcse-unsup",
        bert,
        data=[str(data / "sentences.txt")],
        trainer={"max_steps": 2},
    )
    result = train(settings, tmp_path / "run", report=False)
    assert not (result.folder / "huggingface").exists()
    train(settings, tmp_path / "run", export=True, report=False)  # asked for later
    model = result.load()
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    folder = result.folder / "huggingface"
    plain, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "read the large file ."
    with torch.no_grad():
        state = plain.eval()(**tokenizer([text], return_tensors="pt")).last_hidden_state[0, 0]
    torch.testing.assert_close(state, model.encode(text, convert_to_tensor=True))


RESUMED = {
    "learnable_temperature": True,
    "head": "train-only",
    "queue": 40,
    "momentum": 0.9,
    "views": ["repeat", "delete:0.2", "feature-cutoff"],
    "anchor_views": ["shuffle"],
    "mlm_weight": 0.1,
}
KILLED = """
import os, signal, sys, json
from pathlib import Path
from transformers import TrainerCallback
from contrastive_ops.training.run import train
from contrastive_ops.training.settings import Settings

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 11:
            os.kill(os.getpid(), signal.SIGKILL)

train(Settings(**json.loads(sys.argv[1])), sys.argv[2], callbacks=[Kill()], report=False)
"""


def test_a_killed_run_goes_on_to_the_same_losses(data, bert, tmp_path):
    """Everything random and everything remembered: dropout, views, masking, order, queue, average,
    head, temperature; between two log lines, within an accumulated step's epoch."""
    triplets, flags = data / "triplets.tsv", data / "flag.jsonl"
    settings = settings_of(
        "contrastive",
        bert,
        data=[f"{triplets}:anchor,positive,negative", str(flags)],
        evaluate=[f"dev={data / 'dev.tsv'}"],
        trainer={
            "num_train_epochs": 2,
            "gradient_accumulation_steps": 2,
            "save_steps": 4,
            "eval_steps": 4,
            "logging_steps": 3,
            "load_best_model_at_end": True,
        },
        **RESUMED,
    )
    whole = train(settings, tmp_path / "whole", report=False)
    command = [sys.executable, "-c", KILLED, json.dumps(settings.to_dict()), tmp_path / "killed"]
    killed = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    folder = tmp_path / "killed"
    assert not (folder / "model").exists()
    # What a kill in the middle of a checkpoint or of a line leaves.
    torn = folder / "checkpoints" / "checkpoint-11"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"loss": 1.0, "st')
    resumed = train(settings, folder, report=False)
    assert not torn.exists()

    def losses(result):
        return [(entry["step"], entry["loss"], entry["temperature"]) for entry in result.log]

    assert losses(resumed) == losses(whole)
    assert resumed.metrics == whole.metrics
    assert resumed.untrained == whole.untrained
    for name, value in whole.load().state_dict().items():
        assert torch.equal(value, resumed.load().state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_unknown_metric_for_the_best_model(prefix, data, bert, tmp_path):
    """Said at the first evaluation, which is before any step."""
    settings = settings_of(
        "simcse-sup",
        bert,
        data=[str(data / "nli.csv")],
        evaluate=[f"dev={data / 'dev.tsv'}"],
        trainer={"load_best_model_at_end": True, "metric_for_best_model": f"{prefix}accuracy"},
    )
    message = f"metric_for_best_model: got '{prefix}accuracy', expected one of .*dev_spearman"
    with pytest.raises(ValueError, match=message):
        train(settings, tmp_path / "run", report=False)
    assert (
        not (tmp_path / "run" / "log.jsonl").exists()
        or "loss" not in (tmp_path / "run" / "log.jsonl").read_text()
    )


def test_command_trains_seeds_and_is_finished_the_second_time(data, bert, tmp_path, capsys):
    command = ["train", "simcse-sup", "--traceback", "--model", str(bert)]
    command += ["--data", str(data / "triplets.tsv"), "--evaluate", f"dev={data / 'dev.tsv'}"]
    command += ["--output", str(tmp_path / "run"), "--seeds", "2", "--disable_tqdm", "true"]
    command += ["--no-report", "--max_steps", "4", "--eval_steps", "2", "--save_steps=2"]
    command += ["--per_device_train_batch_size", "16", "--lr_scheduler_type", "cosine"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["metrics"]["dev_spearman"]
    assert summary["seeds"] == [42, 43]
    assert found["mean"] == pytest.approx(sum(found["values"]) / 2)
    assert found["std"] == pytest.approx(abs(found["values"][0] - found["values"][1]) / 2**0.5)
    assert f"{found['mean']:8.4f} ± {found['std']:.4f}" in out
    configuration = json.loads((tmp_path / "run/seed-43/run.json").read_text())["configuration"]
    assert configuration["trainer"]["lr_scheduler_type"] == "cosine"
    before = (tmp_path / "run/seed-43/model/README.md").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert capsys.readouterr().out == out  # read, not trained again
    assert (tmp_path / "run/seed-43/model/README.md").stat().st_mtime_ns == before
    command.remove("--traceback")
    (tmp_path / "run/report.html").write_text("of the seeds")
    place = command.index("--seeds")
    alone = command[:place] + command[place + 2 :]
    assert cli.main(alone) == 2
    assert "holds runs with several seeds; choose another folder" in capsys.readouterr().err
    assert cli.main([*command, "--temperature", "0.1"]) == 2
    assert "temperature = 0.05" in capsys.readouterr().err
