"""Two processes whose texts are all candidates train the model that one process trains."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys

import pytest
import torch

from contrastive_ops.training.collator import text_ids
from contrastive_ops.training.losses import of_all_ranks
from contrastive_ops.training.run import read_result, train
from contrastive_ops.training.settings import Settings, load

RANK = """
import json, sys
from contrastive_ops.training.run import train
from contrastive_ops.training.settings import Settings
train(Settings(**json.loads(sys.argv[1])), sys.argv[2], report=False)
"""


def settings_of(data, size: int, **more) -> Settings:
    trainer = {
        "per_device_train_batch_size": size,
        "batch_sampler": "batch_sampler",
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    changes = {"data": [str(data)], "dim": 16, "matryoshka_dims": [16, 8], "temperature": 0.2}
    return load("static", changes | {"trainer": trainer} | more)


EVERYTHING = {
    "learnable_temperature": True,
    "hard_negative_weight": 2.0,
    "symmetric": True,
    "false_negative_margin": 0.1,
}


def test_two_ranks_are_one(tmp_path):
    draw = random.Random(0)
    words = ["red", "green", "blue", "old", "new", "cat", "dog", "bird", "sun", "moon", "tree"]
    rows = [[" ".join(draw.choices(words, k=3)) for _ in range(3)] for _ in range(50)]
    for i in range(0, 50, 5):  # texts that come again in other batches, or on the other rank
        rows[i][draw.randrange(2)] = "the same text"
    data = tmp_path / "data.tsv"
    data.write_text("anchor\tpositive\tnegative\n" + "\n".join(map("\t".join, rows)) + "\n")
    one = settings_of(data, 16, gather_across_devices=True, **EVERYTHING)
    two = settings_of(data, 8, gather_across_devices=True, **EVERYTHING)
    alone = settings_of(data, 8, **EVERYTHING)
    train(one, tmp_path / "one", report=False)
    for settings, name in ((two, "two"), (alone, "alone")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, json.dumps(settings.to_dict()), tmp_path / name],
                env=os.environ
                | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [rank.communicate(timeout=200)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], errors
    found = {name: read_result(tmp_path / name) for name in ("one", "two", "alone")}
    losses = {name: torch.tensor([entry["loss"] for entry in r.log]) for name, r in found.items()}
    torch.testing.assert_close(losses["two"], losses["one"], rtol=1e-5, atol=0)
    assert (losses["alone"] < losses["one"] - 0.1).all()  # fewer candidates
    weights = {name: next(r.load().parameters()).detach() for name, r in found.items()}
    torch.testing.assert_close(weights["two"], weights["one"], rtol=1e-4, atol=1e-6)
    assert (weights["alone"] - weights["one"]).abs().max() > 1e-3


def test_a_single_process_is_as_before():
    labels = text_ids([["a", "b", "a"], ["x", "y", "z"]])
    mine, every = of_all_ranks(labels)
    assert torch.equal(mine, labels)
    assert torch.equal(every, labels)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("static", {"objective": "sup_con"}, "gather_across_devices: got true with the obj"),
        ("static", {"queue": 8}, "queue: expected no .*gather_across_devices beside it"),
    ],
)
def test_refused(recipe, options, message, tmp_path):
    column = "label" if options.get("objective") == "sup_con" else "positive"
    rows = [f"text {i}\tother {i % 3}" for i in range(9)]
    data = tmp_path / "data.tsv"
    data.write_text(
        f"{'sentence' if column == 'label' else 'anchor'}\t{column}\n" + "\n".join(rows)
    )
    changes = {"data": [str(data)], "gather_across_devices": True}
    with pytest.raises(ValueError, match=message):
        train(load(recipe, changes | options), tmp_path / "run", report=False)
