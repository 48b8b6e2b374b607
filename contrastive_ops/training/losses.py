"""The objectives as sentence-transformers' trainer wants them: from tokenized batches to a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from .. import distributed, functional
from ..distributed.collectives import gather, spread_of
from ..losses import Temperature
from ..objectives.heads import PairSoftmaxLoss
from ..objectives.queues import EmbeddingQueue, momentum_encoder
from ..objectives.statistics import Statistics
from .auxiliary import MaskedLanguageModel
from .collator import groups
from .poolers import has_dropout, mlp_head
from .settings import Settings
from .stopwatch import Stopwatch, after_loss, before_loss
from .views import Features, Views, edges


class RecipeLoss(nn.Module):
    """What every objective shares: views, encoding, the head, the clock, what is logged.

    Subclasses define ``objective``. What belongs to the loss and is trained or remembered (head,
    temperature, classifier, queue, moving average) is in its ``state_dict``, which a checkpoint
    keeps beside the model.

    Args:
        model: encoder; the trainer swaps it through this attribute.
        settings: see :class:`Settings`.
        frozen: a guide or teacher, or None; never trained, not part of the state.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: Settings,
        frozen: SentenceTransformer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.frozen = [frozen]  # in a list: no part of this module
        limit = model.max_seq_length or math.inf
        places = edges(model)
        self.views = Views(settings.views, places, limit)
        self.anchor_views = Views(settings.anchor_views, places, limit)
        names = [view.partition(":")[0] for view in (*settings.views, *settings.anchor_views)]
        if "dropout" in names and not has_dropout(model):
            raise ValueError("views: got dropout for a model without any; set dropout=0.1")
        if hasattr(model[0], "unpad_inputs") and (self.changes_tokens or settings.mlm_weight):
            model[0].unpad_inputs = False  # they look at a mask
        width = model.get_embedding_dimension()
        assert isinstance(width, int)
        self.width = width
        self.head: nn.Module | None = None
        if settings.head == "train-only":
            self.head = mlp_head(width)
        self.mlm: MaskedLanguageModel | None = None
        if settings.mlm_weight:
            self.mlm = MaskedLanguageModel(model, settings.model, settings.mlm_probability)
        self.watch = Stopwatch()
        self.statistics: dict[str, float] = {}
        self.wants_statistics = False

    @property
    def changes_tokens(self) -> bool:
        """Whether any view changes tokens."""
        return bool(self.views.changes or self.anchor_views.changes)

    def encode(self, features: Features, views: Views | None = None) -> Tensor:
        """(N, D) embeddings of a batch, through its views and the head in training."""
        features = dict(features)  # the modules write into it
        if views is None or not self.training:
            found = self.model(features)["sentence_embedding"]
        else:
            with views.cutting(self.model):
                found = self.model(views(features))["sentence_embedding"]
        if self.head is not None and self.training:
            found = self.head({"sentence_embedding": found})["sentence_embedding"]
        assert isinstance(found, Tensor)
        return found

    @torch.no_grad()
    def look(self, features: Features) -> Tensor:
        """(N, E) embeddings of a frozen model."""
        model = self.frozen[0]
        assert model is not None
        model.to(features["input_ids"].device).eval()
        found: Tensor = model(dict(features))["sentence_embedding"]
        return found.clone()  # not an inference tensor's view

    def forward(self, features: Sequence[Features], labels: Tensor | None = None) -> Tensor:
        """Loss of one batch: its columns in the order of the data, then those for the frozen."""
        features = list(features)
        embeddings, rest = self.embeddings(features)
        embeddings = before_loss(self.watch, *embeddings)
        loss = after_loss(self.watch, self.objective(embeddings, rest, labels))
        if self.mlm is not None and self.training:
            loss = loss + self.settings.mlm_weight * self.mlm(self.model, features[0])
        return loss

    def embeddings(self, features: list[Features]) -> tuple[list[Tensor], list[Tensor]]:
        """Trained embeddings of all columns and a frozen model's."""
        own = len(features) // 2 if self.frozen[0] is not None else len(features)
        views = [self.anchor_views] + [self.views] * (own - 1)
        found = [self.encode(f, v) for f, v in zip(features[:own], views, strict=True)]
        return found, [self.look(f) for f in features[own:]]

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of embeddings."""
        raise NotImplementedError

    def after_backward(self) -> None:
        """Called when the gradients of a batch are there."""

    def after_step(self) -> None:
        """Called when the optimizer has stepped."""

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters that are not the model's."""
        shared = {id(p) for p in self.model.parameters()}
        return [p for p in self.parameters() if id(p) not in shared and p.requires_grad]

    def own_state(self) -> dict[str, Tensor]:
        """The state without the model's."""
        shared = {x.data_ptr() for x in self.model.state_dict().values()}
        return {k: x for k, x in self.state_dict().items() if x.data_ptr() not in shared}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Takes up an :meth:`own_state`."""
        self.load_state_dict(state, strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says about this loss."""
        plain = Settings(recipe="").to_dict()
        return {
            name: value
            for name, value in self.settings.to_dict().items()
            if value != plain[name] and name not in ("recipe", "trainer", "data", "evaluate")
        }


class InfoNCE(RecipeLoss):
    """InfoNCE of queries, keys and hard negatives, with equal texts left out by their ids.

    A single column is encoded twice: its two views are the pair. With a queue, keys of past
    batches, encoded by a moving average of the model, are negatives too (ESimCSE).
    """

    queue_ids: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        settings: Settings,
        frozen: SentenceTransformer | None = None,
    ) -> None:
        super().__init__(model, settings, frozen)
        self.temperature = Temperature(settings.temperature, settings.learnable_temperature)
        dims = settings.matryoshka_dims
        if dims and max(dims) > self.width:
            raise ValueError(f"matryoshka_dims: got {dims}, expected at most {self.width}")
        self.queue: EmbeddingQueue | None = None
        if settings.queue:
            alone = not (settings.symmetric or settings.guide or settings.gather_across_devices)
            if not alone or settings.hard_negative_weight != 1:
                raise ValueError(
                    "queue: expected no symmetric, guide, hard_negative_weight or "
                    "gather_across_devices beside it"
                )
            self.queue = EmbeddingQueue(settings.queue, self.width)
            self.register_buffer("queue_ids", torch.zeros(settings.queue, dtype=torch.int64))
            slow: Any = momentum_encoder(deepcopy(model).eval(), settings.momentum)
            self.slow = slow
        self.enqueued: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> InfoNCE:
        """The moving average stays without dropout."""
        super().train(mode)
        if self.queue is not None:
            self.slow.eval()
        return self

    def embeddings(self, features: list[Features]) -> tuple[list[Tensor], list[Tensor]]:
        guided = self.frozen[0] is not None
        if len(features) == (2 if guided else 1):  # one text, two views
            pair = [self.encode(features[0], v) for v in (self.anchor_views, self.views)]
            return pair, [self.look(features[1])] * 2 if guided else []
        return super().embeddings(features)

    def forward(self, features: Sequence[Features], labels: Tensor | None = None) -> Tensor:
        loss = super().forward(features, labels)
        if self.queue is not None and self.training:
            assert labels is not None
            column = 1 if len(features) > 1 else 0
            with torch.no_grad():
                keys = self.slow.module(dict(features[column]))["sentence_embedding"]
                if self.head is not None:
                    keys = self.head({"sentence_embedding": keys})["sentence_embedding"]
            self.enqueued = keys.clone(), labels[:, 1 + column]
        return loss

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        query, key, *hard = x
        options: dict[str, Any] = {"temperature": self.temperature()}
        settings = self.settings
        negatives = torch.stack(hard, 1) if hard else None
        if labels is not None:  # (N, 1 + columns): the pair's group, then each text's own id
            every = labels
            if settings.gather_across_devices:
                labels, every = of_all_ranks(labels)
            options |= {"query_ids": labels[:, 0], "key_ids": labels[:, 0]}
            if hard:
                options["negative_ids"] = self.groups_of(labels[:, 3:], every)
        if settings.hard_negative_weight != 1 and hard:
            options["own_negative_log_weight"] = math.log(settings.hard_negative_weight)
        if settings.false_negative_margin is not None:
            options["false_negative_margin"] = settings.false_negative_margin
        if frozen:
            guide = [frozen[0], frozen[1]]
            if hard:
                guide.append(torch.stack(frozen[2:], 1))
            options |= {"guide": guide, "guide_margin": settings.guide_margin}
        if self.queue is not None and len(self.queue) and self.training:
            negatives, options = self._with_queue(negatives, options, labels)
        info_nce = distributed.info_nce if settings.gather_across_devices else functional.info_nce
        return info_nce(
            query,
            key,
            negatives,
            symmetric=settings.symmetric,
            matryoshka_dims=settings.matryoshka_dims or None,
            backend=settings.backend,
            statistics=self._look if self.wants_statistics else None,
            **options,
        )

    def _with_queue(
        self, negatives: Tensor | None, options: dict[str, Any], labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        assert self.queue is not None
        assert labels is not None
        rows = self.queue.rows
        ids = self.groups_of(self.queue_ids[: len(rows)], labels)
        if negatives is not None:
            rows = torch.cat([negatives.flatten(0, 1), rows.to(negatives)])
            ids = torch.cat([options["negative_ids"].flatten(), ids])
        return rows, options | {"negative_ids": ids}

    def groups_of(self, ids: Tensor, labels: Tensor) -> Tensor:
        """For texts' own ids the group of the batch's pairs that have the text, or -1."""
        known = labels[:, 1:3].flatten() if labels.shape[1] > 2 else labels[:, 1]
        group = labels[:, :1].expand(-1, known.numel() // len(labels)).flatten()
        order = known.argsort()
        known, group = known[order], group[order]
        place = torch.searchsorted(known, ids.contiguous()).clamp(max=len(known) - 1)
        return torch.where(known[place] == ids, group[place], -1)

    def _look(self, found: Statistics) -> None:
        self.statistics = {
            "accuracy": found.accuracy.item(),
            "positive_rank": found.rank.double().mean().item(),
        }

    def after_backward(self) -> None:
        if self.queue is None or self.enqueued is None:
            return
        keys, ids = self.enqueued
        start = int(self.queue.state[0])
        size = len(self.queue_ids)
        keys, ids = keys[-size:], ids[-size:]
        place = (start + torch.arange(len(ids), device=ids.device)) % size
        self.queue_ids[place] = ids
        self.queue.enqueue(keys)
        self.enqueued = None

    def after_step(self) -> None:
        if self.queue is not None:
            self.slow.update_parameters(getattr(self.model, "module", self.model))


def of_all_ranks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's rows of :func:`.collator.text_ids` and those of all ranks, in whose groups are
    rows of all."""
    spread = spread_of(len(labels), labels.device)
    if len(spread.counts) == 1:
        return labels, labels
    every = gather(labels, spread)
    every = torch.cat([groups(every[:, 1:3]).unsqueeze(1), every[:, 1:]], 1)
    return every[spread.own], every


class SupCon(RecipeLoss):
    """Supervised contrastive loss of texts with labels."""

    def __init__(self, model: SentenceTransformer, settings: Settings, frozen: None = None) -> None:
        super().__init__(model, settings, frozen)
        self.temperature = Temperature(settings.temperature, settings.learnable_temperature)

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        assert labels is not None
        return functional.sup_con(
            x[0], labels, temperature=self.temperature(), backend=self.settings.backend
        )


class Triplet(RecipeLoss):
    """Triplet loss, of given triplets or of those that a batch with labels holds."""

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        made: Any = {"margin": self.settings.margin, "distance": self.settings.distance}
        if len(x) == 1:
            assert labels is not None
            mining: Any = self.settings.mining
            return functional.triplet_margin(
                x[0],
                labels,
                mining=mining,
                normalize=self.settings.distance == "cosine",
                backend=self.settings.backend,
                **made,
            )
        anchor, positive, *negatives = x
        losses = [functional.triplet(anchor, positive, negative, **made) for negative in negatives]
        return torch.stack(losses).mean()


class PairSoftmax(RecipeLoss):
    """Classes of pairs, by a linear layer over [u; v; |u - v|] that is used in training only."""

    def __init__(
        self, model: SentenceTransformer, settings: Settings, frozen: None = None, classes: int = 3
    ) -> None:
        super().__init__(model, settings, frozen)
        self.classifier = PairSoftmaxLoss(self.width, classes)

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        assert labels is not None
        loss: Tensor = self.classifier(x[0], x[1], labels)
        return loss


class CosineRegression(RecipeLoss):
    """Squared difference of a pair's cosine and its score in [0, 1]."""

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        assert labels is not None
        return functional.cosine_regression(x[0], x[1], labels)


class Distillation(RecipeLoss):
    """A teacher's embeddings of the source, to be found by the student for source and translation.

    The squared distances (Reimers and Gurevych 2020) need the teacher's width, which a linear
    layer that is used in training only gives a student of another; the divergence of the batch's
    similarities does not.
    """

    def __init__(
        self, model: SentenceTransformer, settings: Settings, frozen: SentenceTransformer
    ) -> None:
        super().__init__(model, settings, frozen)
        if not settings.mse_weight and not settings.kl_weight:
            raise ValueError("mse_weight, kl_weight: got 0 for both, expected one above 0")
        width = frozen.get_embedding_dimension()
        assert isinstance(width, int)
        same = width == self.width
        self.to_teacher = nn.Identity() if same else nn.Linear(self.width, width)

    def embeddings(self, features: list[Features]) -> tuple[list[Tensor], list[Tensor]]:
        own = len(features) - 1  # the teacher reads the source alone
        views = [self.anchor_views] + [self.views] * (own - 1)
        found = [self.encode(f, v) for f, v in zip(features[:own], views, strict=True)]
        return found, [self.look(features[-1])]

    def objective(self, x: list[Tensor], frozen: list[Tensor], labels: Tensor | None) -> Tensor:
        teacher = frozen[0].to(x[0].dtype)
        loss = x[0].new_zeros(())
        for student in x:
            if self.settings.mse_weight:
                mse = functional.feature_mse(self.to_teacher(student), teacher, per_dimension=True)
                loss = loss + self.settings.mse_weight * mse
            if self.settings.kl_weight:
                kl = functional.similarity_divergence(
                    student,
                    x[0],
                    teacher,
                    teacher,
                    temperature=self.settings.temperature,
                    teacher_temperature=self.settings.temperature,
                    # Of a text and itself it is 1, which would drown all others.
                    exclude_self=student is x[0],
                    backend=self.settings.backend,
                )
                loss = loss + self.settings.kl_weight * kl
        return loss


LOSSES: dict[str, Any] = {
    "info_nce": InfoNCE,
    "sup_con": SupCon,
    "triplet": Triplet,
    "softmax": PairSoftmax,
    "cosine": CosineRegression,
    "distill": Distillation,
}
