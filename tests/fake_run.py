"""A finished run, as training leaves one, with curves that are made up."""

from __future__ import annotations

import json
import math
import random

SECONDS = {"encoder": 0.0712, "loss": 0.0152, "data": 0.0043}


def write_run(folder, dev, *, seed=0, steps=300, model=None, seconds=SECONDS):
    """Files of a run; `model` is saved where there is one."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "recipe": "static",
        "command": f"/deep/cli.py train static --data nli/triplets.tsv --output {folder.name}",
        "configuration": {"batch_size": 512, "temperature": 0.05, "data": ["nli/triplets.tsv"],
                          "note": "<b>5 & 6</b>", "guide": "", "mine": {},
                          "trainer": {"learning_rate": 0.02}},
        "versions": {"torch": "2.13.0", "contrastive-ops": "0.1.0"},
        "machine": {"cpu": "Some CPU", "threads": 2},
        "seed": seed,
        "started": "2026-03-01T09:05:00+00:00",
        "finished": "2026-03-01T09:06:00+00:00",
        "model": "static, 256 wide",
        "metric": "sts-dev_spearman",
        "dev": str(dev),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    with open(folder / "log.jsonl", "w") as log:
        for step in range(1, steps + 1):
            x = step / steps
            entry = {
                "step": step,
                "epoch": round(3 * x, 4),
                "loss": 0.8 + 3.5 * math.exp(-4 * x) + draw.gauss(0, 0.12),
                "learning_rate": 0.05 * min(10 * x, (1 - x) / 0.9),
                "temperature": 0.05 - 0.01 * x,
                "accuracy": min(1.0, 0.86 - 0.7 * math.exp(-4 * x) + draw.gauss(0, 0.02)),
                "positive_rank": 1 + 120 * math.exp(-5 * x) + draw.random(),
                "seconds": seconds,
            }
            log.write(json.dumps(entry) + "\n")
    with open(folder / "evaluation.jsonl", "w") as evaluations:
        for step in range(0, steps + 1, max(1, steps // 10)):
            x = step / steps
            score = 0.76 + 0.035 * (1 - math.exp(-5 * x)) - 0.004 * x + draw.gauss(0, 0.001)
            entry = {
                "step": step,
                "sts-dev_spearman": score,
                "sts-dev_pearson": score - 0.01,
                "squad_ndcg@10": 0.55 + 0.05 * x,
                "alignment": 0.5 - 0.2 * x + draw.gauss(0, 0.004),
                "uniformity": -3.4 - 0.3 * math.sin(3 * x) + draw.gauss(0, 0.01),
            }
            evaluations.write(json.dumps(entry) + "\n")
    if model is not None:
        model.save_pretrained(str(folder / "model"), create_model_card=False)
