"""Token dropout, and the loss that the trainer calls."""

from __future__ import annotations

import time

import pytest
import torch
from torch.nn.functional import normalize

from contrastive_ops.training import pair_loss
from contrastive_ops.training.encoder import TokenCache, build_encoder, train_tokenizer
from contrastive_ops.training.pair_loss import PairLoss, drop_tokens


def bags(features):
    ends = [*features["offsets"][1:].tolist(), len(features["input_ids"])]
    return [
        features["input_ids"][start:end].tolist()
        for start, end in zip(features["offsets"].tolist(), ends, strict=True)
    ]


def make_bags(lengths):
    lengths = torch.tensor(lengths)
    return {
        "input_ids": torch.arange(int(lengths.sum())),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]]),
    }


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(item in rest for item in part)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("lengths", [[3, 0, 1, 7, 0], [0, 0, 2], [1], [0], [1, 1, 1, 1]])
def test_every_text_keeps_some_of_its_tokens_in_order(lengths, rate):
    torch.manual_seed(0)
    features = make_bags(lengths)
    for _ in range(30):
        dropped = bags(drop_tokens(features, rate))
        for kept, all_of_them in zip(dropped, bags(features), strict=True):
            assert is_subsequence(kept, all_of_them)
            assert bool(kept) == bool(all_of_them)


def test_share_of_tokens_left_out():
    torch.manual_seed(0)
    features = make_bags([100] * 1000)
    kept = len(drop_tokens(features, 0.3)["input_ids"]) / 100_000
    assert kept == pytest.approx(0.7, abs=0.005)  # over three standard deviations
    assert drop_tokens(features, 0.0) is features


@pytest.fixture
def model(corpus):
    texts = corpus.view("document") + corpus.view("summary")
    return build_encoder(TokenCache(train_tokenizer(texts, vocabulary=300)), texts, dim=16, seed=0)


def naive(query, key, ids, temperature):
    """Both directions as plain loops over rows."""
    scores = (normalize(query.double()) @ normalize(key.double()).T) / temperature
    total = 0.0
    for matrix in (scores, scores.T):
        for i in range(len(ids)):
            kept = [j for j in range(len(ids)) if j == i or ids[i] != ids[j]]
            total += torch.logsumexp(matrix[i, kept], dim=0) - matrix[i, i]
    return total / (2 * len(ids))


def test_loss_is_symmetric_info_nce_without_duplicates(model, corpus):
    sides = [model.preprocess(corpus.view(view, range(12))) for view in ("summary", "document")]
    ids = torch.tensor([0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0])
    query, key = (model[0].embedding(s["input_ids"], s["offsets"]).detach() for s in sides)
    loss = PairLoss(model, temperature=0.1, token_dropout=0.5).eval()
    expected = naive(query, key, ids, 0.1)
    assert loss(sides, ids).item() == pytest.approx(expected.item(), rel=1e-5)
    assert naive(query, key, torch.arange(12), 0.1).item() != pytest.approx(
        expected.item(), rel=1e-3
    )


def test_tokens_are_dropped_in_training_only(model, corpus):
    sides = [model.preprocess(corpus.view(v, range(12))) for v in ("summary", "document")]
    loss = PairLoss(model, temperature=0.1, token_dropout=0.5)
    torch.manual_seed(0)
    first, second = loss(sides).item(), loss(sides).item()
    assert first != second
    torch.manual_seed(0)
    assert loss(sides).item() == first
    loss.eval()
    assert loss(sides).item() == loss(sides).item()


def test_queries_stay_whole(model, corpus):
    (side,) = [model.preprocess(corpus.view("summary", range(12)))]
    loss = PairLoss(model, temperature=0.1, token_dropout=0.5)
    seen = []
    model[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]["input_ids"])))
    loss([side, dict(side)])
    assert seen[0] == len(side["input_ids"]) > seen[1]


def test_stopwatch_counts_both_passes_of_the_loss_alone(model, corpus, monkeypatch):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key):
            time.sleep(0.2)
            return (query * key).sum()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.3)
            return torch.zeros(12, 16), torch.zeros(12, 16)

    monkeypatch.setattr(pair_loss.functional, "info_nce", lambda q, k, **_: Slow.apply(q, k))
    sides = [model.preprocess(corpus.view(v, range(12))) for v in ("summary", "document")]
    model[0].register_forward_hook(lambda *_: time.sleep(0.4))
    loss = PairLoss(model, temperature=0.1, token_dropout=0.0)
    model[0].embedding.weight.register_hook(lambda _: time.sleep(0.4))
    loss(sides).backward()
    assert 0.5 <= loss.watch.seconds < 0.7
