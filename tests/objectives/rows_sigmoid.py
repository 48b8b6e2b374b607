"""Rows of pairwise logistic losses."""

from __future__ import annotations

import torch
from row import ABSTRACT, CODE, PAPER, Row, cos, rand, rows_of

import contrastive_ops as co

N, D, K = 6, 5, 4
EYE = torch.eye(N, dtype=torch.float64)
LOG_POSITIVE = torch.linspace(-3, -1, N, dtype=torch.float64)
LOG_NOISE = torch.linspace(-4, -2, K, dtype=torch.float64)
Y = torch.tensor([1.0, 0, 1, 1, 0, 0.5], dtype=torch.float64)


def siglip(T, b, q, k):
    logits = cos(q, k) / T + b
    return -torch.sigmoid(logits * (2 * EYE - 1)).log().sum() / N


def sgns(q, p, noise):
    own = torch.einsum("nd,nkd->nk", q, noise)
    return (-torch.sigmoid((q * p).sum(1)).log() - torch.sigmoid(-own).log().sum(1)).mean()


def noise_contrastive(q, p, noise):
    log_k = torch.tensor(float(K), dtype=torch.float64).log()
    positive = torch.sigmoid((q * p).sum(1) - log_k - LOG_POSITIVE).log()
    return (-positive - torch.sigmoid(-(q @ noise.T - log_k - LOG_NOISE)).log().sum(1)).mean()


ROWS = [
    Row(
        "s0.5",
        "word2vec, negative sampling",
        2013,
        "nce(word, context, noise)",
        lambda *x: co.nce(*x),
        sgns,
        rows_of((N, D), (N, D), (N, K, D)),
        "Words are drawn by the caller.",
        PAPER,
    ),
    Row(
        "s0.9",
        "Noise-contrastive estimation",
        2010,
        "nce(q, k, noise, positive_log_probability=..., noise_log_probability=...)",
        lambda *x: co.nce(
            *x, positive_log_probability=LOG_POSITIVE, noise_log_probability=LOG_NOISE
        ),
        noise_contrastive,
        rows_of((N, D), (N, D), (K, D)),
        basis=PAPER,
    ),
    Row(
        "002#26",
        "sent2vec",
        2017,
        "nce(mean_of_ngrams, word, noise, reduction='sum')",
        lambda *x: co.nce(*x, reduction="sum"),
        lambda *x: N * sgns(*x),
        rows_of((N, D), (N, D), (N, K, D)),
        basis=PAPER,
    ),
    Row(
        "002#43",
        "Sentence-content paragraph embeddings",
        2019,
        "pair_bce(sentence, paragraph, targets)",
        lambda T, q, k: co.pair_bce(q, k, Y, temperature=T, bias=0.3),
        lambda T, q, k: torch.nn.functional.binary_cross_entropy_with_logits(
            cos(q, k).diagonal() / T + 0.3, Y
        ),
        rows_of((), (N, D), (N, D)),
        basis=ABSTRACT,
    ),
    Row(
        "x13",
        "SigLIP",
        2023,
        "sigmoid_loss(image, text, temperature=T, bias=b)",
        lambda T, b, q, k: co.sigmoid_loss(q, k, temperature=T, bias=b),
        siglip,
        lambda: [*rows_of((), ())(), rand(N, D, seed=3), rand(N, D, seed=4)],
        "",
        CODE,
    ),
]
