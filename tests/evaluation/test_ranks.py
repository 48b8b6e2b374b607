"""Two ranks share the encoding and report the scores of one; they train one model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from small_encoder import make_texts

from contrastive_ops import cli

RANK = """
import sys
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from contrastive_ops import cli

# First, so that it is training that makes the ranks one group.
pairs, run = sys.argv[3], sys.argv[-1].replace("two.json", "run")
words = ["--dim", "16", "--matryoshka-dims", "16", "--logging_steps", "1", "--max_steps", "2"]
words += ["--per_device_train_batch_size", "8", "--no-report", "--disable_tqdm"]
assert cli.main(["train", "static", "--data", pairs, "--output", run, *words]) == 0

forward, seen = StaticEmbedding.forward, []
def counted(self, features, **kwargs):
    seen.append(len(features["offsets"]))
    return forward(self, features, **kwargs)
StaticEmbedding.forward = counted
assert cli.main(["evaluate", *sys.argv[1:]]) == 0
print("ENCODED", sum(seen))
"""


def test_two_ranks(encoder, tmp_path, capsys):
    encoder.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    texts = make_texts(41, 0)
    rows = [f"{query}\t{texts[i % 20]}" for i, query in enumerate(texts)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["query\tanswer", *rows]))
    table = str(tmp_path / "pairs.tsv")
    words = [str(tmp_path / "model"), "--retrieval", table, "--geometry", table, "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *words, "--json", str(tmp_path / "two.json")],
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], done
    # 41 queries, 20 documents, 41 distinct texts: each rank its share.
    assert [out.split("ENCODED")[1].strip() for out, _ in done] == ["52", "50"]
    assert "retrieval" in done[0][0]
    assert "retrieval" not in done[1][0]
    log = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    # A step takes 16 of the 41 pairs, 8 on each rank.
    assert [(entry["step"], entry["epoch"]) for entry in log] == [(1, 0.5), (2, 1.0)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 2
    assert str(tmp_path / "run") in done[0][0]
    assert str(tmp_path / "run") not in done[1][0]
    assert cli.main(["evaluate", *words, "--json", str(tmp_path / "one.json")]) == 0
    two, one = (
        json.loads((tmp_path / name).read_text())["models"][0]["scores"]
        for name in ("two.json", "one.json")
    )
    assert list(two) == list(one)
    for kind, scores in one.items():
        assert two[kind] == pytest.approx(scores, rel=1e-6)
