"""The commands of `docs/training.md`, run: `python -m contrastive_ops.benchmarks.recipe_examples`.

Makes small tables of a folder of data, runs each command beside them as a user would, and keeps it
with its time and scores in `benchmarks/results/recipes.json`, of which `contrastive_ops.benchmarks.
report` makes the blocks of that page. Nothing there is typed by hand, so nothing there is not run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from contrastive_ops.training.atomic import remove, write_json
from contrastive_ops.training.run import read_result

from .machine import describe
from .training_study import Rows, read, write

RESULTS = Path(__file__).parent / "results" / "recipes.json"
_STS = "--evaluate sts-dev=stsb-dev.tsv"

#: What the tables hold, by file.
TABLES = {
    "nli-triplets.tsv": "14,410 triplets of premise, entailed and contradicted hypothesis",
    "nli-pairs.tsv": "50,632 pairs with the label of each",
    "nli-scores.tsv": "the same pairs, with 1, 0.5 or 0 for entailment, neutral, contradiction",
    "sentences.txt": "10,000 sentences",
    "intents.tsv": "1,500 texts of 150 intents",
    "squad-train.tsv": "1,000 questions, each with the sentence that answers it",
    "stsb-dev.tsv": "STS Benchmark's development set",
    "intents-dev.tsv": "1,500 further texts of the intents",
    "squad-dev.tsv": "1,000 questions and sentences of other articles",
}

#: Arguments of each run, by its name.
EXAMPLES: dict[str, str] = {
    "static": f"static --data nli-triplets.tsv {_STS}",
    "simcse-unsup": f"simcse-unsup --model minilm --data sentences.txt "
    f"{_STS} --per_device_train_batch_size 32 --max_steps 20 --eval_steps 10 --save_steps 10 "
    "--logging_steps 5",
    "simcse-sup": f"simcse-sup --model minilm --pooler mean --head none --data nli-triplets.tsv "
    f"{_STS} --per_device_train_batch_size 32 --max_steps 20 --eval_steps 10 --save_steps 10 "
    "--logging_steps 5",
    "sbert-softmax": f"sbert-softmax --model minilm --data nli-pairs.tsv {_STS} "
    "--per_device_train_batch_size 32 --max_steps 40 --eval_steps 40 --logging_steps 5",
    "sbert-cosine": f"sbert-cosine --model minilm --data nli-scores.tsv --score-range 0 1 {_STS} "
    "--per_device_train_batch_size 32 --max_steps 40 --eval_steps 40 --logging_steps 5",
    "sbert-triplet": "sbert-triplet --model minilm --data intents.tsv "
    "--evaluate intents=intents-dev.tsv --batch_sampler group_by_label "
    "--per_device_train_batch_size 60 --max_steps 30 --eval_steps 30 --logging_steps 5",
    "distill": f"distill --teacher minilm --model '' --dim 384 --data sentences.txt {_STS} "
    "--learning_rate 0.01 --num_train_epochs 1",
    "contrastive": "contrastive --model minilm --data squad-train.tsv "
    "--mine '{num_negatives: 1, relative_margin: 0.05}' --guide minilm "
    "--evaluate squad=squad-dev.tsv --max-length 64 --per_device_train_batch_size 32 "
    "--max_steps 20 --eval_steps 20 --logging_steps 5",
    "contrastive-labels": "contrastive --model minilm --objective sup_con --temperature 0.1 "
    "--data intents.tsv --evaluate intents=intents-dev.tsv --batch_sampler group_by_label "
    "--max-length 32 --per_device_train_batch_size 100 --max_steps 20 --eval_steps 20 "
    "--logging_steps 5",
    "contrastive-queue": f"contrastive --model minilm --data sentences.txt --views repeat "
    f"--queue 256 {_STS} --max-length 32 --per_device_train_batch_size 32 "
    "--max_steps 20 --eval_steps 20 --logging_steps 5",
}


def prepare(data: Path, minilm: Path, folder: Path) -> None:
    """Writes the tables, and a link to the model."""
    draw = random.Random(0)
    _copy(data / "nli/triplets.tsv", folder / "nli-triplets.tsv")
    _copy(data / "stsb/dev.tsv", folder / "stsb-dev.tsv")
    header, rows = read(data / "clinc150/val.tsv")
    write(folder / "intents-dev.tsv", header, rows[::2])
    _, pairs = read(data / "nli/pairs.tsv")
    write(folder / "nli-pairs.tsv", ["label", "premise", "hypothesis"], [r[1:] for r in pairs])
    score = {"entailment": "1", "neutral": "0.5", "contradiction": "0"}
    rows = [[score[label], *texts] for _, label, *texts in pairs]
    write(folder / "nli-scores.tsv", ["score", "sentence1", "sentence2"], rows)
    _, sentences = read(data / "sentences/sentences.tsv")
    lines = [row[1] for row in draw.sample(sentences, 10_000)]
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    header, rows = read(data / "clinc150/train.tsv")
    taken: dict[str, Rows] = defaultdict(list)
    for row in draw.sample(rows, len(rows)):
        taken[row[0]].append(row)
    write(folder / "intents.tsv", header, [r for own in taken.values() for r in own[:10]])
    header, rows = read(data / "squad/dev.tsv")
    cut = len(rows) * 4 // 5  # rows of one article are neighbours: other articles are held out
    write(folder / "squad-train.tsv", header, draw.sample(rows[:cut], 1000))
    write(folder / "squad-dev.tsv", header, rows[cut : cut + 1000])
    if not (folder / "minilm").exists():
        (folder / "minilm").symlink_to(minilm.resolve(), target_is_directory=True)


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def run(name: str, folder: Path) -> dict[str, Any]:
    """Runs a command as it is printed; its time is all of it, from start to report."""
    command = f"contrastive-ops train {EXAMPLES[name]} --output runs/{name}"
    words = [sys.executable, "-m", "contrastive_ops.cli", *shlex.split(command)[1:]]
    remove(folder / "runs" / name)
    begin = time.perf_counter()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, cwd=folder, env=offline, check=True)
    seconds = time.perf_counter() - begin
    result = read_result(folder / "runs" / name)
    metric = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))["metric"]
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "metric": metric,
        "untrained": result.untrained,
        "trained": result.metrics,
        "first_loss": result.log[0]["loss"],
        "last_loss": result.log[-1]["loss"],
        "steps": result.log[-1]["step"],
    }


def main() -> None:
    """Runs those that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of nli/, stsb/, ...")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of the model")
    parser.add_argument("--names", nargs="+", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where to run them (default: passing)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        folder = args.scratch or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(args.data, args.minilm, folder)
        for name in args.names:
            found = run(name, folder)
            facts = {k: v for k, v in describe().items() if k not in ("kernels", "backends")}
            kept = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
            kept["runs"][name] = found | facts
            write_json(
                args.output, {"title": "Commands of docs/training.md", "tables": TABLES, **kept}
            )


if __name__ == "__main__":
    main()
