"""The loss as sentence-transformers' trainer wants it: from tokenized pairs to a scalar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from .. import functional
from .stopwatch import Stopwatch, after_loss, before_loss

Features = dict[str, Tensor]


def drop_tokens(features: Features, rate: float) -> Features:
    """Leave out tokens of every text at random, never all of them.

    The texts of a pair share many words. Without some of them the encoder has to learn what the
    other words go with.

    Args:
        features: `input_ids` (T,), the texts one after another, and `offsets` (N,), where each
            begins, as StaticEmbedding's tokenizer gives them.
        rate: probability for a token to be left out, 0 <= rate < 1. Draws from torch's global
            generator.
    """
    if rate == 0.0:
        return features
    ids, offsets = features["input_ids"], features["offsets"]
    keep = torch.rand(len(ids)) >= rate
    first = offsets[offsets.diff(append=torch.tensor([len(ids)])) > 0]
    kept_before = torch.cat([torch.zeros(1, dtype=torch.long), keep.cumsum(0)])
    ends = torch.cat([first[1:], torch.tensor([len(ids)])])
    keep[first[kept_before[ends] == kept_before[first]]] = True
    kept_before[1:] = keep.cumsum(0)
    return {**features, "input_ids": ids[keep], "offsets": kept_before[offsets]}


class PairLoss(nn.Module):
    """Symmetric InfoNCE of queries and keys, duplicates left out by id.

    Args:
        model: encoder; the trainer swaps it through this attribute.
        temperature: divides the cosine similarities.
        token_dropout: share of the keys' tokens to leave out in training mode, see `drop_tokens`.
            Queries stay whole: of a name's three or four tokens none is to spare.
        backend: of `contrastive_ops.info_nce` (default: chosen automatically).
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float,
        token_dropout: float,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.token_dropout = token_dropout
        self.backend = backend
        self.watch = Stopwatch()

    def forward(self, features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """Loss of one batch.

        Args:
            features: the tokenized queries and keys.
            labels: int64 (N,), equal where two pairs share a text: their keys answer each other's
                query, so neither is a negative for the other.
        """
        query_features, key_features = features
        if self.training:
            key_features = drop_tokens(key_features, self.token_dropout)
        query = self.model(query_features)["sentence_embedding"]
        key = self.model(key_features)["sentence_embedding"]
        query, key = before_loss(self.watch, query, key)
        loss = functional.info_nce(
            query,
            key,
            temperature=self.temperature,
            symmetric=True,
            query_ids=labels,
            key_ids=labels,
            backend=self.backend,
        )
        return after_loss(self.watch, loss)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says about this loss."""
        return {"temperature": self.temperature, "token_dropout": self.token_dropout}
