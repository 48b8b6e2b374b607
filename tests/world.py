"""A tiny BERT and a tiny world of sentences, in the formats that the recipes read."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

VERBS = {
    "read": ["load", "fetch"],
    "write": ["save", "store"],
    "sort": ["order", "rank"],
    "join": ["merge", "combine"],
    "remove": ["delete", "drop"],
}
NOUNS = {
    "file": ["disk", "path"],
    "matrix": ["rows", "columns"],
    "graph": ["nodes", "edges"],
    "image": ["pixels", "colour"],
    "table": ["records", "fields"],
    "string": ["letters", "text"],
}
ADJECTIVES = ["large", "small", "empty", "nested", "local", "remote", "lazy", "random"]


def sentences() -> list[tuple[tuple[str, str, str], str]]:
    """Every meaning (verb, adjective, noun), and a sentence that says so in one of several ways."""
    draw = random.Random(0)
    found = []
    for verb, noun, adjective in itertools.product(VERBS, NOUNS, ADJECTIVES):
        for _ in range(2):
            words = draw.choice([verb, *VERBS[verb]]), draw.choice([noun, *NOUNS[noun]])
            found.append(((verb, adjective, noun), f"{words[0]} the {adjective} {words[1]} ."))
    draw.shuffle(found)
    return found


def write_tsv(path: Path, names: str, rows: list[tuple[object, ...]]) -> Path:
    lines = ["\t".join(names.split(",")), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_world(folder: Path) -> Path:
    """sentences.txt, triplets.tsv, nli.csv, pairs.tsv, scores.tsv, labels.tsv, dev.tsv, flag.jsonl,
    parallel.tsv."""
    draw = random.Random(1)
    known = sentences()
    texts = [text for _, text in known]
    (folder / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    by_meaning: dict[tuple[str, str, str], list[str]] = {}
    for meaning, text in known:
        by_meaning.setdefault(meaning, []).append(text)
    triplets = []
    for meaning, own in by_meaning.items():
        other = draw.choice([m for m in by_meaning if m != meaning])
        triplets.append((own[0], own[1], by_meaning[other][0]))
    write_tsv(folder / "triplets.tsv", "anchor,positive,negative", triplets)
    rows = ["sent0,sent1,hard_neg", *(",".join(f'"{t}"' for t in row) for row in triplets)]
    (folder / "nli.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8")
    scored = []
    for _ in range(300):
        (a, x), (b, y) = draw.sample(known, 2)
        if draw.random() < 0.5:  # pairs at random rarely mean the same
            b, y = a, draw.choice(by_meaning[a])
        scored.append((sum(m == n for m, n in zip(a, b, strict=True)) * 5 / 3, x, y))
    write_tsv(folder / "dev.tsv", "score,sentence1,sentence2", scored[:150])
    write_tsv(folder / "scores.tsv", "score,sentence1,sentence2", scored[150:])
    classes = ["contradiction", "neutral", "neutral", "entailment"]
    pairs = [(classes[round(score * 3 / 5)], x, y) for score, x, y in scored]
    write_tsv(folder / "pairs.tsv", "label,premise,hypothesis", pairs)
    labelled = [(f"{verb}-{noun}", text) for (verb, _, noun), text in known]
    write_tsv(folder / "labels.tsv", "intent,text", labelled[:280])
    write_tsv(folder / "labels-dev.tsv", "intent,text", labelled[280:])
    with (folder / "flag.jsonl").open("w", encoding="utf-8") as file:
        for anchor, positive, negative in triplets:
            row = {"query": anchor, "pos": [positive], "neg": [negative, triplets[0][2]]}
            file.write(json.dumps(row) + "\n")
    parallel = [(x, " ".join(reversed(x.split()))) for _, x in known[:200]]
    write_tsv(folder / "parallel.tsv", "english,non_english", parallel)
    return folder


def write_bert(folder: Path, *, dropout: float = 0.1, width: int = 32) -> Path:
    """A BERT of two layers and its tokenizer, from nothing, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for _, text in sentences()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        **{f"{name}_token": token for name, token in zip(names, special, strict=True)},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # so small a one would give all texts the same state
    )
    BertModel(config).save_pretrained(folder)
    return folder
