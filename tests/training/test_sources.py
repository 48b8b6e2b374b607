"""What recipes read: formats, columns, several sources, ids of texts, and everything wrong."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from datasets import Dataset, DatasetDict

from contrastive_ops import cli
from contrastive_ops.training import settings as settings_module
from contrastive_ops.training.collator import text_ids
from contrastive_ops.training.data import read_data
from contrastive_ops.training.evaluators import build_evaluators, split_name
from contrastive_ops.training.settings import Settings, load

PAIRS = "anchor\tpositive\na\tb\nc\td\n"


def read(tmp_path, name, content, objective="info_nce", columns="", **more):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_data(Settings(recipe="", data=[f"{path}{columns}"], objective=objective, **more))


def rows(data):
    return [tuple(row[name] for name in row) for row in data.train]


GOOD = {
    "txt": ("a.txt", "one\ntwo\n", "info_nce", {}, [("one",), ("two",)]),
    "tsv": ("a.tsv", PAIRS, "info_nce", {}, [("a", "b"), ("c", "d")]),
    "quotes in tsv": ("a.tsv", 'text\n"a\nb"\n', "info_nce", {}, [('"a',), ('b"',)]),
    "simcse csv": (
        "nli.csv",
        'sent0,sent1,hard_neg\r\n"a, a","b ""b""",c\r\nd,"e\nf",g\r\n',
        "info_nce",
        {},
        [("a, a", 'b "b"', "c"), ("d", "e\nf", "g")],
    ),
    "flagembedding": (
        "f.jsonl",
        '{"query": "q", "pos": ["p", "r"], "neg": ["n", "m"]}\n'
        '{"query": "s", "pos": ["t"], "neg": ["u"]}\n',
        "info_nce",
        {"negatives": 3},
        [("q", "p", "n", "m", "n"), ("q", "r", "n", "m", "n"), ("s", "t", "u", "u", "u")],
    ),
    "n-tuple": (
        "n.jsonl",
        '{"anchor": "a", "positive": "b", "negative": "c", "negative_2": "d"}\n',
        "info_nce",
        {},
        [("a", "b", "c", "d")],
    ),
    "named columns": (
        "x.tsv",
        "one\ttwo\tthree\na\tb\tc\n",
        "info_nce",
        {"columns": ":three,one"},
        [("c", "a")],
    ),
    "labels by name and number": (
        "l.csv",
        "premise,hypothesis,label\na,b,neutral\nc,d,0\n",
        "softmax",
        {"labels": ["entailment", "neutral", "contradiction"]},
        [("a", "b", 1), ("c", "d", 0)],
    ),
    "labels found": ("l.tsv", "intent\ttext\ny\ta\nx\tb\n", "sup_con", {}, [("a", 1), ("b", 0)]),
    "scores": (
        "s.tsv",
        "score\tsentence1\tsentence2\n5\ta\tb\n1.25\tc\td\n",
        "cosine",
        {"score_range": [0.0, 5.0]},
        [("a", "b", 1.0), ("c", "d", 0.25)],
    ),
    "parallel": ("p.tsv", "english\tnon_english\na\tb\n", "distill", {}, [("a", "b")]),
    "byte order mark": ("b.tsv", b"\xef\xbb\xbftext\na\n", "info_nce", {}, [("a",)]),
}


@pytest.mark.parametrize("case", list(GOOD))
def test_a_format_is_read(case, tmp_path):
    name, content, objective, more, expected = GOOD[case]
    assert rows(read(tmp_path, name, content, objective, **more)) == expected


SCORES = "score\tsentence1\tsentence2\n"
BAD = {
    "no file": ("a.tsv", None, "info_nce", {}, "a.tsv: no such file"),
    "no rows": ("a.tsv", "anchor\tpositive\n", "info_nce", {}, "a.tsv: got no rows"),
    "empty file": ("a.tsv", "", "info_nce", {}, "a.tsv: got no rows"),
    "missing columns": (
        "a.tsv",
        "left\tright\na\tb\n",
        "info_nce",
        {},
        "a.tsv: got the columns left, right, expected anchor, positive, negative or anchor, "
        "positive or sentence; name those to take",
    ),
    "pairs where a sentence is meant": (
        "a.tsv",
        PAIRS,
        "info_nce",
        {"recipe": "simcse-unsup"},
        "a.tsv: got the columns anchor, positive, expected sentence; name those to take: "
        r"\S+a.tsv:SENTENCE",
    ),
    "sentences where pairs are meant": (
        "a.txt",
        "one\ntwo\n",
        "info_nce",
        {"recipe": "static"},
        "a.txt: got the columns sentence, expected anchor, positive, negative or anchor, positive;",
    ),
    "unknown named column": (
        "a.tsv",
        PAIRS,
        "info_nce",
        {"columns": ":anchor,negative"},
        "got the columns anchor, positive, expected negative",
    ),
    "too few named columns": (
        "a.tsv",
        PAIRS,
        "softmax",
        {"columns": ":anchor,positive"},
        "got 2 columns, expected 3",
    ),
    "empty text": ("a.tsv", PAIRS + "e\t \n", "info_nce", {}, "a.tsv, line 4: got no text in pos"),
    "empty text in quoted csv": (
        "a.csv",
        'sent0,sent1,hard_neg\n"a\na",b,c\nd,,f\n',
        "info_nce",
        {},
        "a.csv, line 4: got no text in sent1",
    ),
    "empty list": (
        "a.jsonl",
        '{"query": "q", "pos": ["p"], "neg": []}\n',
        "info_nce",
        {},
        "a.jsonl, line 1: got no text in neg",
    ),
    "empty text in list": (
        "a.jsonl",
        '{"query": "q", "pos": ["p", ""]}\n',
        "info_nce",
        {},
        "a.jsonl, line 1: got no text in pos",
    ),
    "text that is a number": (
        "a.jsonl",
        '{"anchor": "a", "positive": 3}\n',
        "info_nce",
        {},
        "a.jsonl, line 1: got 3 as positive, expected a text",
    ),
    "bad encoding": ("a.tsv", b"text\nfine\nb\xe4d\n", "info_nce", {}, "a.tsv, line 3: byte 0xe4"),
    "short row": ("a.tsv", PAIRS + "e\n", "info_nce", {}, "a.tsv, line 4: got 1 cells, expected 2"),
    "no json": ("a.jsonl", '{"text": "a"}\n{"text\n', "info_nce", {}, "a.jsonl, line 2: no JSON"),
    "key missing": (
        "a.jsonl",
        '{"text": "a"}\n{"txt": "b"}\n',
        "info_nce",
        {},
        "a.jsonl, line 2: got no 'text'",
    ),
    "label out of range": (
        "a.tsv",
        "label\tpremise\thypothesis\n0\ta\tb\n-1\tc\td\n",
        "softmax",
        {"labels": ["yes", "no"]},
        "a.tsv, line 3: got '-1' as label, expected one of yes, no, or a number from 0 to 1",
    ),
    "label that is no class": (
        "a.tsv",
        "label\tpremise\thypothesis\nmaybe\ta\tb\n",
        "softmax",
        {"labels": ["yes", "no"]},
        "a.tsv, line 2: got 'maybe' as label",
    ),
    "one class": ("a.tsv", "label\ttext\nx\ta\nx\tb\n", "sup_con", {}, "got the one label 'x'"),
    "score out of range": (
        "a.tsv",
        SCORES + "5\ta\tb\n5.5\tc\td\n",
        "cosine",
        {"score_range": [0.0, 5.0]},
        r"a.tsv, line 3: got 5.5 as score, expected it in \[0, 5\]",
    ),
    "score that is no number": (
        "a.tsv",
        SCORES + "high\ta\tb\n",
        "cosine",
        {},
        "a.tsv, line 2: got 'high' as score",
    ),
    "score that is not finite": (
        "a.tsv",
        SCORES + "nan\ta\tb\n",
        "cosine",
        {},
        "a.tsv, line 2: got 'nan' as score",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_data_is_named_with_file_and_line(case, tmp_path):
    name, content, objective, more, message = BAD[case]
    more = dict(more)
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = f"{path}{more.pop('columns', '')}"
    settings = Settings(**{"recipe": "", "data": [source], "objective": objective} | more)
    with pytest.raises(ValueError, match=message):
        read_data(settings)


def test_bad_data_stops_the_command_with_one_line(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text("anchor\tpositive\na\tb\nc\t\n")
    output = tmp_path / "run"
    command = ["train", "static", "--data", str(path), "--output", str(output)]
    assert cli.main(command) == 2
    captured = capsys.readouterr()
    expected = f"contrastive-ops train: error: {path}, line 3: got no text in positive"
    assert captured.err.splitlines()[-1] == expected
    assert not (output / "model").exists()


def test_sources_of_one_shape_are_taken_together(tmp_path):
    (tmp_path / "a.tsv").write_text(PAIRS)
    (tmp_path / "b.csv").write_text("question,answer\n" + "e,f\n" * 60)
    sources = [str(tmp_path / "a.tsv"), str(tmp_path / "b.csv")]
    own = read_data(Settings(recipe="", data=sources))
    assert isinstance(own.train, DatasetDict)
    assert [len(part) for part in own.train.values()] == [2, 60]
    assert own.columns()[0] == ["a", "c", *["e"] * 60]
    mixed = read_data(Settings(recipe="", data=sources, sampling="mixed"))
    assert rows(mixed) == [("a", "b"), ("c", "d"), *[("e", "f")] * 60]
    weighted = Settings(recipe="", data=[f"{sources[0]}*3", sources[1]], sampling="mixed")
    drawn = rows(read_data(weighted))
    assert drawn == rows(read_data(weighted))
    assert drawn.count(("a", "b")) + drawn.count(("c", "d")) > 120
    with pytest.raises(ValueError, match="got weights with sampling='proportional'"):
        read_data(Settings(recipe="", data=[f"{sources[0]}*3", sources[1]]))
    with pytest.raises(ValueError, match=r"a\.tsv\*0: got the weight 0, expected a positive one"):
        read_data(Settings(recipe="", data=[f"{sources[0]}*0", sources[1]], sampling="mixed"))
    (tmp_path / "c.txt").write_text("alone\n")
    with pytest.raises(ValueError, match=r"c\.txt: got sentence, expected anchor, positive as in"):
        read_data(Settings(recipe="", data=[*sources, str(tmp_path / "c.txt")]))
    (tmp_path / "d.jsonl").write_text('{"query": "q", "pos": ["p"], "neg": ["m", "n"]}\n')
    (tmp_path / "e.jsonl").write_text('{"query": "q", "pos": ["p"], "neg": ["m"]}\n')
    uneven = [str(tmp_path / "d.jsonl"), str(tmp_path / "e.jsonl")]
    with pytest.raises(ValueError, match=r"e\.jsonl: got 1 negatives a row, expected 2 as in"):
        read_data(Settings(recipe="", data=uneven, negatives=2))


def test_a_dataset_on_disk_is_read(tmp_path):
    made = Dataset.from_dict({"anchor": ["a", "c"], "positive": ["b", ""]})
    DatasetDict({"train": made.select([0]), "test": made}).save_to_disk(tmp_path / "set")
    assert rows(read_data(Settings(recipe="", data=[str(tmp_path / "set")]))) == [("a", "b")]
    with pytest.raises(ValueError, match="row 2: got no text in positive"):
        read_data(Settings(recipe="", data=[f"{tmp_path / 'set'}@test"]))


def test_equal_texts_are_of_one_group():
    columns = [
        ["a", "b", "a", "c", "d", "e"],
        ["p", "q", "r", "q", "s", "a"],
        ["n", "p", "n", "x", "y", "z"],
    ]
    found = text_ids(columns)
    assert found[:, 0].tolist() == [0, 1, 0, 1, 4, 0]  # the last one's positive is an anchor
    for column, ids in zip(columns, found.T[1:], strict=True):
        for other, other_ids in zip(columns, found.T[1:], strict=True):
            equal = torch.tensor([[x == y for y in other] for x in column])
            assert torch.equal(ids[:, None] == other_ids, equal)
    assert (found[:, 1:] >= 0).all()
    again = text_ids([column[::-1] for column in columns])
    assert torch.equal(again[:, 1:], found.flip(0)[:, 1:])  # whatever the batch


def test_evaluators_are_told_by_columns(tmp_path):
    (tmp_path / "dev.tsv").write_text(SCORES + "5\ta\tb\n0\tc\td\n")
    (tmp_path / "knn.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    (tmp_path / "qa.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ("pa", "qa", "pb"))
    )
    names = ["dev.tsv", "knn.tsv", "qa.jsonl"]
    sources = [str(tmp_path / name) for name in names]
    found = build_evaluators([sources[0], sources[1], f"own={sources[2]}"])
    kinds = [type(one).__name__ for one in found]
    assert kinds == ["STSAndGeometry", "KNNEvaluator", "RetrievalEvaluator"]
    assert [one.name for one in found] == ["sts-dev", "knn-knn", "own"]
    assert (found[2].queries, found[2].corpus) == (["p", "q"], ["a", "b"])
    assert found[2].positives == [[0, 1], [0]]
    (tmp_path / "no.tsv").write_text("x\ty\na\tb\n")
    with pytest.raises(ValueError, match="got the columns x, y, expected sentence1"):
        build_evaluators([str(tmp_path / "no.tsv")])
    (tmp_path / "flat.tsv").write_text(SCORES + "3\ta\tb\n3\tc\td\n")
    with pytest.raises(ValueError, match=r"flat\.tsv: got no two different values of score"):
        build_evaluators([str(tmp_path / "flat.tsv")])
    (named,) = build_evaluators([f"{tmp_path / 'no.tsv'}:y,x"])
    assert (named.queries, named.corpus) == (["b"], ["a"])
    with pytest.raises(ValueError, match="evaluate: got two sets of the name sts-dev"):
        build_evaluators([sources[0], f"sts-dev={sources[0]}"])
    assert split_name("a/b=c.tsv") == ("", "a/b=c.tsv")
    assert split_name("a=/b=c.tsv") == ("a", "/b=c.tsv")


def test_sts_and_geometry_are_those_of_their_own_evaluators():
    """Of texts that are encoded once."""
    from contrastive_ops.evaluation import GeometryEvaluator, STSEvaluator
    from contrastive_ops.training.encoder import TokenCache, build_encoder, train_tokenizer
    from contrastive_ops.training.evaluators import STSAndGeometry

    scored = [(5.0, "a b", "b a c"), (4.0, "c d", "d"), (1.0, "a b", "d e"), (0.0, "e f", "c d")]
    gold, first, second = (list(column) for column in zip(*scored, strict=True))
    cache = TokenCache(train_tokenizer([*first, *second], vocabulary=100))
    model = build_encoder(cache, [*first, *second], dim=8, seed=0)
    want = STSEvaluator(first, second, gold, name="x")(model)
    geometry = GeometryEvaluator.of_sts(first, second, gold)
    for own in (False, True):
        found = STSAndGeometry(first, second, gold, name="x", own_geometry=own)
        geometry.name = "x" if own else ""
        assert found(model) == pytest.approx(want | geometry(model))
        assert found.primary_metric == "x_spearman"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatur": 1}, "temperatur: no such setting; expected some of anchor_views, backend"),
        ({"temperature": 0}, "temperature: got 0, expected a positive number"),
        ({"temperature": "low"}, "temperature: got 'low', expected a number"),
        ({"queue": 1.5}, "queue: got 1.5, expected an integer"),
        ({"symmetric": 1}, "symmetric: got 1, expected true or false"),
        ({"pooler": "middle"}, "pooler: got 'middle', expected one of cls, cls-before-pooler"),
        ({"matryoshka_dims": ["x"]}, "matryoshka_dims: got .* expected a list of integers"),
        ({"momentum": 1.0}, r"momentum: got 1.0, expected it in \[0, 1\)"),
        ({"score_range": [1.0, 1.0]}, "score_range: got"),
        ({"matryoshka_dims": [8, 0]}, r"matryoshka_dims: got \[8, 0\], expected each at least 1"),
        ({"guide_margin": math.nan}, "guide_margin: got nan, expected finite numbers"),
        ({"template": "no place"}, "template: got 'no place', expected {} where"),
        ({"trainer": {"output_dir": "x"}}, "trainer: got output_dir"),
        ({"recipe": "static"}, "recipe: got the settings of 'static'"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        load("contrastive", change)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "0.1"], "temprature: no setting, and no training argument; did you mean"),
        (["--learnin-rate", "1"], "learnin_rate: no setting, .* did you mean learning_rate?"),
        (["--learning_rate", "low"], "trainer: argument --learning_rate.*: invalid float value"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: got 0, expected at"),
        (["--backend", "fast"], "backend: "),
    ],
)
def test_a_wrong_argument_starts_no_run(words, message, tmp_path, capsys):
    command = ["train", "static", "--data", "x.tsv", "--output", str(tmp_path / "run")]
    assert cli.main([*command, *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_settings_come_from_recipe_file_and_flags(tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text("temperature: 0.1\ntrainer: {learning_rate: 1.0e-3, seed: 5}\n")
    command = ["train", "simcse-unsup", "--show", "--config", str(config), "--views", "crop:0.2"]
    command += ["--learning_rate", "1e-4", "--bf16", "--prompts", '{"anchor": "q: "}']
    command += ["--max_length", "40", "--mlm-weight", "0.2"]  # either spelling
    assert cli.main([*command, "--no-symmetric", "--lora", "{r: 4}"]) == 0
    import yaml

    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["temperature"], shown["views"], shown["lora"]) == (0.1, ["crop:0.2"], {"r": 4})
    assert (shown["max_length"], shown["mlm_weight"]) == (40, 0.2)
    trainer = shown["trainer"]
    assert (trainer["learning_rate"], trainer["seed"], trainer["bf16"]) == (1e-4, 5, True)
    assert trainer["prompts"] == {"anchor": "q: "}
    assert trainer["eval_steps"] == 125
    assert load("simcse-unsup", shown) == Settings(**shown)


def test_every_recipe_has_a_file_a_command_and_a_function():
    from contrastive_ops.training import recipes
    from contrastive_ops.training.recipe_command import SUMMARIES

    assert settings_module.names() == sorted(SUMMARIES)
    for name in SUMMARIES:
        assert load(name).recipe == name
        assert "Source: " in getattr(recipes, name.replace("-", "_")).__doc__
