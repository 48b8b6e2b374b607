"""The tokenizer, the cache of its results, and the untrained encoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contrastive_ops.training.encoder import (
    MAX_TOKENS,
    TokenCache,
    build_encoder,
    embed,
    inverse_document_frequency,
    train_tokenizer,
    words,
)


@pytest.fixture(scope="module")
def texts(corpus):
    return corpus.view("document") + corpus.view("summary")


@pytest.fixture(scope="module")
def cache(texts):
    return TokenCache(train_tokenizer(texts, vocabulary=400))


def test_identifiers_fall_into_words(texts):
    tokenizer = train_tokenizer(["read csv file http response x2 resume"] * 3, vocabulary=100)
    tokens = tokenizer.encode("readCSVFile(x2)->read_csv; HTTPResponse Résumé").tokens
    expected = ["read", "csv", "file", "x2", "read", "csv", "http", "response", "resume"]
    assert tokens == expected
    assert words("readCSVFile(x2)->read_csv; HTTPResponse") == expected[:-1]


def test_words_are_what_the_tokenizer_sees(cache, texts):
    for text in texts[:200]:
        seen = cache.tokenizer.pre_tokenizer.pre_tokenize_str(
            cache.tokenizer.normalizer.normalize_str(text)
        )
        assert words(text) == [word for word, _ in seen]


def test_cache_gives_what_the_module_gives(cache, texts):
    model = build_encoder(cache, texts, dim=8, seed=0)
    batch = ["", texts[0], "読", texts[3], texts[0], "word " * (2 * MAX_TOKENS)]
    for _ in range(2):
        cached, own = cache(batch), model[0].preprocess(batch)
        for key in ("input_ids", "offsets"):
            assert cached[key].dtype == own[key].dtype
            assert torch.equal(cached[key], own[key])
    assert len(cache.tokens(batch[-1:])[0]) == MAX_TOKENS


def test_inverse_document_frequency(cache):
    documents = ["read the file", "read read the table", "graph"]
    idf = inverse_document_frequency(cache, documents)
    sets = [set(cache.tokenizer.encode(document).ids) for document in documents]
    for token in range(cache.tokenizer.get_vocab_size()):
        count = sum(token in tokens for tokens in sets)
        assert idf[token].item() == pytest.approx(math.log(4 / (1 + count)), abs=1e-6)


def test_untrained_vectors_are_as_long_as_their_token_is_rare(cache, texts):
    idf = inverse_document_frequency(cache, texts)
    model, again, other = (build_encoder(cache, texts, dim=256, seed=s) for s in (0, 0, 1))
    weights = model[0].embedding.weight.detach()
    # The norm of 256 normal numbers is within a fifth of 16, but for one in a thousand.
    assert np.median((weights.norm(dim=1) / idf).numpy()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(weights, again[0].embedding.weight)
    assert not torch.equal(weights, other[0].embedding.weight)


def test_embed_is_encode(cache, texts):
    model = build_encoder(cache, texts, dim=16, seed=0)
    expected = model.encode(texts[:50], convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(embed(model, cache, texts[:50]), expected)


def test_the_same_texts_give_the_same_tokenizer(texts):
    again = train_tokenizer(texts, vocabulary=200)
    assert again.get_vocab_size() == 200
    assert again.to_str() == train_tokenizer(texts, vocabulary=200).to_str()
    assert again.encode("a9 q").tokens == ["a", "##9", "q"]
