"""The whole recipe on a tiny corpus: it learns, resumes after a kill, and answers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
from sentence_transformers import SentenceTransformer

from contrastive_ops import cli
from contrastive_ops.training import docs_recipe, fit
from contrastive_ops.training.docs_recipe import DocsSettings, train_docs
from contrastive_ops.training.folder import RunFolder
from contrastive_ops.training.index import search

SETTINGS = DocsSettings(
    packages=("tiny",),
    queries=40,
    vocabulary=400,
    dim=32,
    epochs=2.0,
    batch_size=32,
    temperature=0.05,
    learning_rate=0.05,
    token_dropout=0.3,
    seed=0,
    backend=None,
)

# Dies while it saves for the seventh time, in the second epoch, between two files.
DIES = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from contrastive_ops.training import fit
from contrastive_ops.training.docs_recipe import DocsSettings, train_docs
saved = []
def save_rng_state(self, folder):
    saved.append(folder)
    if len(saved) == 7:
        assert any(Path(folder).iterdir())
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, folder)
original = fit._TimedTrainer._save_rng_state
fit._TimedTrainer._save_rng_state = save_rng_state
train_docs(Path(sys.argv[1]), DocsSettings(**eval(sys.argv[2])))
"""


def prepare(root, corpus):
    """A folder in which mining is done."""
    folder = RunFolder(root)
    folder.open(dataclasses.asdict(SETTINGS))
    corpus.save(folder.corpus)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    folder = prepare(tmp_path_factory.mktemp("runs") / "whole", corpus)
    train_docs(folder.root, SETTINGS)
    return folder


def losses(folder):
    log = json.loads(folder.log.read_text())
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def test_it_learns(finished):
    metrics = json.loads(finished.metrics.read_text())
    for result in metrics["results"].values():
        systems = result["systems"]
        # By the adjective alone one of 42 candidates is the right one.
        assert systems["BM25"]["mrr@10"] < 0.2
        assert systems["trained"]["mrr@10"] > 0.9
        assert systems["trained"]["alignment"] < systems["untrained"]["alignment"] - 0.5
    assert metrics["steps"] == len(losses(finished)) == 100
    assert 0 < metrics["loss_seconds"] < metrics["training_seconds"]
    assert metrics["loss_step_seconds"]["difference"] < 1e-5


def test_what_it_leaves(finished):
    assert sorted(os.listdir(finished.root)) == [
        "corpus.parquet",
        "index.npy",
        "log.json",
        "metrics.json",
        "model",
        "plots",
        "settings.json",
        "timings.json",
        "untrained",
    ]
    assert sorted(os.listdir(finished.plots)) == [
        "alignment_uniformity.png",
        "embedding_space.png",
        "loss.png",
        "similarities.png",
    ]
    for picture in finished.plots.iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")
    model = SentenceTransformer(str(finished.model), device="cpu")
    assert model.encode("read the large file").shape == (32,)


def test_killed_while_saving_it_resumes_with_the_same_losses(tmp_path, corpus, finished):
    folder = prepare(tmp_path / "killed", corpus)
    command = [sys.executable, "-c", DIES, str(folder.root), repr(dataclasses.asdict(SETTINGS))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = [name for name in os.listdir(folder.checkpoints) if not name.startswith(".")]
    assert whole == ["checkpoint-60"]
    assert not folder.metrics.exists()
    train_docs(folder.root, SETTINGS)
    assert losses(folder) == losses(finished)
    assert sorted(os.listdir(folder.root)) == sorted(os.listdir(finished.root))


def test_interrupted_it_says_so_and_resumes(tmp_path, corpus, finished, monkeypatch, capsys):
    folder = prepare(tmp_path / "interrupted", corpus)
    compute = fit._TimedTrainer.compute_loss

    def interrupt(self, *args, **kwargs):
        if self.state.global_step == 25:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    arguments = [
        *("train", "docs", "--output", str(folder.root), "--packages", "tiny", "--queries", "40"),
        *("--vocabulary", "400", "--dim", "32", "--batch-size", "32", "--epochs", "2"),
        *("--token-dropout", "0.3"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(fit._TimedTrainer, "compute_loss", interrupt)
        assert cli.main(arguments) == 130
    assert "Interrupted. The same command goes on" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "summary → document: 40 held-out queries, 420 candidates" in capsys.readouterr().out
    assert losses(folder) == losses(finished)


def test_interrupted_after_the_last_step_it_does_not_train_again(
    tmp_path, corpus, finished, monkeypatch
):
    folder = prepare(tmp_path, corpus)
    save = docs_recipe.atomic_path

    def interrupt(path):
        if path == folder.model:
            raise KeyboardInterrupt
        return save(path)

    with monkeypatch.context() as patch:
        patch.setattr(docs_recipe, "atomic_path", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_docs(folder.root, SETTINGS)
    assert not folder.model.exists()
    monkeypatch.setattr(fit._TimedTrainer, "compute_loss", None)
    train_docs(folder.root, SETTINGS)
    assert losses(folder) == losses(finished)
    name = "model.safetensors"
    assert (folder.model / name).read_bytes() == (finished.model / name).read_bytes()


def test_a_finished_run_is_shown_again_and_not_repeated(finished, monkeypatch, capsys):
    monkeypatch.setattr(docs_recipe, "_run", None)
    train_docs(finished.root, SETTINGS)
    shown = capsys.readouterr().out
    assert "With the dense PyTorch loss" in shown.splitlines()[-1]
    for system in ("untrained", "BM25", "trained", "trained + BM25"):
        assert f"\n{system} " in shown


def test_other_settings_do_not_touch_a_run(finished):
    before = sorted(finished.root.rglob("*"))
    with pytest.raises(ValueError, match=r"output: .* holds a run with epochs = 2\.0; .*--restart"):
        train_docs(finished.root, dataclasses.replace(SETTINGS, epochs=3.0))
    assert sorted(finished.root.rglob("*")) == before


def test_a_mistake_does_not_keep_the_folder(tmp_path):
    wrong = dataclasses.replace(SETTINGS, packages=("absent",))
    with pytest.raises(ValueError, match="none of"):
        train_docs(tmp_path, wrong)
    with pytest.raises(ValueError, match="backend: got 'gpu'"):
        train_docs(tmp_path, dataclasses.replace(SETTINGS, backend="gpu"))
    RunFolder(tmp_path).open(dataclasses.asdict(SETTINGS))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    for restart in (False, True):
        with pytest.raises(ValueError, match="holds files of something else"):
            train_docs(tmp_path, SETTINGS, restart=restart)
    assert os.listdir(tmp_path) == ["model"]


def test_restart_forgets_the_earlier_run(tmp_path, corpus):
    folder = prepare(tmp_path, corpus)
    (tmp_path / "notes.txt").touch()
    folder.open({"other": "settings"}, restart=True)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "settings.json"]


@pytest.mark.parametrize(
    ("query", "summary"),
    [
        ("merge the cached vertices", "Join the cached graph at hand."),
        ("discard a small bitmap", "Remove the small image at hand."),
        ("total remote text", "Count the remote string at hand."),
    ],
)
def test_search_finds_what_is_said_in_other_words(finished, query, summary):
    hits = search(finished, query, top=7)
    assert hits[0].function.summary == summary
    assert len(hits) == 7
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_search_from_the_command_line(finished, capsys):
    assert cli.main(["search", "merge cached vertices", "--model", str(finished.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert "  merge_cached_nodes   package_" in lines[0]
    assert lines[1] == "       Join the cached graph at hand."


@pytest.mark.parametrize(
    ("query", "top", "message"),
    [
        (" ", 5, "query: expected some text"),
        ("?!", 5, "query: expected letters or digits"),
        ("read", 0, "top: expected at least 1, got 0"),
    ],
)
def test_bad_searches(finished, query, top, message):
    with pytest.raises(ValueError, match=message):
        search(finished, query, top=top)


def test_searching_what_is_not_there(tmp_path, corpus, capsys):
    with pytest.raises(ValueError, match="holds no trained model"):
        search(RunFolder(tmp_path), "read", top=1)
    prepare(tmp_path / "begun", corpus)
    assert cli.main(["search", "read", "--model", str(tmp_path / "begun")]) == 2
    assert "holds an unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch-size", "0"),
        ("--queries", "-1"),
        ("--temperature", "nan"),
        ("--learning-rate", "0"),
        ("--token-dropout", "1"),
        ("--epochs", "-2"),
    ],
)
def test_bad_options(tmp_path, option, value, capsys):
    assert cli.main(["train", "docs", "--output", str(tmp_path / "run"), option, value]) == 2
    assert f"{option}: expected" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data(tmp_path, corpus):
    folder = prepare(tmp_path, corpus)
    big = dataclasses.replace(SETTINGS, batch_size=1000)
    folder.open(dataclasses.asdict(big), restart=True)
    corpus.save(folder.corpus)
    with pytest.raises(ValueError, match="batch_size: expected at most 340, the number of"):
        train_docs(tmp_path, big)
