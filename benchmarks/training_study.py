"""What the recipes reach on real text: `python -m contrastive_ops.benchmarks.training_study`.

Each part trains with several seeds in a scratch folder and adds its scores, with the untrained
model's beside them, to `benchmarks/results/training.json`, of which `contrastive_ops.benchmarks.
report` makes the table in `docs/training.md`. The data is a folder of the tables that the parts
name. A transformer's parts are cut to what a CPU does in a minute or two a seed, and say so.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contrastive_ops.training import recipes
from contrastive_ops.training.atomic import write_json
from contrastive_ops.training.run import Result, read_result

from .machine import describe

RESULTS = Path(__file__).parent / "results" / "training.json"
Rows = list[list[str]]


def read(path: Path) -> tuple[list[str], Rows]:
    """Header and rows of a TSV."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return lines[0], lines[1:]


def write(path: Path, header: list[str], rows: Rows) -> Path:
    """A TSV."""
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def study(
    recipe: Callable[..., Any], data: Any, folder: Path, seeds: int, note: str, **settings: Any
) -> dict[str, Any]:
    """One part: trains, and sums up scores, losses and times."""
    trainer = {"disable_tqdm": True, "save_strategy": "no", "load_best_model_at_end": False}
    settings["trainer"] = trainer | settings.get("trainer", {})
    summary = recipe(data, folder, seeds=seeds, report=False, **settings)
    runs = [read_result(folder / f"seed-{seed}") for seed in summary["seeds"]]
    spent = [_seconds(run.log) for run in runs]
    return {
        "note": note,
        "seeds": summary["seeds"],
        "untrained": summary["untrained"],
        "trained": summary["metrics"],
        "first_loss": [run.log[0]["loss"] for run in runs],
        "last_loss": [run.log[-1]["loss"] for run in runs],
        "steps": runs[0].log[-1]["step"],
        "training_seconds": [round(sum(s.values()), 2) for s in spent],
        "seconds_in_all": [_seconds_in_all(run.folder) for run in runs],
        "loss_share": [round(s["loss"] / sum(s.values()), 4) for s in spent],
    }


def _seconds_in_all(folder: Path) -> float:
    """From reading the data to saving the model: tokenizer, evaluations and all."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    begin, end = (datetime.datetime.fromisoformat(run[name]) for name in ("started", "finished"))
    return (end - begin).total_seconds()


def _seconds(log: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all steps, by what they were spent on."""
    total = dict.fromkeys(("encoder", "loss", "data"), 0.0)
    start: dict[str, Any] = {"step": 0}
    for before, entry in itertools.pairwise([start, *log]):
        for name in total:
            total[name] += entry["seconds"][name] * (entry["step"] - before["step"])
    return total


def static(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """The averaging encoder from nothing."""
    return study(
        recipes.static,
        data / "nli/triplets.tsv",
        folder,
        seeds,
        "14,410 NLI triplets, 3 epochs; untrained: random vectors scaled by inverse document "
        "frequency",
        evaluate=[f"sts-dev={data / 'stsb/dev.tsv'}"],
    )


def sup_con(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """Supervised contrastive learning of intents."""
    return study(
        recipes.contrastive,
        data / "clinc150/train.tsv",
        folder,
        seeds,
        "MiniLM, 60 steps of 100 of 15,000 texts of 150 intents; neighbours among all of these",
        model=model,
        objective="sup_con",
        temperature=0.1,
        max_length=32,
        evaluate=[f"clinc-val={data / 'clinc150/val.tsv'}"],
        trainer={
            "per_device_train_batch_size": 100,
            "batch_sampler": "group_by_label",
            "max_steps": 60,
            "learning_rate": 5e-5,
            "eval_steps": 60,
            "logging_steps": 5,
        },
    )


def mined(
    data: Path, folder: Path, seeds: int, model: str, *, negatives: int = 1
) -> dict[str, Any]:
    """Questions and the sentences that answer them, with mined negatives or without."""
    header, rows = read(data / "squad/dev.tsv")
    cut = len(rows) * 4 // 5  # rows of one article are neighbours: other articles are held out
    known = random.Random(0).sample(rows[:cut], 1000)
    train = write(folder / "train.tsv", header, known)
    dev = write(folder / "dev.tsv", header, rows[cut : cut + 1000])
    what = "a mined negative each" if negatives else "no mined negatives"
    return study(
        recipes.contrastive,
        train,
        folder,
        seeds,
        f"MiniLM, 25 steps of 32 of 1,000 questions, {what}; tested on 1,000 of other articles",
        model=model,
        mine={"num_negatives": negatives, "relative_margin": 0.05} if negatives else {},
        max_length=64,
        evaluate=[f"squad-dev={dev}"],
        trainer={
            "per_device_train_batch_size": 32,
            "max_steps": 25,
            "learning_rate": 3e-5,
            "eval_steps": 25,
            "logging_steps": 5,
        },
    )


def not_mined(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """The same questions against the batch alone."""
    return mined(data, folder, seeds, model, negatives=0)


def simcse_sup(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """Supervised SimCSE on a model that has seen such data before."""
    return study(
        recipes.simcse_sup,
        data / "nli/triplets.tsv",
        folder,
        seeds,
        "MiniLM, which was tuned on NLI already, mean pooling; 20 steps of 32 triplets",
        model=model,
        pooler="mean",
        head="none",
        evaluate=[f"sts-dev={data / 'stsb/dev.tsv'}"],
        trainer={
            "per_device_train_batch_size": 32,
            "max_steps": 20,
            "eval_steps": 20,
            "learning_rate": 2e-5,
            "logging_steps": 4,
        },
    )


def simcse_unsup(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """Unsupervised SimCSE: dropout alone."""
    return study(
        recipes.simcse_unsup,
        data / "sentences/sentences.tsv",
        folder,
        seeds,
        "MiniLM, the recipe's own CLS and MLP in place of its mean; 24 steps of 32 sentences",
        model=model,
        evaluate=[f"sts-dev={data / 'stsb/dev.tsv'}"],
        trainer={
            "per_device_train_batch_size": 32,
            "max_steps": 24,
            "eval_steps": 24,
            "logging_steps": 4,
        },
    )


def loss_share(data: Path, folder: Path, seeds: int, model: str) -> dict[str, Any]:
    """How much of a step the loss takes, with an encoder of four layers."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    bert = folder / "bert-mini"
    AutoTokenizer.from_pretrained(model).save_pretrained(bert)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    BertModel(BertConfig(intermediate_size=1024, **size)).save_pretrained(bert)
    found: dict[str, Any] = {"note": "4 layers of width 256 (BERT mini), 32 tokens at most"}
    for batch, steps in ((64, 8), (2048, 2)):
        result = recipes.simcse_unsup(
            data / "sentences/sentences.tsv",
            folder / f"batch-{batch}",
            model=str(bert),
            report=False,
            trainer={
                "per_device_train_batch_size": batch,
                "max_steps": steps,
                "logging_steps": 1,
                "save_strategy": "no",
                "load_best_model_at_end": False,
                "disable_tqdm": True,
            },
        )
        assert isinstance(result, Result)
        # The first step also warms up. Every step is logged: with its accuracy and ranks.
        spent = [entry["seconds"] for entry in result.log[1:]]
        shares = sorted(s["loss"] / (s["loss"] + s["encoder"] + s["data"]) for s in spent)
        seconds = sorted(s["loss"] for s in spent)
        found[f"batch_{batch}"] = {
            "share_median": round(shares[len(shares) // 2], 4),
            "share_max": round(shares[-1], 4),
            "loss_seconds_median": round(seconds[len(seconds) // 2], 4),
        }
    return found


PARTS = {
    "static": static,
    "sup_con": sup_con,
    "mined": mined,
    "not_mined": not_mined,
    "simcse_sup": simcse_sup,
    "simcse_unsup": simcse_unsup,
    "loss_share": loss_share,
}


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of nli/, stsb/, ...")
    parser.add_argument("--model", default="", help="folder of the MiniLM (all but `static`)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="kept: what is finished there is read again")
    args = parser.parse_args()
    for name in args.parts:
        with tempfile.TemporaryDirectory() as passing:
            folder = (args.scratch or Path(passing)) / name
            folder.mkdir(parents=True, exist_ok=True)
            found = PARTS[name](args.data, folder, args.seeds, args.model)
        facts = {k: v for k, v in describe().items() if k not in ("kernels", "backends")}
        kept = json.loads(args.output.read_text()) if args.output.exists() else {"parts": {}}
        kept["parts"][name] = found | facts
        write_json(args.output, {"title": "Recipes on real text", **kept})
        print(name, json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
