"""Does mining pay? Training with mined negatives against in-batch only, on held-out retrieval.

    python -m contrastive_ops.benchmarks.mining_study --data squad/dev.tsv --output study.json

The table has a `question` and a `sentence` column. The last fifth of the sentences, in the order of
the file, and so whole articles, is held out with its questions; retrieval is among all sentences.
Every arm goes on from the same model, trained in-batch, for the same steps with the same batches:

* in-batch: no further negatives;
* random: as many negatives as the mined arms, drawn from all training sentences;
* mined: the best-scoring sentences that are no positive, with several relative margins.

Per seed the results are kept in the output, and a run that was interrupted goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_ops import info_nce, mine_hard_negatives, topk_similarity
from contrastive_ops.mining.texts import TextPairs, read_texts
from contrastive_ops.training.atomic import write_json

SETTINGS: dict[str, Any] = {
    "dim": 256,
    "vocabulary": 8000,
    "batch_size": 64,
    "first_epochs": 2,
    "epochs": 4,
    "learning_rate": 0.003,
    "temperature": 0.05,
    "num_negatives": 4,
    "held_out": 0.2,
}
ARMS: dict[str, dict[str, Any] | None] = {
    "in-batch": None,
    "random": {"sampling": "random"},
    "mined": {},
    "mined, margin 0.05": {"relative_margin": 0.05},
    "mined, margin 0.2": {"relative_margin": 0.2},
    "mined, margin 0.5": {"relative_margin": 0.5},
}
MEASURES = ("mrr@10", "recall@1", "recall@10")


class WithNegatives(nn.Module):
    """`info_nce` of questions, their sentences, and maybe further sentences, for the trainer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """``labels`` (N, 1 + H): numbers of the sentences, so that equal ones are left out."""
        query, key, *others = (self.model(f)["sentence_embedding"] for f in features)
        negatives, ids = None, None
        if others:
            negatives, ids = torch.stack(others, 1), labels[:, 1:].contiguous()
        own = labels[:, 0].contiguous()
        return info_nce(
            query,
            key,
            negatives,
            temperature=SETTINGS["temperature"],
            query_ids=own,
            key_ids=own,
            negative_ids=ids,
        )


class Study:
    """The data of all arms, split once."""

    def __init__(self, path: str) -> None:
        questions, sentences = read_texts(f"{path}:question,sentence", 2)
        self.corpus = list(dict.fromkeys(sentences))
        place = {text: i for i, text in enumerate(self.corpus)}
        border = round(len(self.corpus) * (1 - SETTINGS["held_out"]))
        pairs = dict.fromkeys(zip(questions, sentences, strict=True))
        train = [(q, s) for q, s in pairs if place[s] < border]
        self.train = TextPairs.of([q for q, _ in train], [s for _, s in train])
        self.queries, self.answers = zip(
            *((q, place[s]) for q, s in pairs if place[s] >= border), strict=True
        )

    def score(self, model: Any) -> dict[str, float]:
        """Held-out questions against all sentences."""
        found = topk_similarity(
            model.encode(list(self.queries), convert_to_tensor=True),
            model.encode(self.corpus, convert_to_tensor=True),
            10,
        )
        hit = found.indices == torch.tensor(self.answers)[:, None]
        rank = hit.double() / torch.arange(1, 11)
        return {
            "mrr@10": rank.sum(1).mean().item(),
            "recall@1": hit[:, 0].double().mean().item(),
            "recall@10": hit.any(1).double().mean().item(),
        }

    def mined(self, model: Any, rules: dict[str, Any], seed: int) -> tuple[Tensor, dict[str, Any]]:
        """(N, H) numbers of negatives, -1 pads, and what is known of them."""
        pairs = self.train
        found = mine_hard_negatives(
            model.encode_query(pairs.queries, convert_to_tensor=True),
            model.encode_document(pairs.corpus, convert_to_tensor=True),
            torch.tensor(pairs.padded_positives()),
            num_negatives=SETTINGS["num_negatives"],
            seed=seed,
            progress=False,
            **rules,
        )
        there = found.indices >= 0
        behind = (found.positive_scores[:, None] - found.scores)[there]
        facts = {
            "dropped": sum(found.statistics.dropped.values()),
            "missing": found.statistics.missing,
            "mean_distance_to_positive": behind.mean().item(),
            "share_above_positive": (behind < 0).double().mean().item(),
        }
        return found.indices, facts


def run_seed(study: Study, seed: int, arms: Iterable[str]) -> dict[str, Any]:
    """All arms of one seed."""
    from contrastive_ops.training.encoder import TokenCache, build_encoder, train_tokenizer

    pairs = study.train
    texts = pairs.queries + pairs.corpus
    cache = TokenCache(train_tokenizer(texts, vocabulary=SETTINGS["vocabulary"]))
    model = build_encoder(cache, pairs.corpus, dim=SETTINGS["dim"], seed=seed)
    model[0].preprocess = cache
    model.model_card_data.widget = [{"text": pairs.queries[0]}]  # else the trainer seeks examples
    results: dict[str, Any] = {"untrained": study.score(model)}
    train(study, model, None, SETTINGS["first_epochs"], seed)
    results["start"] = study.score(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in arms:
        rules, negatives = ARMS[name], None
        facts: dict[str, Any] = {}
        model.load_state_dict(start)
        if rules is not None:
            negatives, facts = study.mined(model, rules, seed)
        train(study, model, negatives, SETTINGS["epochs"], seed + 1000)
        results[name] = study.score(model) | facts
        print(f"  seed {seed}, {name:<20}" + _line(results[name]), flush=True)
    return results


def train(study: Study, model: Any, negatives: Tensor | None, epochs: int, seed: int) -> None:
    """Pairs, with negatives if given; the same batches for a seed."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from transformers import PrinterCallback

    pairs = study.train
    rows: dict[str, list[Any]] = {"anchor": [], "positive": [], "label": []}
    width = 0 if negatives is None else negatives.shape[1]
    rows |= {f"negative_{h}": [] for h in range(width)}
    generator = torch.Generator().manual_seed(seed)
    for i, (query, positives) in enumerate(zip(pairs.queries, pairs.positives, strict=True)):
        own = [] if negatives is None else negatives[i].tolist()
        # Where too few passed, a random sentence takes the place.
        drawn = torch.randint(len(pairs.corpus), (width,), generator=generator).tolist()
        own = [j if j >= 0 else other for j, other in zip(own, drawn, strict=True)]
        for p in positives:
            rows["anchor"].append(query)
            rows["positive"].append(pairs.corpus[p])
            rows["label"].append([p, *own])
            for h, j in enumerate(own):
                rows[f"negative_{h}"].append(pairs.corpus[j])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=SETTINGS["batch_size"],
            learning_rate=SETTINGS["learning_rate"],
            warmup_steps=0.1,
            weight_decay=0.0,
            max_grad_norm=0.0,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=None if sys.stderr.isatty() else True,
        )
        order = [*(name for name in rows if name != "label"), "label"]
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({name: rows[name] for name in order}),
            loss=WithNegatives(model),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


def _line(row: dict[str, Any]) -> str:
    line = "".join(f"  {name} {row[name]:.4f}" for name in MEASURES)
    if "share_above_positive" in row:
        line += f"  {row['share_above_positive']:.1%} above the positive"
    return line


def table(seeds: dict[str, dict[str, Any]]) -> str:
    """Means and standard deviations over seeds; differences to in-batch are paired."""
    lines = [
        f"{'arm':<22}" + "".join(f"{name:>18}" for name in MEASURES) + f"{'against in-batch':>22}"
    ]
    for name in ("untrained", "start", *ARMS):
        runs = [seeds[s][name] for s in sorted(seeds) if name in seeds[s]]
        if not runs:
            continue
        cells = [_cell([run[measure] for run in runs]) for measure in MEASURES]
        gains = [
            seeds[s][name]["mrr@10"] - seeds[s]["in-batch"]["mrr@10"]
            for s in sorted(seeds)
            if name in ARMS
        ]
        gain = _cell(gains, "+") if gains else ""
        lines.append(f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells) + f"{gain:>22}")
    return "\n".join(lines)


def _cell(values: list[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.4f} ± {spread:.4f}"


def main(argv: list[str] | None = None) -> int:
    """Entry of the command above."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", required=True, metavar="TSV", help="questions and sentences")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--quick", action="store_true", help="an epoch each, two arms, one seed")
    args = parser.parse_args(argv)
    if not Path(args.data).is_file():
        print(f"mining-study: {args.data} is not there; skipped", file=sys.stderr)
        return 0
    if args.quick:
        SETTINGS.update(first_epochs=1, epochs=1)
    arms = ["in-batch", "mined"] if args.quick else list(ARMS)
    from .machine import describe

    done: dict[str, Any] = {"settings": dict(SETTINGS), "arms": arms, "seeds": {}}
    if args.output.exists():
        found = json.loads(args.output.read_text())
        if found.get("settings") != SETTINGS or found.get("arms") != arms:
            raise ValueError(f"--output: {args.output} holds a study with other settings")
        done = found
    study = Study(args.data)
    sizes = {
        "training_queries": len(study.train.queries),
        "held_out_queries": len(study.queries),
        "sentences": len(study.corpus),
    }
    print(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in sizes.items()))
    for seed in range(1 if args.quick else args.seeds):
        if str(seed) not in done["seeds"]:
            done["seeds"][str(seed)] = run_seed(study, seed, arms)
            write_json(args.output, {**describe(), **sizes, **done})
            done = json.loads(args.output.read_text())
    print(table(done["seeds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
