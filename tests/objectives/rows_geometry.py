"""Rows of geometry, decorrelation, heads and queues."""

from __future__ import annotations

import math

import torch
from row import ABSTRACT, PAPER, Row, ce, cos, l2, rand, rows_of, sq_l2, unit

import contrastive_ops as co
from contrastive_ops.objectives.decorrelation import GroupZCA

N, D = 6, 4
PAIR = rows_of((N, D), (N, D))
ONE = rows_of((N, D))
DIAGONAL = torch.eye(N, dtype=torch.bool)
EYE = torch.eye(D, dtype=torch.float64)
F = torch.nn.functional
SETS = torch.tensor([4, 2, 4, 2, 9, 4])
AXES = rand(5, D, seed=50)
PRIOR = rand(N, D, seed=51)
EMA = (rand(N, D, seed=55), rand(N, D, seed=56))
PAST = [rand(D, D, seed=s) for s in (52, 53)]
PAST = tuple(p @ p.T for p in PAST)
QUEUE = rand(7, D, seed=54)
Y = torch.linspace(-0.5, 1, N, dtype=torch.float64)
WORDS = torch.tensor([3, 0, 4, 4, 1, 2])
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])


def uniform(x, t=2.0):
    d = sq_l2(unit(x), unit(x))[~DIAGONAL]
    return (-t * d).exp().mean().log()


def align(x, y):
    return (unit(x) - unit(y)).norm(dim=1).square().mean()


def koleo(x):
    d = l2(unit(x), unit(x)).masked_fill(DIAGONAL, math.inf)
    return -(d.amin(1) + 1e-8).log().mean()


def set_cse(T, x):
    s = (cos(x, x) / T).exp()
    terms = [s[label == SETS][:, label != SETS].sum().log() for label in SETS.unique()]
    return torch.stack(terms).mean()


def standard(x):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


def barlow(a, b):
    c = standard(a).T @ standard(b) / N
    return (c.diagonal() - 1).square().sum() + 0.0051 * c[~EYE.bool()].square().sum()


def vicreg(a, b):
    loss = 25 * F.mse_loss(a, b)
    for z in (a, b):
        loss = loss + 25 * (1 - (z.var(0) + 1e-4).sqrt()).relu().mean() / 2
        loss = loss + torch.cov(z.T)[~EYE.bool()].square().sum() / D
    return loss


def info_max(a, b):
    loss = 0.0
    for z, past in zip((a, b), PAST, strict=True):
        r = 0.3 * past + 0.7 * torch.cov(z.T, correction=0)
        loss = loss - torch.logdet(r + 1e-8 * EYE)
    return loss / D


def sigreg(x):
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    weight = torch.full_like(t, 2 * 3 / 16)
    weight[0] = weight[-1] = 3 / 16
    phase = (x @ unit(AXES).T).unsqueeze(-1) * t
    normal = (-t.square() / 2).exp()
    error = (phase.cos().mean(0) - normal).square() + phase.sin().mean(0).square()
    return (error * weight * normal).sum(1).mean()


def sliced(x):
    a, b = x @ unit(AXES).T, PRIOR @ unit(AXES).T
    return (a.sort(0).values - b.sort(0).values).square().mean()


def group_zca(x, groups=2, eps=1e-5):
    parts = []
    for part in x[:, PERMUTATION].chunk(groups, 1):
        centred = part - part.mean(0)
        s = centred.T @ centred / N + eps * torch.eye(2, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(s)
        parts.append(centred @ vectors @ torch.diag(values.rsqrt()) @ vectors.T)
    return torch.cat(parts, 1)[:, PERMUTATION.argsort()]


PERMUTATION = torch.tensor([2, 0, 3, 1])
ZCA = GroupZCA(2)


def whitened_cse(weight, *views):
    first, *others = ((group_zca(x) @ weight.T).tanh() for x in views)
    return sum(ce(cos(first, x) / 0.5) for x in others)


def our_whitened_cse(weight, *views):
    first, *others = ((ZCA(x, permutation=PERMUTATION) @ weight.T).tanh() for x in views)
    return sum(co.info_nce(first, x, temperature=0.5) for x in others)


def rank(x):
    p = torch.linalg.svdvals(x)
    p = p / p.sum()
    return (-(p * p.log()).sum()).exp()


def sbert(u, v, weight, product):
    features = [u, v, (u - v).abs(), *([u * v] if product else [])]
    return F.cross_entropy(torch.cat(features, 1) @ weight.T, CLASSES)


def our_sbert(u, v, weight, product):
    return F.cross_entropy(co.pair_features(u, v, product=product) @ weight.T, CLASSES)


Q_MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
K_MASK = torch.arange(5) < torch.tensor([[5], [3], [2], [4]])


def max_sim(q, k, how):
    def forth(q, k, q_mask, k_mask):
        scores = []
        for x, x_mask in zip(q, q_mask, strict=True):
            best = [cos(x[x_mask], y[m]).amax(1) for y, m in zip(k, k_mask, strict=True)]
            scores.append(torch.stack([b.sum() if how == "sum" else b.mean() for b in best]))
        return torch.stack(scores)

    one = forth(q, k, Q_MASK, K_MASK)
    return (one + forth(k, q, K_MASK, Q_MASK).T) / 2 if how == "two_sided_mean" else one


def moco(T, q, k):
    positive = (unit(q) * unit(k)).sum(1, keepdim=True)
    return F.cross_entropy(
        torch.cat([positive, cos(q, QUEUE)], 1) / T, torch.zeros(N, dtype=torch.int64)
    )


def filtered(T, q, k):
    """Each query against its three hardest of the queue."""
    logits = torch.cat(
        [(unit(q) * unit(k)).sum(1, keepdim=True), cos(q, QUEUE).topk(3, 1).values], 1
    )
    return F.cross_entropy(logits / T, torch.zeros(N, dtype=torch.int64))


def both_sides(T, q, k, one):
    return one(T, q, k) + one(T, k, q)


def our_filtered(T, q, k):
    hard = co.hardest_negatives(q, QUEUE, 3)
    return co.info_nce(q, k, hard, temperature=T, in_batch=False, negatives_scope="own")


ROWS = [
    Row(
        "s0.12b",
        "Generalised contrastive loss, sliced Wasserstein",
        2020,
        "alignment(x, y) + w * sliced_wasserstein(x, prior)",
        lambda x, y: co.alignment(x, y) + co.sliced_wasserstein(x, PRIOR, directions=AXES),
        lambda x, y: align(x, y) + sliced(x),
        PAIR,
        "With log-sum-exp as its distribution term: alignment + w * uniformity.",
        PAPER,
    ),
    Row(
        "002#20",
        "Representation rank",
        2024,
        "info_nce(z1, z2) + w * effective_rank(z1)",
        lambda a, b: co.info_nce(a, b, temperature=0.5) + 0.1 * co.effective_rank(a),
        lambda a, b: ce(cos(a, b) / 0.5) + 0.1 * rank(a),
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#23",
        "UNSEE, Barlow Twins",
        2024,
        "barlow_twins(p1, t2) + barlow_twins(p2, t1)",
        lambda a, b: co.barlow_twins(a, EMA[1]) + co.barlow_twins(b, EMA[0]),
        lambda a, b: barlow(a, EMA[1]) + barlow(b, EMA[0]),
        PAIR,
    ),
    Row(
        "002#23b",
        "UNSEE, BYOL",
        2024,
        "byol(p1, t2) + byol(p2, t1)",
        lambda a, b: co.byol(a, EMA[1]) + co.byol(b, EMA[0]),
        lambda a, b: (
            (2 - 2 * F.cosine_similarity(a, EMA[1])).mean()
            + (2 - 2 * F.cosine_similarity(b, EMA[0])).mean()
        ),
        PAIR,
    ),
    Row(
        "002#23c",
        "UNSEE, VICReg",
        2024,
        "vicreg(p1, t2)",
        lambda a, b: co.vicreg(a, b),
        vicreg,
        PAIR,
    ),
    Row(
        "002#23d",
        "UNSEE, CorInfoMax",
        2024,
        "cor_info_max(p1, t2, covariances=running)",
        lambda a, b: co.cor_info_max(a, b, covariances=PAST, memory=0.3),
        info_max,
        PAIR,
    ),
    Row(
        "002#33",
        "DefSent+",
        2024,
        "vocabulary_softmax(embeddings, weight, targets, bias)",
        lambda e, w, b: co.vocabulary_softmax(e, w, WORDS, b),
        lambda e, w, b: F.cross_entropy(e @ w.T + b, WORDS),
        lambda: [rand(N, D, seed=1), rand(5, D, seed=2), rand(5, seed=3)],
    ),
    Row(
        "002#39",
        "WhiteningBERT",
        2021,
        "Whitening(x)(y)",
        lambda x: co.alignment(co.Whitening(QUEUE)(x), PRIOR, normalize=False),
        lambda x: ((x - QUEUE.mean(0)) @ _pca(QUEUE) - PRIOR).square().sum(1).mean(),
        ONE,
        "A fitted map, no loss: shown through one.",
    ),
    Row(
        "002#48",
        "WhitenedCSE",
        2023,
        "sum of info_nce(tanh(W(zca(z1))), tanh(W(zca(z_v)))), zca = GroupZCA(groups)",
        our_whitened_cse,
        whitened_cse,
        rows_of((D, D), (N, D), (N, D), (N, D)),
        "Gradients of the inverse root are exact for equal eigenvalues too.",
        once_differentiable=True,
    ),
    Row(
        "002#50",
        "SBERT softmax",
        2019,
        "PairSoftmaxLoss(dim, classes)(u, v, y)",
        lambda u, v, w: our_sbert(u, v, w, False),
        lambda u, v, w: sbert(u, v, w, False),
        rows_of((N, D), (N, D), (3, 3 * D)),
        basis=PAPER,
    ),
    Row(
        "002#50b",
        "SBERT regression",
        2019,
        "cosine_regression(u, v, y)",
        lambda u, v: co.cosine_regression(u, v, Y),
        lambda u, v: (F.cosine_similarity(u, v) - Y).square().mean(),
        PAIR,
        basis=PAPER,
    ),
    Row(
        "002#16b",
        "CLAIF",
        2023,
        "cosine_regression(u, v, y)",
        lambda u, v: co.cosine_regression(u, v, Y),
        lambda u, v: (F.cosine_similarity(u, v) - Y).square().mean(),
        PAIR,
    ),
    *[
        Row(
            f"002#57 {how}",
            {"sum": "ColBERT", "mean": "BGE-M3, multi-vector", "two_sided_mean": "CLRCMD"}[how],
            {"sum": 2020, "mean": 2024, "two_sided_mean": 2022}[how],
            f"score_nce(token_similarity(q, k, q_mask, k_mask, aggregate={how!r}))",
            lambda T, q, k, how=how: co.score_nce(
                co.token_similarity(q, k, Q_MASK, K_MASK, aggregate=how), temperature=T
            ),
            lambda T, q, k, how=how: ce(max_sim(q, k, how) / T),
            rows_of((), (4, 3, D), (4, 5, D)),
            "The N x M scores exist, the similarities of tokens do not.",
        )
        for how in ("sum", "mean", "two_sided_mean")
    ],
    Row(
        "002#58",
        "AutoRegEmbed, preference of two scores",
        2025,
        "score_nce(torch.stack([-s1, -s2], 1), positives=zeros, temperature=T)",
        lambda T, s: co.score_nce(
            -torch.stack([s[0], s[1]], 1),
            positives=torch.zeros(N, dtype=torch.int64),
            temperature=T,
        ),
        lambda T, s: -((-s[0] / T).exp() / ((-s[0] / T).exp() + (-s[1] / T).exp())).log().mean(),
        rows_of((), (2, N)),
        "Scores come from the language model.",
    ),
    Row(
        "002#63",
        "SALBERT / CNN-SBERT",
        2021,
        "PairSoftmaxLoss(dim, classes)(u, v, y)",
        lambda u, v, w: our_sbert(u, v, w, False),
        lambda u, v, w: sbert(u, v, w, False),
        rows_of((N, D), (N, D), (3, 3 * D)),
        basis=ABSTRACT,
    ),
    Row(
        "002#65",
        "align_uniform",
        2020,
        "alignment(x, y) + (uniformity(x) + uniformity(y)) / 2",
        lambda x, y: co.alignment(x, y) + (co.uniformity(x) + co.uniformity(y)) / 2,
        lambda x, y: align(x, y) + (uniform(x) + uniform(y)) / 2,
        PAIR,
    ),
    Row(
        "002#68",
        "InferSent",
        2017,
        "PairSoftmaxLoss(dim, classes, product=True)(u, v, y)",
        lambda u, v, w: our_sbert(u, v, w, True),
        lambda u, v, w: sbert(u, v, w, True),
        rows_of((N, D), (N, D), (3, 4 * D)),
        basis=PAPER,
    ),
    Row(
        "002#88",
        "Iterative refinement NLI encoders",
        2018,
        "PairSoftmaxLoss(dim, classes, product=True)(u, v, y)",
        lambda u, v, w: our_sbert(u, v, w, True),
        lambda u, v, w: sbert(u, v, w, True),
        rows_of((N, D), (N, D), (3, 4 * D)),
        basis=PAPER,
    ),
    Row(
        "002#76",
        "Triple-encoders (CCL)",
        2024,
        "cosine_regression((u1 + u2) / 2, v, y)",
        lambda a, b, v: co.cosine_regression((a + b) / 2, v, Y),
        lambda a, b, v: (F.cosine_similarity((a + b) / 2, v) - Y).square().mean(),
        rows_of((N, D), (N, D), (N, D)),
    ),
    Row(
        "002#80",
        "ESimCSE",
        2021,
        "info_nce(z1, z2, queue.rows)",
        lambda T, a, b: co.info_nce(a, b, QUEUE, temperature=T),
        lambda T, a, b: ce(torch.cat([cos(a, b), cos(a, QUEUE)], 1) / T),
        rows_of((), (N, D), (N, D)),
        "`EmbeddingQueue`, `momentum_encoder`.",
    ),
    Row(
        "002#98",
        "NOVA",
        2026,
        "feature_mse(pred, text) + w * sig_reg(z)",
        lambda x: co.feature_mse(x, PRIOR) + co.sig_reg(x, directions=AXES),
        lambda x: (x - PRIOR).square().sum(1).mean() + sigreg(x),
        ONE,
        "Directions are drawn by `seed` or given.",
        ABSTRACT,
    ),
    Row(
        "002#100",
        "SetCSE, inter-set loss",
        2024,
        "negative_lse(embeddings, sets)",
        lambda T, x: co.negative_lse(x, SETS, temperature=T),
        set_cse,
        rows_of((), (N, D)),
        "The mean over sets.",
        PAPER,
    ),
    Row(
        "002#103",
        "Momentum contrast with filtered negatives",
        2025,
        "info_nce(q, k, hardest_negatives(q, queue, K), in_batch=False, negatives_scope='own')",
        lambda T, q, k: our_filtered(T, q, k) + our_filtered(T, k, q),
        lambda T, q, k: both_sides(T, q, k, filtered),
        rows_of((), (N, D), (N, D)),
        basis=ABSTRACT,
    ),
    Row(
        "002#107",
        "DefSent",
        2021,
        "vocabulary_softmax(embeddings, weight, targets)",
        lambda e: co.vocabulary_softmax(e, QUEUE, WORDS),
        lambda e: F.cross_entropy(e @ QUEUE.T, WORDS),
        ONE,
    ),
    Row(
        "002#110",
        "InfoXLM",
        2020,
        "info_nce(q, k, queue.rows, in_batch=False, normalize=False, temperature=0.05)",
        lambda T, q, k: co.info_nce(q, k, QUEUE, in_batch=False, normalize=False, temperature=T),
        lambda T, q, k: F.cross_entropy(
            torch.cat([(q * k).sum(1, keepdim=True), q @ QUEUE.T], 1) / T,
            torch.zeros(N, dtype=torch.int64),
        ),
        rows_of((), (N, D), (N, D)),
        "Raw dot product. Defaults of code and paper differ: give the temperature.",
    ),
    Row(
        "002#111",
        "CCP",
        2022,
        "info_nce(anchor, context, bank[language].rows)",
        lambda T, a, b: co.info_nce(a, b, QUEUE, temperature=T),
        lambda T, a, b: ce(torch.cat([cos(a, b), cos(a, QUEUE)], 1) / T),
        rows_of((), (N, D), (N, D)),
        "`QueueBank`.",
        ABSTRACT,
    ),
    Row(
        "002#112",
        "DistilCSE",
        2021,
        "info_nce(student, teacher, queue.rows, in_batch=False, scale=g.exp())",
        lambda T, q, k: co.info_nce(q, k, QUEUE, in_batch=False, temperature=T),
        moco,
        rows_of((), (N, D), (N, D)),
    ),
    Row(
        "002#108",
        "DiscSent, next of five",
        2017,
        "score_nce(scores, positives=index)",
        lambda s: co.score_nce(s, positives=WORDS),
        lambda s: F.cross_entropy(s, WORDS),
        rows_of((N, 5)),
        basis=PAPER,
    ),
    Row(
        "002#113",
        "L3Cube SBERT, two steps",
        2022,
        "info_nce, then cosine_regression(u, v, y)",
        lambda u, v: co.cosine_regression(u, v, Y),
        lambda u, v: (F.cosine_similarity(u, v) - Y).square().mean(),
        PAIR,
        basis=PAPER,
    ),
    Row(
        "002#114",
        "Document embedding by contrastive augmentation, BYOL style",
        2021,
        "byol(prediction, target)",
        lambda p: co.byol(p, PRIOR),
        lambda p: (2 - 2 * F.cosine_similarity(p, PRIOR)).mean(),
        ONE,
        basis=ABSTRACT,
    ),
    Row(
        "002#116",
        "MEXMA",
        2024,
        "alignment(src, tgt, normalize=False) / dim + 0.01 * ko_leo(src)",
        lambda a, b: co.alignment(a, b, normalize=False) / D + 0.01 * co.ko_leo(a),
        lambda a, b: F.mse_loss(a, b) + 0.01 * koleo(a),
        PAIR,
        "Cross-lingual unmasking apart; both sides get gradient.",
    ),
]


def _pca(x):
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    return (vectors * (values + 1e-9).rsqrt()).flip(1)
