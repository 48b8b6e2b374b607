"""Training pairs and the labels that keep duplicates from being negatives."""

from __future__ import annotations

import dataclasses

from contrastive_ops.training.corpus import Corpus
from contrastive_ops.training.pairs import PAIR_KINDS, build_pairs


def test_pairs_are_views_of_one_training_function(corpus):
    pairs = build_pairs(corpus)
    train = [corpus.functions[row] for row in corpus.rows("train")]
    assert {tuple(name.split("-")[:2]) for name in pairs} == set(PAIR_KINDS)
    assert len(pairs) == len(PAIR_KINDS)
    rows = pairs["summary-code"]
    assert list(zip(rows["anchor"], rows["positive"], strict=True)) == [
        (f.summary, f.code) for f in train
    ]
    assert len(set(rows["label"])) == len(train)


def test_held_out_functions_take_no_part(corpus):
    seen = {text for rows in build_pairs(corpus).values() for text in rows["anchor"]}
    seen |= {text for rows in build_pairs(corpus).values() for text in rows["positive"]}
    for split in ("dev", "test"):
        for row in corpus.rows(split):
            function = corpus.functions[row]
            assert not seen & {function.summary, function.name, function.rest, function.code}


def test_pairs_that_share_a_text_share_a_label(functions):
    a, b, c, d = functions[:4]
    b = dataclasses.replace(b, summary=a.summary.upper())
    c = dataclasses.replace(c, code=b.code)
    corpus = Corpus([a, b, c, d], ["train"] * 4)
    labels = build_pairs(corpus, [("summary", "code")])["summary-code"]["label"]
    assert labels[0] == labels[1] == labels[2] != labels[3]
    labels = build_pairs(corpus, [("name", "rest")])["name-rest"]["label"]
    assert len(set(labels)) == 4


def test_short_positives_are_left_out(functions):
    short = dataclasses.replace(functions[0], rest="just three words")
    corpus = Corpus([short, functions[1]], ["train"] * 2)
    assert build_pairs(corpus, [("summary", "rest")])["summary-rest"]["positive"] == [
        functions[1].rest
    ]


def test_a_kind_given_twice_is_seen_twice(corpus):
    kinds = [("name", "summary"), ("summary", "code"), ("name", "summary"), ("name", "summary")]
    pairs = build_pairs(corpus, kinds)
    assert list(pairs) == ["name-summary", "summary-code", "name-summary-2", "name-summary-3"]
    assert pairs["name-summary-3"].to_dict() == pairs["name-summary"].to_dict()
