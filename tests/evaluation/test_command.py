"""``contrastive-ops evaluate``: what is read from tables, the table it prints, the JSON."""

from __future__ import annotations

import json
import random

import pytest
from small_encoder import make_texts

from contrastive_ops import cli
from contrastive_ops import evaluation as ours
from contrastive_ops.evaluation import tasks


@pytest.fixture(scope="module")
def files(encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    encoder.save_pretrained(str(root / "model"), create_model_card=False)
    draw = random.Random(0)
    columns = {
        "a": make_texts(60, 0),
        "b": make_texts(60, 1),
        "c": make_texts(60, 2),
        "score": [str(draw.randint(0, 5)) for _ in range(60)],
        "label": [draw.choice("xyz") for _ in range(60)],
    }

    def write(name, header, *names, rows=slice(None)):
        lines = zip(*(columns[n][rows] for n in names), strict=True)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["\t".join(header), *("\t".join(line) for line in lines)]))

    for part, rows in {"one": slice(0, 25), "two": slice(25, 60)}.items():
        write(f"sts/{part}.tsv", ("score", "sentence1", "sentence2"), "score", "a", "b", rows=rows)
    write("pairs.tsv", ("question", "answer"), "a", "b")
    write("triplets.tsv", ("anchor", "positive", "negative"), "a", "b", "c")
    write("train.tsv", ("intent", "text"), "label", "a")
    write("test.tsv", ("intent", "text"), "label", "b")
    return root, columns


def test_all_evaluations(encoder, files, capsys):
    root, columns = files
    a, b, c, score, label = columns.values()
    gold = [float(value) for value in score]
    arguments = {
        "--sts": [root / "sts/one.tsv", root / "sts/two.tsv"],
        "--retrieval": [root / "pairs.tsv"],
        "--triplets": [root / "triplets.tsv"],
        "--knn": [root / "train.tsv", root / "test.tsv"],
        "--clustering": [root / "train.tsv"],
        "--geometry": [root / "sts/one.tsv"],
    }
    words = [str(word) for option, paths in arguments.items() for word in (option, *paths)]
    model = str(root / "model")
    # A run's folder is as good as the model in it.
    code = cli.main(["evaluate", model, str(root), *words, "--json", str(root / "s.json")])
    assert code == 0
    out = capsys.readouterr().out
    record = json.loads((root / "s.json").read_text())
    first, second = record["models"]
    assert first["model"] == model
    assert first["scores"] == second["scores"]
    sets = ({"one": x[:25], "two": x[25:]} for x in (a, b, gold))
    name = root.name
    expected = {
        "sts sts": ours.STSEvaluator(*sets),
        f"retrieval {name}/pairs": ours.RetrievalEvaluator(a, b, [[i] for i in range(60)]),
        f"triplets {name}/triplets": ours.TripletEvaluator(a, b, c),
        f"knn {name}/test": ours.KNNEvaluator(a, label, b, label),
        f"clustering {name}/train": ours.ClusteringEvaluator(a, label),
        "geometry sts/one": ours.GeometryEvaluator.of_sts(a[:25], b[:25], gold[:25]),
    }
    assert list(first["scores"]) == list(expected)
    for key, evaluator in expected.items():
        found = evaluator(encoder)
        assert first["scores"][key] == pytest.approx(found, abs=1e-12)
        assert f"{key} " in out
    spearman = first["scores"]["sts sts"]["spearman"]
    assert f"spearman{spearman:>11.4f}".replace(" ", "") in out.replace(" ", "")
    assert "one_spearman" in first["scores"]["sts sts"]


def test_queries_with_several_answers_and_further_documents(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        '{"query": "q1", "pos": ["d1", "d2"], "neg": []}\n{"query": "q2", "pos": ["d1"], "neg": []}'
    )
    (tmp_path / "more.txt").write_text("d3\nd2\n")
    found = tasks.read_retrieval(str(tmp_path / "q.jsonl"), str(tmp_path / "more.txt"))
    answers = [{found.corpus[j] for j in own} for own in found.positives]
    assert dict(zip(found.queries, answers, strict=True)) == {"q1": {"d1", "d2"}, "q2": {"d1"}}
    assert sorted(found.corpus) == ["d1", "d2", "d3"]


def test_beir(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "x", "title": "T", "text": "t"}\n{"_id": "y", "title": "", "text": "u"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "q"}\n{"_id": "2", "text": "r"}')
    head = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels/test.tsv").write_text(f"{head}2\ty\t1\n2\tx\t0\n")
    found = tasks.read_retrieval(str(tmp_path))
    assert (found.queries, found.corpus, found.positives) == (["r"], ["T t", "u"], [[1]])
    (tmp_path / "qrels/test.tsv").write_text(f"{head}2\ty\t1\n3\tx\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv, line 3: got an unknown id, '3'"):
        tasks.read_retrieval(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got no table"),
        (["--knn", "ROOT/train.tsv", "--neighbors", "0"], "--neighbors: got 0"),
        (["--knn", "ROOT/train.tsv", "--batch-size", "0"], "--batch-size: got 0"),
        (["--knn"] + ["ROOT/train.tsv"] * 3, "knn: got 3 tables"),
        (["--corpus", "x.txt", "--knn", "ROOT/train.tsv"], "--corpus: expected --retrieval"),
        (["--sts", "ROOT/triplets.tsv"], "triplets.tsv: got the columns anchor, positive"),
        (["--sts", "ROOT/sts/one.tsv", "ROOT/sts/one.tsv"], "got a file twice"),
        (["--triplets", "ROOT/none.tsv"], "none.tsv: no such file"),
        (["--retrieval", "ROOT/pairs.tsv", "--retrieval", "ROOT/pairs.tsv"], "pairs twice"),
    ],
)
def test_bad_commands(files, capsys, words, message):
    root = str(files[0])
    assert cli.main(["evaluate", "no-model", *(w.replace("ROOT", root) for w in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model$"):
        ours.load_model(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an unfinished run$"):
        ours.load_model(str(tmp_path))
    for seed in (42, 43):
        (tmp_path / f"seeds/seed-{seed}/model").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no model; expected .*seeds/seed-42 or .*seeds/seed-43$"):
        ours.load_model(str(tmp_path / "seeds"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model: cannot load"):
        ours.load_model(str(tmp_path / "bad"))
