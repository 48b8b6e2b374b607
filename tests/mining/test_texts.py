"""From texts to training data: tables, formats, the command, re-mining, a peer's own answer."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset, load_from_disk

from contrastive_ops import cli
from contrastive_ops.mining.encoding import embed, rescored
from contrastive_ops.mining.formats import FORMATS, rows_of
from contrastive_ops.mining.hard_negatives import Rules
from contrastive_ops.mining.pipeline import RemineCallback, mine_texts
from contrastive_ops.mining.texts import TextPairs
from contrastive_ops.training.encoder import TokenCache, build_encoder, train_tokenizer

WORDS = (
    *("river", "stone", "cloud", "winter", "music", "paper"),
    *("garden", "engine", "silver", "forest", "candle", "harbour"),
)


def make_pairs(count=60, seed=0):
    """Questions about two words, answered by sentences with them."""
    random = np.random.default_rng(seed)
    queries, positives = [], []
    for i in range(count):
        a, b = random.choice(WORDS, 2, replace=False)
        queries.append(f"what about {a} and {b} {i % 50}")
        positives.append(f"the {a} was near the {b} on day {i % 55}")
    return queries, positives


@pytest.fixture(scope="module")
def model():
    queries, positives = make_pairs()
    cache = TokenCache(train_tokenizer(queries + positives, vocabulary=400))
    return build_encoder(cache, positives, dim=32, seed=0)


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    model.save(str(folder))
    return folder


@pytest.fixture
def pairs_tsv(tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = ["question\tanswer", *("\t".join(pair) for pair in zip(*make_pairs(), strict=True))]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_pairs_are_made_distinct():
    for queries, positives in (([], []), (["a"], ["x", "y"])):
        with pytest.raises(ValueError, match=r"queries, positives: got \d and \d"):
            TextPairs.of(queries, positives)
    pairs = TextPairs.of(["a", "b", "a", "a"], ["x", "y", "z", "x"], ["b", "y", "w"])
    assert pairs.queries == ["a", "b"]
    assert pairs.corpus == ["b", "y", "w", "x", "z"]
    assert pairs.padded_positives() == [[3, 4], [1, -1]]
    assert pairs.own == [-1, 0]


@pytest.mark.parametrize("kind", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_the_rows_are_sentence_transformers_own(model, kind):
    """The same rules on both sides, with an explicit range_max: identical data."""
    from sentence_transformers.util import mine_hard_negatives

    queries, positives = make_pairs()
    expected = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "answer": positives}),
        model,
        num_negatives=3,
        range_max=30,
        relative_margin=0.05,
        output_format=kind,
        verbose=False,
    )
    pairs = TextPairs.of(queries, positives)
    mined = mine_texts(pairs, Rules(3, range_max=30, relative_margin=0.05), model)
    assert list(rows_of(pairs, mined, kind)) == expected.to_list()


def test_flagembedding_rows(model):
    pairs = TextPairs.of(*make_pairs())
    mined = mine_texts(pairs, Rules(4), model)
    rows = list(rows_of(pairs, mined, "flagembedding"))
    assert len(rows) == len(pairs.queries)
    for row, index, score in zip(rows, mined.indices.tolist(), mined.scores.tolist(), strict=True):
        assert row["neg"] == [pairs.corpus[j] for j in index]
        assert row["neg_scores"] == score
        assert not set(row["pos"]) & set(row["neg"])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command(kind, tmp_path, pairs_tsv, model_folder, capsys):
    output, folder = tmp_path / "out.jsonl", tmp_path / "out"
    common = ["mine", "--queries", str(pairs_tsv), "--model", str(model_folder)]
    common += ["--num-negatives", "3", "--relative-margin", "0.05", "--format", kind]
    common += ["--cache", str(tmp_path / "cache")]
    assert cli.main([*common, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "relative_margin dropped" in out
    assert f"-> {output}" in out
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert f"{len(rows):,} rows of {kind}" in out
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert cli.main([*common, "--output", str(folder)]) == 0
    assert load_from_disk(str(folder)).to_list() == rows


def test_the_cache_is_used_and_knows_its_model(model, tmp_path):
    first = embed(model, ["river", "stone"], "query", batch_size=2, cache=tmp_path, model_name="a")
    broken = SimpleNamespace()  # would fail if it were asked
    again = embed(broken, ["river", "stone"], "query", batch_size=2, cache=tmp_path, model_name="a")
    assert torch.equal(first, again)
    for texts, role, name in (
        (["river"], "query", "a"),
        (["river", "stone"], "document", "a"),
        (["river", "stone"], "query", "b"),
    ):
        with pytest.raises(AttributeError):
            embed(broken, texts, role, batch_size=2, cache=tmp_path, model_name=name)


def test_embedding_goes_on_behind_the_last_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr("contrastive_ops.mining.encoding._TEXTS_A_FILE", 10)
    seen = []

    def encode(texts, **_):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(texts)
        return np.array([[len(text), ord(text[-1])] for text in texts])

    texts = [f"text {i}" for i in range(35)]
    named = {"batch_size": 4, "cache": tmp_path, "model_name": "a", "progress": False}
    model = SimpleNamespace(encode_query=encode)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        embed(model, texts, "query", **named)
    assert [len(part) for part in seen] == [10, 10]
    stop = 99
    found = embed(model, texts, "query", **named)
    assert seen[2:] == [texts[20:30], texts[30:]]
    assert found.tolist() == [[len(text), ord(text[-1])] for text in texts]


def test_a_bad_table_is_told_with_its_line(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text("q\ta\none\ttwo\nthree\n")
    command = ["mine", "--queries", str(path), "--model", "none", "--output", str(tmp_path / "o")]
    assert cli.main(command) == 2
    assert f"{path}, line 3: got 1 cells, expected 2" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_first(tmp_path, pairs_tsv, capsys):
    (tmp_path / "file").write_text("")
    command = ["mine", "--queries", str(pairs_tsv), "--model", "none"]
    assert cli.main([*command, "--output", str(tmp_path / "file" / "out.jsonl")]) == 2
    assert "--output: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.tsv", "mine.tsv, expected a .jsonl file"),
        ("kept", "kept is there and no dataset"),
        ("kept/notes", "notes is there and no dataset"),
        ("folder.jsonl", "is a folder, expected a .jsonl"),
    ],
)
def test_an_output_replaces_nothing_else(name, message, tmp_path, pairs_tsv, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "kept" / "notes").write_text("dear")
    command = ["mine", "--queries", str(pairs_tsv), "--model", "none"]
    assert cli.main([*command, "--output", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "kept" / "notes").read_text() == "dear"


def test_an_output_is_not_what_is_read(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "answer": "b"}\n')
    command = ["mine", "--queries", f"{pairs}:query,answer", "--model", "none"]
    assert cli.main([*command, "--output", str(pairs)]) == 2
    assert "which --queries reads" in capsys.readouterr().err
    assert json.loads(pairs.read_text())["query"] == "a"


def test_empty_and_equal_texts(model):
    """An empty text has no direction that a query could share; equal ones are one candidate."""
    pairs = TextPairs.of(["river", "", "stone"], ["the river", "nothing", "the stone"], ["", "a"])
    mined = mine_texts(pairs, Rules(2), model)
    assert mined.indices.shape == (3, 2)
    for i, index in enumerate(mined.indices.tolist()):
        taken = [j for j in index if j >= 0]
        assert not set(taken) & {*pairs.positives[i], pairs.own[i]}
        assert len(set(taken)) == 2


class ByLength:
    """A cross-encoder that scores a pair by the length of the text, in batches of many queries."""

    def __init__(self):
        self.calls = []

    def predict(self, jobs, **_):
        self.calls.append(len(jobs))
        return np.array([float(len(text)) for _, text in jobs])


def test_a_cross_encoder_ranks_and_filters(model):
    pairs = TextPairs.of(*make_pairs())
    judge = ByLength()
    rules = Rules(3, range_max=20, absolute_margin=1.0)
    mined = mine_texts(pairs, rules, model, cross_encoder=judge)
    window = mine_texts(pairs, Rules(20, range_max=20), model).indices
    assert judge.calls == [sum(map(len, pairs.positives)) + window.numel()]
    for i, index in enumerate(mined.indices.tolist()):
        limit = min(len(pairs.corpus[p]) for p in pairs.positives[i]) - 1
        lengths = [(len(pairs.corpus[j]), j) for j in window[i].tolist()]
        passed = [(s, j) for s, j in lengths if s <= limit]
        expected = sorted((s for s, _ in passed), reverse=True)[:3]
        got = [len(pairs.corpus[j]) for j in index if j >= 0]
        assert got == expected
    assert mined.statistics.dropped["absolute_margin"] > 0
    again = rescored(judge, pairs, window, rules, batch_size=8)
    assert torch.equal(again.scores, mined.scores)
    two_labels = SimpleNamespace(predict=lambda jobs, **_: np.zeros((len(jobs), 2)))
    with pytest.raises(ValueError, match="cross_encoder: got scores of shape"):
        rescored(two_labels, pairs, window, rules, batch_size=8)


def test_remining_follows_the_model_through_training(model):
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import (
        SentenceTransformerTrainingArguments,
    )

    queries, positives = make_pairs()
    pairs = TextPairs.of(queries, positives)
    seen = []
    student = SentenceTransformer(modules=[*model.children()], device="cpu")
    rules = Rules(2)

    def use(pairs, mined, step):
        expected = mine_texts(pairs, rules, student)
        assert torch.equal(mined.scores, expected.scores)
        seen.append((step, mined.scores.clone(), student.training))

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=student,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=6,
                per_device_train_batch_size=16,
                learning_rate=0.05,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"anchor": queries, "positive": positives}),
            loss=MultipleNegativesRankingLoss(student),
            callbacks=[RemineCallback(pairs, rules, 2, use)],
        )
        trainer.train()
    assert [step for step, *_ in seen] == [0, 2, 4]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[2][1])
