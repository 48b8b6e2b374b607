"""Rows of ranking and distillation."""

from __future__ import annotations

import math

import torch
from row import ABSTRACT, CODE, PAPER, Row, ce, cos, rand, rows_of, unit

import contrastive_ops as co

N, D = 6, 4
PAIR = rows_of((N, D), (N, D))
TARGETS = torch.tensor([0.2, 0.9, 0.2, 0.4, 1.0, 0.4], dtype=torch.float64)
DIAGONAL = torch.eye(N, dtype=torch.bool)
TEACHER = (rand(N, 3, seed=30), rand(N, 3, seed=31))
F = torch.nn.functional


def cosent(s, scale=20.0):
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(s)):
        for j in range(len(s)):
            if TARGETS[i] < TARGETS[j]:
                total = total + (scale * (s[i] - s[j])).exp()
    return torch.log1p(total)


def angle_scores(u, v):
    a, b = u.chunk(2, 1)
    c, d = v.chunk(2, 1)
    z = torch.complex(a, b) / torch.complex(c, d)
    weight = (c**2 + d**2) / (c**2 + d**2).sum(1, keepdim=True)
    z = weight * z * v.norm(dim=1, keepdim=True) / u.norm(dim=1, keepdim=True)
    return (z.real + z.imag).sum(1).abs()


def in_batch(u, v):
    """AnglE's in-batch term: each of the 2 N rows finds its partner, weighted by the pair's y."""
    rows = torch.cat([u, v])
    logits = (20 * cos(rows, rows)).masked_fill(torch.eye(2 * N, dtype=torch.bool), -math.inf)
    partner = torch.arange(2 * N).roll(N)
    return (TARGETS.repeat(2) * F.cross_entropy(logits, partner, reduction="none")).mean()


def our_in_batch(u, v):
    rows, own = torch.cat([u, v]), torch.arange(2 * N)
    targets, index = TARGETS.repeat(2).unsqueeze(1), own.roll(N).unsqueeze(1)
    ids = {"query_ids": own, "key_ids": own}
    return co.soft_target_nce(rows, rows, targets, index=index, **ids)


def two_dimensions(u, v, x, y):
    def both(a, b):
        halves = a[:, :2], b[:, :2]
        return cosent(angle_scores(a, b)) + 0.5 * cosent(angle_scores(*halves))

    last, layer = torch.cat([x, y]).detach() / 0.3, torch.cat([u, v]) / 0.3
    return both(x, y) + both(u, v) / 3 + 0.3 * kl(last, layer)


def kl(p_logits, q_logits):
    p = p_logits.softmax(1)
    return (p * (p_logits.log_softmax(1) - q_logits.log_softmax(1))).sum(1).mean()


def js(p_logits, q_logits):
    p, q = p_logits.softmax(1), q_logits.softmax(1)
    m = (p + q) / 2
    return ((p * (p / m).log() + q * (q / m).log()).sum(1) / 2).mean()


def mle(scores, targets):
    losses = []
    for s, t in zip(scores, targets, strict=True):
        s = s[t.argsort(descending=True, stable=True)]
        losses.append(sum(s[r:].logsumexp(0) - s[r] for r in range(len(s))))
    return torch.stack(losses).mean()


def off_diagonal(x):
    return x[~DIAGONAL].view(N, N - 1)


OWN = (rand(N, D, seed=34), rand(N, D, seed=35))
QUEUES = (rand(9, D, seed=36), rand(9, D, seed=37))


def sct(T, a, b):
    (t_a, t_b), (q_a, q_b) = OWN, QUEUES
    forth = kl(cos(t_a, q_a) / 0.3, cos(b, q_a) / T)
    return forth + kl(cos(t_b, q_b) / 0.3, cos(a, q_b) / T)


CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])


def dse(u, v, weight):
    logits = torch.cat([u, v, (u - v).abs(), u * v], 1) @ weight.T
    log_p = logits - logits.logsumexp(1, keepdim=True)
    task = -log_p[torch.arange(N), CLASSES].mean()
    return 0.5 * task + 0.5 * ((logits - TEACHER_ROWS) ** 2).sum()


def rank_cse(a, b, T=0.2):
    s, t = off_diagonal(cos(a, b)), off_diagonal(cos(*TEACHER))
    list_net = -((t / 0.1).softmax(1) * (s / T).log_softmax(1)).sum(1).mean()
    return ce(cos(a, b) / T) + js(cos(a, b) / T, cos(b, a) / T) + list_net


def our_rank_cse(a, b, T=0.2):
    return (
        co.info_nce(a, b, temperature=T)
        + co.similarity_divergence(
            b,
            a,
            a,
            b,
            divergence="js",
            temperature=T,
            teacher_temperature=T,
            detach_teacher=False,
        )
        + co.similarity_divergence(
            a,
            b,
            *TEACHER,
            divergence="cross_entropy",
            exclude_self=True,
            temperature=T,
            teacher_temperature=0.1,
        )
    )


GROUP_TEACHER = rand(3, 4, seed=33).softmax(1)


def m3_kd(T, q, passages):
    scores = cos(q, passages.reshape(-1, D)) / T
    mask = torch.zeros_like(scores)
    loss = 0.0
    for g in range(4):
        target = torch.arange(3) * 4 + g
        loss = (
            loss
            + (
                GROUP_TEACHER[:, g] * F.cross_entropy(scores + mask, target, reduction="none")
            ).mean()
        )
        mask = mask.scatter(1, target.unsqueeze(1), -math.inf)
    return loss


SPARSE = rand(N, N, seed=40)
GROUP = 2
FIRST = torch.arange(N) * GROUP


def m3(dense, sparse, colbert, ours):
    """BGE-M3's fine-tuning loss over three kinds of scores, with self-distillation; a query's
    positive is the first of its group of passages."""
    scores = [dense, sparse, colbert]
    ensemble = dense + 0.3 * sparse + colbert
    if ours:
        losses = [co.score_nce(x, positives=FIRST) for x in (*scores, ensemble)]
        distilled = sum(co.list_net(x, ensemble) for x in scores) / 3
    else:
        losses = [ce(x, FIRST) for x in (*scores, ensemble)]
        p = ensemble.detach().softmax(1)
        distilled = sum(-(p * x.log_softmax(1)).sum(1).mean() for x in scores) / 3
    contrastive = (losses[0] + losses[3] + 0.1 * losses[1] + losses[2]) / 4
    return (contrastive + distilled) / 2


ROWS = [
    Row(
        "s0.35",
        "BGE-M3, three scores with self-distillation",
        2024,
        "score_nce(scores, positives=first) of each score, list_net(scores, ensemble)",
        lambda T, a, b, s, c: m3(cos(a, b) / T, s / T, c / T, True),
        lambda T, a, b, s, c: m3(cos(a, b) / T, s / T, c / T, False),
        rows_of((), (N, D), (N * GROUP, D), (N, N * GROUP), (N, N * GROUP)),
        "The dense part alone is info_nce. Scores are given: their N x M matrix exists.",
        stops_gradient=True,
    ),
    Row(
        "s0.35+",
        "BGE group distillation (m3_kd_loss)",
        2024,
        "group_distillation(query, passages, teacher)",
        lambda T, q, p: co.group_distillation(q, p, GROUP_TEACHER, temperature=T),
        m3_kd,
        rows_of((), (3, D), (3, 4, D)),
    ),
    Row(
        "s4",
        "Multilingual distillation",
        2020,
        "feature_mse(S(src), T(src)) + feature_mse(S(tgt), T(src))",
        lambda a, b: co.feature_mse(a, TEACHER_ROWS) + co.feature_mse(b, TEACHER_ROWS),
        lambda a, b: ((TEACHER_ROWS - a) ** 2 + (TEACHER_ROWS - b) ** 2).sum(1).mean(),
        PAIR,
        "`feature_cosine` for the cosine variant.",
    ),
    Row(
        "s4+",
        "Multilingual distillation, cosine",
        2020,
        "feature_cosine(student, teacher)",
        lambda a: co.feature_cosine(a, TEACHER_ROWS),
        lambda a: (1 - F.cosine_similarity(a, TEACHER_ROWS)).mean(),
        rows_of((N, D)),
    ),
    Row(
        "002#11",
        "Ranking-sentence generation",
        2025,
        "list_mle(scores, targets, temperature=T)",
        lambda T, s: co.list_mle(s, SPARSE, temperature=T),
        lambda T, s: mle(s / T, SPARSE),
        rows_of((), (N, N)),
        "The order is the caller's.",
    ),
    Row(
        "002#12",
        "DSE",
        2019,
        "(1 - a) * task + a * feature_mse(logits, teacher_logits, reduction='sum')",
        lambda u, v, w: (
            0.5 * F.cross_entropy(co.pair_features(u, v, product=True) @ w.T, CLASSES)
            + 0.5
            * co.feature_mse(
                co.pair_features(u, v, product=True) @ w.T, TEACHER_ROWS, reduction="sum"
            )
        ),
        dse,
        rows_of((N, D), (N, D), (D, 4 * D)),
    ),
    Row(
        "002#21",
        "Static word embeddings for sentences",
        2025,
        "similarity_mse(student, student, teacher, teacher)",
        lambda a, b: co.similarity_mse(a, b, *TEACHER),
        lambda a, b: (cos(a, b) - cos(*TEACHER)).square().mean(),
        PAIR,
        "Or info_nce; `Whitening` fits the sentence-level PCA.",
        ABSTRACT,
    ),
    Row(
        "002#27",
        "LEALLA",
        2023,
        "info_nce(x, y, margin=m, symmetric=True) + feature_mse(W(x), t) + similarity_mse(...)",
        lambda a, b: (
            co.info_nce(a, b, margin=0.3, symmetric=True, temperature=0.2)
            + co.feature_mse(a, TEACHER_ROWS)
            + co.similarity_mse(a, b, *TEACHER)
        ),
        lambda a, b: (
            (ce((cos(a, b) - 0.3 * EYE) / 0.2) + ce((cos(b, a) - 0.3 * EYE) / 0.2)) / 2
            + ((a - TEACHER_ROWS) ** 2).sum(1).mean()
            + (cos(a, b) - cos(*TEACHER)).square().mean()
        ),
        PAIR,
        basis=PAPER,
    ),
    Row(
        "002#54",
        "SCT",
        2023,
        "similarity_divergence(p_b, queue, t_a, queue, ...) + similarity_divergence(p_a, ...)",
        lambda T, a, b: sum(
            co.similarity_divergence(p, queue, t, queue, temperature=T, teacher_temperature=0.3)
            for p, t, queue in ((b, OWN[0], QUEUES[0]), (a, OWN[1], QUEUES[1]))
        ),
        sct,
        rows_of((), (N, D), (N, D)),
        "One call a side, against that side's queue.",
    ),
    Row(
        "002#72",
        "2DMSE / ESE, embedding KL",
        2024,
        "embedding_kl(layer, last_layer, temperature=t)",
        lambda T, x: co.embedding_kl(x, TEACHER_ROWS, temperature=T),
        lambda T, x: kl(TEACHER_ROWS / T, x / T),
        rows_of((), (N, D)),
        "ESE's PCA-compressed prefix: the same on `Whitening` of both.",
    ),
    Row(
        "002#72+",
        "2DMSE, layers and prefixes",
        2024,
        "adaptive_layers(lambda u, v: matryoshka(loss, u, v, dims=dims), layers)",
        lambda u, v, x, y: co.adaptive_layers(
            lambda a, b: co.matryoshka(
                lambda c, d: co.angle(c, d, TARGETS), a, b, dims=[4, 2], weights=[1.0, 0.5]
            ),
            [(u, v), (x, y)],
            indices=[2],
        ),
        two_dimensions,
        rows_of((N, D), (N, D), (N, D), (N, D)),
        "Earlier layers and prefixes are drawn by the caller; their weights 1 / (1 + l).",
        stops_gradient=True,
    ),
    Row(
        "002#83",
        "Small Czech models",
        2023,
        "similarity_mse(...) or feature_mse(...)",
        lambda a, b: co.similarity_mse(a, b, *TEACHER) + co.feature_mse(a, TEACHER_ROWS),
        lambda a, b: (
            (cos(a, b) - cos(*TEACHER)).square().mean() + ((a - TEACHER_ROWS) ** 2).sum(1).mean()
        ),
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#89",
        "BeLLM",
        2023,
        "20 * info_nce(u, v) + angle(u, v, targets)",
        lambda u, v: 20 * co.info_nce(u, v) + co.angle(u, v, TARGETS),
        lambda u, v: 20 * ce(cos(u, v) / 0.05) + cosent(angle_scores(u, v)),
        PAIR,
    ),
    Row(
        "002#96",
        "Distilled BiLSTM",
        2019,
        "a * cross_entropy + (1 - a) * feature_mse(logits, teacher_logits)",
        lambda x: 0.3 * F.cross_entropy(x, CLASSES) + 0.7 * co.feature_mse(x, TEACHER_ROWS),
        lambda x: (
            -0.3 * x.softmax(1)[torch.arange(N), CLASSES].log().mean()
            + 0.7 * ((x - TEACHER_ROWS) ** 2).sum(1).mean()
        ),
        rows_of((N, D)),
        basis=PAPER,
    ),
    Row(
        "x2",
        "AnglE",
        2023,
        "w1 * cosent(cos, y) + w2 * soft_target_nce(rows, rows, y, ...) + w3 * angle(u, v, y)",
        lambda u, v: (
            co.cosent((unit(u) * unit(v)).sum(1), TARGETS)
            + our_in_batch(u, v)
            + 0.02 * co.angle(u, v, TARGETS)
        ),
        lambda u, v: (
            cosent((unit(u) * unit(v)).sum(1)) + in_batch(u, v) + 0.02 * cosent(angle_scores(u, v))
        ),
        PAIR,
        "Its 'tau' multiplies, as `scale` does; rows are both sides, each finding its partner.",
    ),
    Row(
        "x2+",
        "CoSENT",
        2022,
        "cosent(scores, targets, scale=20)",
        lambda s: co.cosent(s, TARGETS),
        cosent,
        lambda: [rand(N, seed=5) / 10],
    ),
    Row(
        "x3",
        "RankCSE, ListNet",
        2023,
        "info_nce + similarity_divergence(js) + similarity_divergence(cross_entropy)",
        our_rank_cse,
        rank_cse,
        PAIR,
        "JS in full, not the negative entropy that a public port's clamp leaves of it.",
        CODE,
    ),
    Row(
        "x3+",
        "RankCSE, ListMLE",
        2023,
        "similarity_divergence(..., divergence='list_mle', exclude_self=True)",
        lambda T, a, b: co.similarity_divergence(
            a, b, *TEACHER, divergence="list_mle", exclude_self=True, temperature=T
        ),
        lambda T, a, b: mle(off_diagonal(cos(a, b) / T), off_diagonal(cos(*TEACHER))),
        rows_of((), (N, D), (N, D)),
    ),
    Row(
        "x15",
        "ListNet on given lists",
        2007,
        "list_net(scores, targets)",
        lambda T, s: co.list_net(s, SPARSE, temperature=T),
        lambda T, s: -(SPARSE.softmax(1) * (s / T).log_softmax(1)).sum(1).mean(),
        rows_of((), (N, N)),
    ),
    Row(
        "x16",
        "MarginMSE",
        2020,
        "margin_mse(positive_scores, negative_scores, teacher_margins)",
        lambda p, n: co.margin_mse(p, n, SPARSE[:, :3]),
        lambda p, n: (p.unsqueeze(1) - n - SPARSE[:, :3]).square().mean(),
        lambda: [rand(N, seed=6), rand(N, 3, seed=7)],
    ),
]
TEACHER_ROWS = rand(N, D, seed=32)
EYE = DIAGONAL.double()
