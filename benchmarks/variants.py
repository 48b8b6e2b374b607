"""The losses that are compared: ours, and the peers, each imported from where it lives.

A variant builds, for a case, a function (query, key, temperature) -> loss. One that cannot run
here (a missing package, an older torch, an option that it does not have) raises `Unavailable`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Unavailable(Exception):
    """Why a variant cannot run here."""


@dataclass(frozen=True)
class Variant:
    """A named way to compute the loss; ``dtype`` when it is not the case's.

    ``matrices`` is about how many N x N float32 matrices it keeps at once: sizes that would not fit
    the machine are left out. ``ours`` marks the library's own.
    """

    name: str
    build: Callable[[Case], Loss]
    dtype: str | None = None
    matrices: float = 0.0
    ours: bool = False


def build_ours(case: Case) -> Loss:
    """`contrastive_ops.info_nce` with the backend that it chooses."""
    from contrastive_ops import info_nce

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(
            query,
            key,
            temperature=temperature if case.learnable_temperature else case.temperature,
            symmetric=case.symmetric,
            normalize=case.normalize,
        )

    return loss


def build_dense(case: Case) -> Loss:
    """What a paper's code does: normalise, multiply, cross-entropy."""
    labels = torch.arange(case.n)

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        if case.normalize:
            query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        scale = 1.0 / temperature if case.learnable_temperature else 1.0 / case.temperature
        if case.symmetric:
            # One shared matrix, as in CLIP's own code.
            logits = (query * scale) @ key.T
            return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return F.cross_entropy(query @ key.T * scale, labels)

    return loss


def build_dense_logsumexp(case: Case) -> Loss:
    """The two directions as two log-sum-exps of one matrix, which spares the transposed copy."""
    if not case.symmetric:
        raise Unavailable("a form for two directions")

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        if case.normalize:
            query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        scale = 1.0 / temperature if case.learnable_temperature else 1.0 / case.temperature
        logits = (query * scale) @ key.T
        both = logits.logsumexp(dim=0) + logits.logsumexp(dim=1)
        return (both / 2 - logits.diagonal()).mean()

    return loss


def build_compiled(case: Case) -> Loss:
    """`torch.compile` of the dense loss."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise Unavailable("torch.compile needs a C++ compiler on the CPU")
    torch._dynamo.reset()
    dense = build_dense_logsumexp(case) if case.symmetric else build_dense(case)
    return torch.compile(dense, dynamic=False)


def build_linear_cross_entropy(case: Case) -> Loss:
    """PyTorch's chunked `linear_cross_entropy` with the keys as weights."""
    if case.symmetric:
        raise Unavailable("linear_cross_entropy has one direction only")
    options_type = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    function = getattr(F, "linear_cross_entropy", None)
    if options_type is None or function is None:
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy with chunks")
    labels = torch.arange(case.n)
    options = options_type(batch_chunk_size=1024)

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        if case.normalize:
            query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        scale = 1.0 / temperature if case.learnable_temperature else 1.0 / case.temperature
        value: Tensor = function(query * scale, key, labels, options=options)
        return value

    return loss


def build_sentence_transformers(case: Case) -> Loss:
    """sentence-transformers' MultipleNegativesRankingLoss on given embeddings."""
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.util import cos_sim, dot_score
    except ImportError as error:
        raise Unavailable(f"sentence-transformers is not installed ({error})") from error
    if case.learnable_temperature:
        raise Unavailable("its scale is a number")
    directions = ("query_to_doc", "doc_to_query") if case.symmetric else ("query_to_doc",)
    module = MultipleNegativesRankingLoss(
        model=torch.nn.Identity(),
        scale=1.0 / case.temperature,
        similarity_fct=cos_sim if case.normalize else dot_score,
        directions=directions,
        partition_mode="per_direction" if case.symmetric else "joint",
    )
    labels = torch.arange(case.n)

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        value: Tensor = module.compute_loss_from_embeddings([query, key], labels)
        return value

    return loss


OURS = Variant("contrastive-ops", build_ours, ours=True)
OURS_FLOAT32 = Variant("contrastive-ops, float32", build_ours, dtype="float32")
DENSE = Variant("PyTorch, dense", build_dense, matrices=6)
DENSE_LOGSUMEXP = Variant("PyTorch, dense, two logsumexp", build_dense_logsumexp, matrices=6)
COMPILED = Variant("PyTorch, dense, torch.compile", build_compiled, matrices=6)
LINEAR_CROSS_ENTROPY = Variant(
    "PyTorch, linear_cross_entropy (chunk 1024)", build_linear_cross_entropy
)
SENTENCE_TRANSFORMERS = Variant(
    "sentence-transformers, MultipleNegativesRankingLoss", build_sentence_transformers, matrices=8
)
DENSE_FLOAT32 = Variant("PyTorch, dense, float32", build_dense, dtype="float32", matrices=6)

VARIANTS = {
    variant.name: variant
    for variant in (
        OURS,
        OURS_FLOAT32,
        DENSE,
        DENSE_LOGSUMEXP,
        COMPILED,
        LINEAR_CROSS_ENTROPY,
        SENTENCE_TRANSFORMERS,
        DENSE_FLOAT32,
    )
}
