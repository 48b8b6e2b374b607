"""Which change of a sentence is a good positive? SimCSE's table 1 on any backbone.

    python -m contrastive_ops.benchmarks.augmentation_ablation --model bert-base-uncased \
        --data wiki1m_for_simcse.txt --dev stsb/dev.tsv

Trains `simcse-unsup` once for each row and seed: dropout alone, then crops, deletions, repetition,
shuffling, cutoffs and masking on top of it, and a deletion without any. Prints a table of Spearman
correlations on the development set, the published ones beside those that the paper has, and keeps
them as JSON, of which `contrastive_ops.benchmarks.report` makes the table in `docs/training.md`.

Source: Gao et al. 2021, "SimCSE" (arXiv 2104.08821), table 1: STS-B dev, BERT base.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from contrastive_ops.training import recipes
from contrastive_ops.training.atomic import write_json
from contrastive_ops.training.recipe_command import training_arguments

from .machine import describe
from .report_training import augmentations

RESULTS = Path(__file__).parent / "results" / "augmentation.json"
#: Name, views of the positive, other settings, the paper's STS-B dev.
ROWS: list[tuple[str, list[str], dict[str, Any], float | None]] = [
    ("dropout alone", ["dropout"], {}, 82.5),
    ("crop 10 %", ["crop:0.1"], {}, 77.8),
    ("crop 20 %", ["crop:0.2"], {}, 71.4),
    ("crop 30 %", ["crop:0.3"], {}, 63.6),
    ("delete 10 % of words", ["delete:0.1"], {}, 75.9),
    ("delete 20 % of words", ["delete:0.2"], {}, 72.2),
    ("delete 30 % of words", ["delete:0.3"], {}, 68.2),
    ("delete one word", ["delete-one"], {}, 75.9),
    ("delete one word, no dropout", ["delete-one"], {"dropout": 0.0}, 74.2),
    ("repeat words", ["repeat"], {}, None),
    ("shuffle", ["shuffle"], {}, None),
    ("token cutoff", ["token-cutoff"], {}, None),
    ("feature cutoff", ["feature-cutoff"], {}, None),
    ("masked language model beside it", ["dropout"], {"mlm_weight": 0.1}, None),
]


def cut(model: str, layers: int, folder: str) -> None:
    """Saves the first layers of a backbone."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(model, num_hidden_layers=layers).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def main() -> None:
    """Trains every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="hub name or folder")
    parser.add_argument("--data", required=True, help="sentences")
    parser.add_argument("--dev", required=True, help="pairs with scores")
    parser.add_argument("--layers", type=int, help="keep as many of its layers (default: all)")
    parser.add_argument("--pooler", default="cls-before-pooler")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--caveat", default="", help="a line that goes under the table")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="kept: what is finished there is read again")
    args, rest = parser.parse_known_args()
    trainer = {"disable_tqdm": True} | training_arguments(rest)
    with tempfile.TemporaryDirectory() as passing:
        found, untrained = train_rows(args, trainer, args.scratch or Path(passing))
    kept = {
        "title": "Views of the positive",
        "model": Path(args.model).name,
        "layers": args.layers,
        "seeds": args.seeds,
        "trainer": trainer,
        "untrained": untrained,
        "caveat": args.caveat,
        **{k: v for k, v in describe().items() if k not in ("kernels", "backends")},
        "augmentations": found,
    }
    write_json(args.output, kept)
    print(f"\n{augmentations(kept)}")


def train_rows(
    args: argparse.Namespace, trainer: dict[str, Any], scratch: Path
) -> tuple[list[dict[str, Any]], float]:
    """What came out for each row, and the untrained model's score."""
    model = args.model
    if args.layers:
        model = str(scratch / "backbone")
        cut(args.model, args.layers, model)
    found: list[dict[str, Any]] = []
    untrained = 0.0
    for name, views, settings, paper in ROWS:
        summary: Any = recipes.simcse_unsup(
            args.data,
            scratch / f"row-{len(found)}",
            seeds=args.seeds,
            report=False,
            model=model,
            pooler=args.pooler,
            head="none" if args.pooler == "mean" else "train-only",
            views=views,
            evaluate=[f"dev={args.dev}"],
            trainer=trainer | {"eval_on_start": not found},
            **settings,
        )
        score = summary["metrics"]["dev_spearman"]
        if not found:
            untrained = summary["untrained"]["dev_spearman"]["mean"]
        row: dict[str, Any] = {"name": name, "views": views, **settings}
        row |= {"spearman": score, "paper": paper}
        row |= {key: summary["metrics"][key] for key in ("alignment", "uniformity")}
        found.append(row)
        print(f"{name:34} {100 * score['mean']:6.2f} ± {100 * score['std']:.2f}", flush=True)
    return found, untrained


if __name__ == "__main__":
    main()
