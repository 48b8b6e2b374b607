"""The encoder of the demo: the mean of trained token vectors, and its tokenizer.

A deep averaging network without its layers (Iyyer et al., "Deep Unordered Composition Rivals
Syntactic Methods for Text Classification", 2015): a text is the mean of its tokens' vectors. It
embeds thousands of texts a second on a CPU, so that the loss is what training spends its time on.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

MAX_TOKENS = 512
_UNKNOWN = "[UNK]"
_LETTERS = string.ascii_lowercase + string.digits
_WORD = r"[a-z0-9]+"
# readCSVFile -> read CSV File
_CAMEL_CASE = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Train a WordPiece tokenizer for English and code.

    Identifiers fall into their words (`readCSV_file` gives read, csv, file), letters are
    lower-cased, and everything but letters and digits separates words and is dropped. The same
    texts give the same tokenizer.

    Args:
        texts: what to learn from.
        vocabulary: number of pieces, at most, and at least the 73 that every tokenizer has.
    """
    learner = _tokenizer({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        # Given in this order: otherwise single letters, and with them all ties, are numbered at
        # random, and no two runs have the same pieces.
        special_tokens=[_UNKNOWN, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)],
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    # A new one in which the letters are pieces like all others.
    return _tokenizer(learner.get_vocab())


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_CAMEL_CASE), " "),
            normalizers.NFKD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


class TokenCache:
    """Tokenizes every text once: training and evaluation meet the same ones again and again.

    A call gives what StaticEmbedding's own `preprocess` gives, and takes its place in training.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._tokens: dict[str, np.ndarray] = {}

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32."""
        new = list(dict.fromkeys(text for text in texts if text not in self._tokens))
        encodings = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        for text, encoding in zip(new, encodings, strict=True):
            self._tokens[text] = np.array(encoding.ids, dtype=np.int32)
        return [self._tokens[text] for text in texts]

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, torch.Tensor]:
        tokens = self.tokens(texts)
        ends = np.cumsum([0, *(len(ids) for ids in tokens)])
        return {
            "input_ids": torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
            "offsets": torch.from_numpy(ends[:-1]),
        }


def inverse_document_frequency(cache: TokenCache, texts: Sequence[str]) -> torch.Tensor:
    """`log((n + 1) / (1 + documents with the token))` for each token, float32 (V,)."""
    size = cache.tokenizer.get_vocab_size()
    documents = np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), 4096):
        for ids in cache.tokens(texts[start : start + 4096]):
            documents[np.unique(ids)] += 1
    return torch.from_numpy(np.log((len(texts) + 1) / (1 + documents))).float()


def build_encoder(
    cache: TokenCache, texts: Sequence[str], *, dim: int, seed: int
) -> SentenceTransformer:
    """An untrained encoder: random token vectors, as long as the token is rare.

    Before any training the mean of such vectors is a random projection of TF-IDF, which already
    finds documents that share rare words with the query.

    Args:
        cache: of the tokenizer.
        texts: documents that say how rare each token is.
        dim: width of the embeddings.
        seed: of the random vectors.
    """
    idf = inverse_document_frequency(cache, texts)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(idf), dim, generator=generator) * (idf / math.sqrt(dim))[:, None]
    card = SentenceTransformerModelCardData(language="en")
    return SentenceTransformer(
        modules=[StaticEmbedding(cache.tokenizer, embedding_weights=weights)],
        device="cpu",
        model_card_data=card,
    )


def embed(model: SentenceTransformer, cache: TokenCache, texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of texts, float32 (N, D), not normalised; tokens come from the cache."""
    with torch.inference_mode():
        parts = [
            model(cache(texts[start : start + 4096]))["sentence_embedding"]
            for start in range(0, len(texts), 4096)
        ]
    return torch.cat(parts)


def words(text: str) -> list[str]:
    """The words of a text as the tokenizer sees them, before it cuts them into pieces."""
    return re.findall(_WORD, re.sub(_CAMEL_CASE, " ", text).lower())
