"""An index, and the commands encode, index and search."""

from __future__ import annotations

import json

import pytest
import torch
from small_encoder import make_texts
from torch.nn.functional import normalize

from contrastive_ops import cli
from contrastive_ops.search import Index

TEXTS = make_texts(40, 0)
QUERIES = make_texts(6, 1)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.tsv"
    rows = [f"{text}\tname {i}" for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(["text\ttitle", *rows]), "utf-8")
    return str(path)


def expected(encoder, queries, top, dtype=torch.float32):
    query = encoder.encode_query(queries, convert_to_tensor=True).to(dtype)
    rows = encoder.encode_document(TEXTS, convert_to_tensor=True).to(dtype)
    scores = normalize(query.double(), dim=1) @ normalize(rows.double(), dim=1).T
    return scores.topk(top)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("given", ["", "rows.npy", "rows.safetensors", "rows"])
def test_index_and_search(encoder, model_folder, documents, tmp_path, capsys, dtype, given):
    folder, options = tmp_path / "index", ["--dtype", dtype]
    if given:
        path = str(tmp_path / given)
        encode = ["encode", model_folder, documents, "--output", path, "--shard-rows", "16"]
        assert cli.main([*encode, *options]) == 0
        assert f"40 embeddings of width 16, {dtype} -> {path}" in capsys.readouterr().out
        options = ["--embeddings", path]
    assert cli.main(["index", model_folder, documents, "--output", str(folder), *options]) == 0
    assert f"40 documents -> {folder}" in capsys.readouterr().out
    index = Index.open(folder)
    found = index.search(QUERIES, top=7)
    best = expected(encoder, QUERIES, 7, getattr(torch, dtype))
    assert torch.equal(found.indices, best.indices)
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    torch.testing.assert_close(found.scores.double(), best.values, atol=tolerance, rtol=0)
    assert [row["text"] for row in index.documents([3, 0])] == [TEXTS[3], TEXTS[0]]
    # More than there are.
    assert index.search(QUERIES, top=100).indices.shape == (6, 40)


@pytest.fixture(scope="module")
def built(model_folder, documents, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("index"))
    assert cli.main(["index", model_folder, documents, "--output", folder]) == 0
    return folder


def test_search_shows_the_document_and_its_columns(encoder, built, capsys):
    capsys.readouterr()
    assert cli.main(["search", QUERIES[0], "--index", built, "--top", "2"]) == 0
    best = expected(encoder, QUERIES[:1], 2)
    lines = capsys.readouterr().out.splitlines()
    for score, row, heading, text in zip(
        best.values[0].tolist(), best.indices[0].tolist(), lines[::2], lines[1::2], strict=True
    ):
        assert heading == f"{score:.3f}  row {row + 1}   title: name {row}"
        assert text.strip() == TEXTS[row]


def test_many_queries(encoder, built, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("\n".join(QUERIES))
    out = tmp_path / "answers.jsonl"
    arguments = ["--queries", str(tmp_path / "q.txt"), "--output", str(out), "--top", "3"]
    assert cli.main(["search", "--model", built, *arguments]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    best = expected(encoder, QUERIES, 3)
    assert [answer["query"] for answer in answers] == QUERIES
    for answer, rows in zip(answers, best.indices.tolist(), strict=True):
        assert [hit["row"] - 1 for hit in answer["hits"]] == rows
        assert [hit["document"]["text"] for hit in answer["hits"]] == [TEXTS[row] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--index", "INDEX"], "expected a query or --queries"),
        (["search", "x", "--index", "INDEX", "--top", "0"], "top: got 0"),
        (["search", " ", "--index", "INDEX"], "query: got no text"),
        (["search", "x", "--index", "INDEX", "--output", "y"], "--output: expected it with"),
        (["search", "--queries", "DOCS", "--output", "y", "--index", "HERE"], "holds no index"),
        (["search", "x", "--index", "HERE"], "holds no trained model"),
        (["search", "x", "--model", "MODEL"], "but nothing to search in; `contrastive-ops index"),
        (["encode", "MODEL", "DOCS:no", "--output", "HERE/x.npy"], "expected no"),
        (["encode", "MODEL", "HERE/a.txt", "--output", "HERE/x.npy"], "a.txt: no such file"),
        (
            ["index", "MODEL", "DOCS", "--output", "HERE/i", "--embeddings", "HERE/three.npy"],
            "got 3 rows, expected 40, one for each of",
        ),
    ],
)
def test_bad_commands(built, model_folder, documents, tmp_path, capsys, arguments, message):
    import numpy as np

    np.save(tmp_path / "three.npy", np.zeros((3, 16), dtype=np.float32))
    places = {"INDEX": built, "MODEL": model_folder, "DOCS": documents, "HERE": str(tmp_path)}
    for short, path in places.items():
        arguments = [word.replace(short, path) for word in arguments]
    capsys.readouterr()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "i" / "index.json").exists()
