"""Two ranks share the encoding and report the same scores as one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_encoder import make_encoder, make_texts

from contrastive_ops.evaluation import GeometryEvaluator, RetrievalEvaluator, evaluate

RANK = """
import json, sys
from datetime import timedelta
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import small_encoder, test_ranks

rank, port = int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), 2, rank)
encoder = small_encoder.make_encoder()
forward, seen = encoder.forward, []
encoder.forward = lambda features, **kwargs: (
    seen.append(len(features["offsets"])), forward(features, **kwargs))[1]
print(json.dumps([test_ranks.run(encoder), sum(seen)]))
dist.destroy_process_group()
"""
TEXTS = 41


def run(encoder):
    texts = make_texts(TEXTS, 0)
    assert len(set(texts)) == TEXTS
    positives = [[i % 20] for i in range(TEXTS)]
    return evaluate(
        encoder,
        [
            RetrievalEvaluator(texts, texts[:20], positives, name="r"),
            GeometryEvaluator(texts, name="g"),
        ],
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo")
def test_two_ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    paths = f"import sys; sys.path.insert(0, {str(here)!r})\n"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", paths + RANK, str(here.parent), str(rank), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], done
    found, counts = zip(*(json.loads(out.splitlines()[-1]) for out, _ in done), strict=True)
    alone = run(make_encoder())
    assert found[0] == found[1]
    assert found[0] == pytest.approx(alone, rel=1e-6)
    # 41 queries, 20 documents, 41 texts: each rank its share.
    assert counts == (21 + 10 + 21, 20 + 10 + 20)
