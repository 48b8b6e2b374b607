"""A small encoder with prompts, and texts that share words."""

from __future__ import annotations

import random

WORDS = [a + b for a in "bdfgklmnprst" for b in ("ab", "ek", "il", "on", "ut")]


def make_texts(count: int, seed: int, words: int = 5) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def make_encoder():
    """Mean of random word vectors: an embedding does not depend on the batch."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "find", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = torch.randn(len(vocabulary), 16, generator=torch.Generator().manual_seed(0))
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu", prompts={"query": "find "})
