"""The mining suite of `contrastive-ops bench`: its numbers are of the answers that it times."""

import json

import pytest

from contrastive_ops import cli
from contrastive_ops.benchmarks import mining


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


def test_clustered_rows_are_near_and_share_a_mean():
    x, y = mining.make_rows(200, 5000, 64, "clustered")
    assert (x @ y.T).amax(1).min() > 0.5
    assert y.mean(0).norm() > 0.2
    assert mining.make_rows(200, 5000, 64, "gaussian")[1].mean(0).norm() < 0.1
