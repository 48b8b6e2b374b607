"""The mining suite of `contrastive-ops bench`: its numbers are of the answers that it times."""

import json
import sys

import pytest

from contrastive_ops import cli
from contrastive_ops.benchmarks import mining, mining_study


def test_the_suite_runs_and_its_peers_agree(tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    assert cli.main(["bench", "--quick", "--suite", "mining", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "mining.json").read_text())
    rows, out = result["rows"], capsys.readouterr().out
    assert result["quick"]
    for row in rows:
        assert row["variant"] in out
        if "unavailable" in row:
            continue
        assert row["seconds"] > 0
        if row["ours"] and "agreement" in row:
            assert row["agreement"] == 1
        elif "agreement" in row:
            assert row["agreement"] > 0.999
    ours = [row for row in rows if row["variant"] == "contrastive-ops" and "m" in row["case"]]
    assert ours[0]["share_scored"] < 1
    assert 0 < ours[0]["peak_memory_bytes"] < 64 << 20


def test_a_peer_that_is_missing_is_named(monkeypatch):
    for name in ("faiss", "datasets", "pytorch_metric_learning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(mining, "measure_memory", lambda case: 0)
    case = {"n": 16, "m": 50, "dim": 8, "k": 2, "inputs": "gaussian"}
    rows = mining.measure_topk(dict(case), True, lambda *_: None)
    rows += mining.measure_hard_negatives({"n": 16, "dim": 8}, True, lambda *_: None)
    rows += mining.measure_miners({"n": 16, "dim": 8}, True, lambda *_: None)
    lines = "\n".join(mining.summarize(row) for row in rows if "unavailable" in row)
    for package in ("faiss-cpu", "sentence-transformers datasets", "pytorch-metric-learning"):
        assert f"pip install {package}" in lines
    assert any(row["ours"] for row in rows)


def test_clustered_rows_are_near_and_share_a_mean():
    x, y = mining.make_rows(200, 5000, 64, "clustered")
    assert (x @ y.T).amax(1).min() > 0.5
    assert y.mean(0).norm() > 0.2
    assert mining.make_rows(200, 5000, 64, "gaussian")[1].mean(0).norm() < 0.1


def test_the_study_tells_gains_seed_by_seed(tmp_path, capsys):
    def row(mrr):
        return {"mrr@10": mrr, "recall@1": mrr / 2, "recall@10": 1.0}

    seeds = {
        "0": {"in-batch": row(0.5), "mined": row(0.6)},
        "1": {"in-batch": row(0.7), "mined": row(0.9)},
    }
    lines = {line[:22].strip(): line for line in mining_study.table(seeds).splitlines()}
    assert "0.6000 ± 0.1414" in lines["in-batch"]
    assert "0.7500 ± 0.2121" in lines["mined"]
    assert lines["mined"].endswith("+0.1500 ± 0.0707")
    assert "random" not in lines
    absent = ["--data", str(tmp_path / "none.tsv"), "--output", str(tmp_path / "out.json")]
    assert mining_study.main(absent) == 0
    assert "none.tsv is not there; skipped" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
