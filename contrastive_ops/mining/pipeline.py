"""From texts to hard negatives, and anew while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .encoding import embed, model_identity, rescored
from .hard_negatives import HardNegatives, Rules, mine_hard_negatives
from .texts import TextPairs
from .topk import topk_similarity


def mine_texts(
    pairs: TextPairs,
    rules: Rules,
    model: Any,
    *,
    cross_encoder: Any = None,
    batch_size: int = 64,
    cache: Path | None = None,
    backend: str | None = None,
    output: Path | None = None,
) -> HardNegatives:
    """Hard negatives of texts, by a sentence-transformers model.

    Args:
        pairs: what to mine.
        rules: see :func:`mine_hard_negatives`. A text is no negative of a query that equals it.
        model: a ``SentenceTransformer``, or its name or folder.
        cross_encoder: a ``CrossEncoder``, or its name or folder, whose scores the filters and the
            choice then use; ``range_max`` is ten times ``num_negatives`` beyond ``range_min``
            unless given.
        batch_size: texts at a time.
        cache: folder for embeddings, of a model given by its name or folder.
        backend: see :func:`contrastive_ops.backends`.
        output: see :func:`mine_hard_negatives`; without a cross-encoder alone.
    """
    name = ""
    if isinstance(model, str | Path):
        from sentence_transformers import SentenceTransformer

        name, model = model_identity(str(model)), SentenceTransformer(str(model))
    elif cache is not None:
        raise ValueError("cache: expected a model's name or folder with it, got a model")
    made: dict[str, Any] = {"batch_size": batch_size, "cache": cache, "model_name": name}
    queries = embed(model, pairs.queries, "query", **made)
    corpus = embed(model, pairs.corpus, "document", **made)
    positives = torch.tensor(pairs.padded_positives())
    own = torch.tensor(pairs.own)
    if cross_encoder is None:
        options: dict[str, Any] = vars(rules)
        return mine_hard_negatives(
            queries, corpus, positives, exclude=own, backend=backend, output=output, **options
        )
    if isinstance(cross_encoder, str | Path):
        from sentence_transformers import CrossEncoder

        cross_encoder = CrossEncoder(str(cross_encoder))
    depth = rules.range_max or rules.range_min + 10 * rules.num_negatives
    window = topk_similarity(
        queries,
        corpus,
        min(depth, len(corpus)),
        normalize=rules.normalize,
        exclude=torch.cat([positives, own[:, None]], 1),
        backend=backend,
    )
    indices = window.indices[:, rules.range_min :]
    return rescored(cross_encoder, pairs, indices, rules, batch_size=batch_size)


class RemineCallback(TrainerCallback):
    """Mines anew every so many steps of a sentence-transformers trainer, with the model as it is.

    Give it to the trainer's ``callbacks``. What it mines goes to ``use``, before the step that
    follows; for instance into a dataset whose ``set_transform`` looks negatives up.

    Args:
        pairs, rules: what to mine, see :func:`mine_texts`.
        every: steps between two minings.
        use: called with the pairs, the negatives and the step.
        at_start: also mine before the first step.
        batch_size, backend: see :func:`mine_texts`.
    """

    def __init__(
        self,
        pairs: TextPairs,
        rules: Rules,
        every: int,
        use: Callable[[TextPairs, HardNegatives, int], None],
        *,
        at_start: bool = True,
        batch_size: int = 64,
        backend: str | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}, expected an integer >= 1")
        self.pairs, self.rules, self.every, self.use = pairs, rules, every, use
        self.at_start = at_start
        self.options: dict[str, Any] = {"batch_size": batch_size, "backend": backend}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mines with the untrained model."""
        if self.at_start:
            self._mine(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mines when it is time, unless no step follows."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self._mine(kwargs["model"], state.global_step)

    def _mine(self, model: Any, step: int) -> None:
        training = model.training
        model.eval()
        try:
            mined = mine_texts(self.pairs, self.rules, model, **self.options)
        finally:
            model.train(training)
        self.use(self.pairs, mined, step)
