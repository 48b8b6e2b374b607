"""Rows of the softmax family."""

from __future__ import annotations

import math

import torch
from row import ABSTRACT, PAPER, Row, ce, cos, rand, rows_of, sq_l2

import contrastive_ops as co

N, D = 6, 5
PAIR = rows_of((), (N, D), (N, D))
TRIPLE = rows_of((), (N, D), (N, D), (N, D))
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
LABELLED = rows_of((), (7, D))
OTHER_LABELS = torch.tensor([1, 0, 2, 2, 5])
DIAGONAL = torch.eye(N, dtype=torch.bool)
EYE = DIAGONAL.double()


def info_nce(T, a, b):
    return co.info_nce(a, b, temperature=T)


def nce(T, a, b):
    return ce(cos(a, b) / T)


def info_nce3(T, a, b, c):
    return co.info_nce(a, b, c, temperature=T)


def nce3(T, a, b, c):
    return ce(cos(a, torch.cat([b, c])) / T)


def nt_xent(T, *views):
    """By its definition, one anchor and one positive at a time."""
    return _one_set(T, torch.cat(views), torch.arange(len(views[0])).repeat(len(views)))


def _one_set(T, x, labels, *, own=False, inside=False, logits=None, spread=True):
    s = cos(x, x) / T if logits is None else logits
    losses = []
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if labels[j] == labels[i] and j != i]
        if not positives:
            continue
        terms = []
        for p in positives:
            keep = [
                a for a in range(len(x)) if a != i and (not own or a == p or a not in positives)
            ]
            terms.append(s[i, p] - s[i, keep].logsumexp(0))
        terms = torch.stack(terms)
        if inside:
            losses.append(-terms.logsumexp(0) + (math.log(len(positives)) if spread else 0.0))
        else:
            losses.append(-terms.mean())
    return torch.stack(losses).mean()


def conSERT(T, a, b):
    def side(x, y):
        within = (cos(x, x) / T).masked_fill(DIAGONAL, -math.inf)
        return ce(torch.cat([cos(x, y) / T, within], 1))

    return side(a, b) + side(b, a)


def dcl(T, a, b, sigma=None):
    x = torch.cat([a, b])
    s = cos(x, x) / T
    sample = torch.arange(N).repeat(2)
    negatives = s.masked_fill(sample.unsqueeze(1) == sample, -math.inf).logsumexp(1)
    positive = (cos(a, b) / T).diagonal()
    weight = 1.0
    if sigma:
        e = (cos(a, b).diagonal().detach() / sigma).exp()
        weight = 2 - e / e.mean()
    return (negatives - (weight * positive).repeat(2)).mean()


def debiased(T, a, b, prior=0.1, beta=0.0):
    x = torch.cat([a, b])
    e = (cos(x, x) / T).exp()
    sample = torch.arange(N).repeat(2)
    keep = sample.unsqueeze(1) != sample
    n = 2 * N - 2
    positive = (cos(a, b).diagonal() / T).exp().repeat(2)
    negative = e[keep].view(2 * N, n)
    importance = negative**beta
    total = (importance * negative).sum(1) / importance.mean(1)
    g = (total - prior * n * positive) / (1 - prior)
    g = torch.maximum(g, n * (-1 / T).exp())
    return -(positive / (positive + g)).log().mean()


def hardness(T, a, b, c, alpha=2.0, which="all"):
    near, far = cos(a, b), cos(a, c)
    first, second = near / T, far / T
    if which != "negatives":
        first = first + alpha * near.detach() * ~DIAGONAL
    if which != "in_batch":
        second = second + alpha * far.detach()
    return ce(torch.cat([first, second], 1))


def gte(T, q, k, once=False):
    off = (~DIAGONAL).double()
    qk, qq, kk = (cos(q, k) / T).exp(), (cos(q, q) / T).exp(), (cos(k, k) / T).exp()
    z = qk.sum(1) + (qq * off).sum(1) + (qk * off if once else qk).sum(0) + (kk * off).sum(0)
    return -(qk.diagonal() / z).log().mean()


def quick_thought(T, f, g, window=1, excluded=0.0):
    logits = (f @ g.T / T).masked_fill(DIAGONAL, excluded)
    gap = (torch.arange(N).unsqueeze(1) - torch.arange(N)).abs()
    near = ((gap > 0) & (gap <= window)).double()
    return -(near / near.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


QUALITY = torch.linspace(0.1, 1.0, N, dtype=torch.float64)
TARGETS = rand(N, N, seed=9).abs()


def clhaif(T, a, b, smoothing="all"):
    log_p = (cos(a, b) / T).log_softmax(1)
    loss = -QUALITY * log_p.diagonal()
    if smoothing == "all":
        loss = loss - (1 - QUALITY) / (N - 1) * (log_p * ~DIAGONAL).sum(1)
    return loss.mean()


GUIDE = (rand(N, 3, seed=20), rand(N, 3, seed=21))


def dclr(T, a, b, noise, code=False):
    keep = torch.cat([(cos(*GUIDE) <= 0.5) | DIAGONAL, torch.ones(N, len(noise)).bool()], 1)
    s = cos(a, torch.cat([b, noise])) / T
    if not code:
        return ce(s.masked_fill(~keep, -math.inf))
    p = (s * keep).softmax(1)
    y = torch.cat([DIAGONAL.double(), torch.zeros(N, len(noise))], 1)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


LOG_P = torch.linspace(-4, -1, N, dtype=torch.float64)


def popularity(T, u, v):
    return ce(u @ v.T / T - LOG_P)


def gcse(T, a, b, c, alpha=0.8):
    s = cos(a, c) / T
    gap = (s - cos(*GUIDE) / T.detach()).diagonal().detach()
    decay = -s.diagonal().detach() * (-gap.square() / (2 * alpha**2)).exp()
    w = torch.where(gap > 0, 0.0, decay)
    return ce(torch.cat([cos(a, b) / T, s + torch.diag(w)], 1))


def uni_cl(T, a, b):
    s = cos(a, b) / T
    same = (LABELS.unsqueeze(1) == OTHER_LABELS).double()

    def side(logits, t):
        rows = -(t * logits.log_softmax(1)).sum(1) / t.sum(1).clamp(min=1)
        return rows.sum() / (t.sum(1) > 0).sum()

    return (side(s, same) + side(s.T, same.T)) / 2


def sg_opt(T, c, h):
    losses = []
    for i in range(len(h)):
        others = cos(c[i : i + 1], torch.cat([h[j] for j in range(len(h)) if j != i]))[0] / T
        for layer in range(h.shape[1]):
            s = cos(c[i : i + 1], h[i, layer : layer + 1])[0] / T
            losses.append(torch.cat([s, others]).logsumexp(0) - s[0])
    return torch.stack(losses).mean()


def gircse(losses):
    losses = torch.stack(losses)
    return losses.mean() + (losses[1:].log() - losses[:-1].log()).relu().mean()


TIMES = (torch.zeros(N), torch.linspace(1, 3, N), torch.full((N,), 4.0))


def bridge(start, middle, end):
    t, length = (x.double() for x in TIMES[1:])
    alpha, variance = t / length, t * (length - t) / length
    mean = (1 - alpha)[:, None] * start + alpha[:, None] * end.unsqueeze(1)
    return ce(-(middle - mean).square().sum(-1) / (2 * variance))


GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])
SHARED_KEYS = torch.tensor([0, 1, 2, 0, 4, 5])
INDEX = torch.tensor([[0, 3], [1, -1], [2, 5], [3, 0], [4, -1], [5, 2]])


def several(T, a, b):
    log_p = (cos(a, b) / T).log_softmax(1)
    rows = [-torch.stack([log_p[i, p] for p in ps if p >= 0]).mean() for i, ps in enumerate(INDEX)]
    return torch.stack(rows).mean()


def margin_both(T, a, b, m=0.3):
    s = (cos(a, b) - m * EYE) / T
    return (ce(s) + ce(s.T)) / 2


ROWS = [
    Row("s0.10", "InfoNCE / CPC", 2018, "info_nce(query, key)", info_nce, nce, PAIR),
    Row(
        "s0.11",
        "Soft nearest neighbour loss",
        2019,
        "soft_nearest_neighbor(embeddings, labels)",
        lambda T, x: co.soft_nearest_neighbor(x, LABELS, temperature=T),
        lambda T, x: _one_set(T, x, LABELS, logits=-sq_l2(x, x) / T, inside=True, spread=False),
        LABELLED,
    ),
    Row(
        "s0.12a",
        "SimCLR NT-Xent",
        2020,
        "nt_xent(view_a, view_b)",
        lambda T, a, b: co.nt_xent(a, b, temperature=T),
        nt_xent,
        PAIR,
        basis=PAPER,
    ),
    Row(
        "s0.12a+",
        "NT-Xent over three views",
        2020,
        "nt_xent(a, b, c)",
        lambda T, *v: co.nt_xent(*v, temperature=T),
        nt_xent,
        TRIPLE,
    ),
    Row(
        "s0.23",
        "Multilingual USE, translation task",
        2019,
        "info_nce(query, key, margin=m, symmetric=True)",
        lambda T, a, b: co.info_nce(a, b, temperature=T, margin=0.3, symmetric=True),
        margin_both,
        PAIR,
        "The NLI head is `PairSoftmaxLoss`.",
        PAPER,
    ),
    Row("s0.32", "Next-sentence SimCSE", 2021, "info_nce(s, next)", info_nce, nce, PAIR),
    Row(
        "s0.34",
        "Two-tower retrieval, popularity correction",
        2022,
        "sampled_softmax(query, key, key_log_probability)",
        lambda T, u, v: co.sampled_softmax(u, v, LOG_P, temperature=T),
        popularity,
        PAIR,
        basis=PAPER,
    ),
    Row(
        "s0.36",
        "CLIP",
        2021,
        "info_nce(image, text, symmetric=True, temperature=T)",
        lambda T, a, b: co.info_nce(a, b, temperature=T, symmetric=True),
        lambda T, a, b: (ce(cos(a, b) / T) + ce(cos(b, a) / T)) / 2,
        PAIR,
    ),
    Row(
        "s1",
        "Quick-Thought",
        2018,
        "quick_thought(sentences, contexts)",
        lambda T, f, g: co.quick_thought(f, g, temperature=T),
        quick_thought,
        PAIR,
        "`excluded_logit=0` as in the authors' code; None leaves the own logit out.",
    ),
    Row(
        "s1+",
        "Quick-Thought, own logit left out, window 2",
        2018,
        "quick_thought(s, c, window=2, excluded_logit=None)",
        lambda T, f, g: co.quick_thought(f, g, temperature=T, window=2, excluded_logit=None),
        lambda T, f, g: _banded_without_diagonal(T, f, g),
        PAIR,
    ),
    Row(
        "002#1",
        "GCSE",
        2024,
        "gaussian_decay_nce(query, key, negatives, guide)",
        lambda T, a, b, c: co.gaussian_decay_nce(a, b, c, GUIDE, temperature=T, decay_width=0.8),
        gcse,
        TRIPLE,
        "`decay_width` is in logits.",
        stops_gradient=True,
    ),
    Row(
        "002#2",
        "MCSE",
        2022,
        "info_nce(z1, z2) + 0.01 * (info_nce(g1, v) + info_nce(g2, v)) / 2",
        lambda T, a, b, v: (
            co.info_nce(a, b, temperature=T)
            + 0.01 * (co.info_nce(a, v, temperature=T) + co.info_nce(b, v, temperature=T)) / 2
        ),
        lambda T, a, b, v: nce(T, a, b) + 0.005 * (nce(T, a, v) + nce(T, b, v)),
        TRIPLE,
    ),
    Row(
        "002#3",
        "DiffCSE",
        2022,
        "info_nce(z1, z2)",
        info_nce,
        nce,
        PAIR,
        "The contrastive term; replaced-token detection is the model's.",
    ),
    Row(
        "002#4",
        "SG-OPT",
        2021,
        "own_positive_nce(query, positives)",
        lambda T, c, h: co.own_positive_nce(c, h, temperature=T),
        sg_opt,
        rows_of((), (4, D), (4, 3, D)),
        "Mean over layers where the authors add them up.",
    ),
    Row(
        "002#7",
        "DeCLUTR",
        2020,
        "nt_xent(anchor, mean_of_positive_spans)",
        lambda T, a, b: co.nt_xent(a, b, temperature=T),
        nt_xent,
        PAIR,
        "MLM apart; without the authors' factor `world_size`, which undoes an average over ranks.",
    ),
    Row(
        "002#8",
        "CLEAR",
        2020,
        "nt_xent(view_a, view_b)",
        lambda T, a, b: co.nt_xent(a, b, temperature=T),
        nt_xent,
        PAIR,
        "MLM apart.",
        ABSTRACT,
    ),
    Row("002#9", "SimCSE, unsupervised", 2021, "info_nce(z1, z2)", info_nce, nce, PAIR),
    Row(
        "002#9+",
        "SimCSE, supervised, weight of the own hard negative",
        2021,
        "info_nce(z1, z2, z3[:, None], own_negative_log_weight=math.log(alpha))",
        lambda T, a, b, c: co.info_nce(
            a, b, c.unsqueeze(1), temperature=T, own_negative_log_weight=0.7
        ),
        lambda T, a, b, c: ce(torch.cat([cos(a, b) / T, cos(a, c) / T + 0.7 * EYE], 1)),
        TRIPLE,
    ),
    Row(
        "002#10",
        "DebCSE",
        2023,
        "info_nce(z1, z2, sampled_negatives, row_weight=w)",
        lambda T, a, b, c: co.info_nce(a, b, c, temperature=T, row_weight=QUALITY),
        lambda T, a, b, c: (
            (
                torch.nn.functional.cross_entropy(
                    cos(a, torch.cat([b, c])) / T, torch.arange(N), reduction="none"
                )
                * QUALITY
            ).sum()
            / QUALITY.sum()
        ),
        TRIPLE,
        "The inverse-propensity sampler chooses the rows.",
        ABSTRACT,
    ),
    Row(
        "002#13",
        "miCSE",
        2022,
        "info_nce(z1, z2)",
        info_nce,
        nce,
        PAIR,
        "The contrastive term; attention mutual information needs the encoder's maps.",
    ),
    Row("002#14", "SynCSE", 2023, "info_nce(z1, z2, z3)", info_nce3, nce3, TRIPLE),
    Row(
        "002#16",
        "CLHAIF, smoothed over all",
        2023,
        "ai_feedback_nce(query, key, quality)",
        lambda T, a, b: co.ai_feedback_nce(a, b, QUALITY, temperature=T),
        clhaif,
        PAIR,
        "Targets of `smoothing='positive'` do not sum to 1.",
    ),
    Row(
        "002#16+",
        "CLHAIF, graded positives",
        2023,
        "ai_feedback_nce(query, key, quality, smoothing='positive')",
        lambda T, a, b: co.ai_feedback_nce(a, b, QUALITY, temperature=T, smoothing="positive"),
        lambda T, a, b: clhaif(T, a, b, "positive"),
        PAIR,
    ),
    Row(
        "002#17",
        "DCLR, as in the paper",
        2022,
        "threshold_guided_nce(query, key, noise, guide=(gq, gk))",
        lambda T, a, b, c: co.threshold_guided_nce(
            a, b, c, guide=GUIDE, guide_threshold=0.5, temperature=T
        ),
        dclr,
        TRIPLE,
        "The noise gets gradient; its ascent steps are the caller's.",
    ),
    Row(
        "002#17+",
        "DCLR, as in the authors' code",
        2022,
        "threshold_guided_nce(..., objective='softmax_bce', excluded_logit=0)",
        lambda T, a, b, c: co.threshold_guided_nce(
            a,
            b,
            c,
            guide=GUIDE,
            guide_threshold=0.5,
            temperature=T,
            objective="softmax_bce",
            excluded_logit=0,
        ),
        lambda T, a, b, c: dclr(T, a, b, c, code=True),
        TRIPLE,
        "Logarithms are not clamped at -100.",
    ),
    Row("002#18", "PromptBERT", 2022, "info_nce(z1, z2)", info_nce, nce, PAIR),
    Row(
        "002#22",
        "Sub-sentence encoder",
        2023,
        "sup_con(propositions, labels, temperature=0.01)",
        lambda T, x: co.sup_con(x, LABELS, temperature=T),
        lambda T, x: _one_set(T, x, LABELS),
        LABELLED,
    ),
    Row(
        "002#24",
        "GIRCSE",
        2025,
        "losses of prefixes, their mean + relu(log(later) - log(earlier)).mean()",
        lambda T, a, b, c: gircse([info_nce(T, a, b), info_nce(T, a, c), info_nce(T, b, c)]),
        lambda T, a, b, c: gircse([nce(T, a, b), nce(T, a, c), nce(T, b, c)]),
        TRIPLE,
        "One info_nce a prefix of soft tokens.",
    ),
    Row(
        "002#25",
        "ConSERT",
        2021,
        "2 * nt_xent(view_a, view_b)",
        lambda T, a, b: 2 * co.nt_xent(a, b, temperature=T),
        conSERT,
        PAIR,
        "Sides are added up: twice the mean.",
    ),
    Row(
        "002#28",
        "CompCSE",
        2023,
        "info_nce(z, (z_left + z_right) / 2, matryoshka_dims=[256])",
        lambda T, a, b, c: co.info_nce(a, (b + c) / 2, temperature=T, matryoshka_dims=[3]),
        lambda T, a, b, c: nce(T, a[:, :3], (b[:, :3] + c[:, :3]) / 2),
        TRIPLE,
    ),
    Row("002#30", "DenoSent", 2024, "info_nce(z1, z2)", info_nce, nce, PAIR, "Decoder loss apart."),
    Row(
        "002#32",
        "MultiCSR",
        2023,
        "threshold_guided_nce(z1, z2, z3, objective='softmax_bce', excluded_logit=0, guide=...)",
        lambda T, a, b, c: co.threshold_guided_nce(
            a,
            b,
            c,
            guide=GUIDE,
            guide_threshold=0.5,
            temperature=T,
            objective="softmax_bce",
            excluded_logit=0,
        ),
        lambda T, a, b, c: dclr(T, a, b, c, code=True),
        TRIPLE,
    ),
    Row(
        "002#34",
        "GTE",
        2023,
        "joint_nce(query, key)",
        lambda T, a, b: co.joint_nce(a, b, temperature=T),
        gte,
        PAIR,
        "The pair counts twice; `pair_counts=1` for once: what the authors ran is not public.",
        PAPER,
    ),
    Row(
        "002#34+",
        "GTE, pair counted once",
        2023,
        "joint_nce(query, key, pair_counts=1)",
        lambda T, a, b: co.joint_nce(a, b, temperature=T, pair_counts=1),
        lambda T, a, b: gte(T, a, b, once=True),
        PAIR,
        basis=PAPER,
    ),
    Row(
        "002#35",
        "Time Control",
        2022,
        "brownian_bridge_nce(start, middle, end, *times)",
        lambda *z: co.brownian_bridge_nce(*z, *TIMES),
        bridge,
        rows_of((N, D), (N, D), (N, D)),
        "The pins are `F.mse_loss`.",
    ),
    Row(
        "002#36",
        "PEARL",
        2024,
        "nt_xent(phrase, augmented, positives_in_denominator=False)",
        lambda T, a, b: co.nt_xent(a, b, temperature=T, positives_in_denominator=False),
        nt_xent,
        PAIR,
        "The classification of types is a plain cross-entropy.",
    ),
    Row(
        "002#42",
        "Adapters for domain adaptation",
        2023,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#44",
        "Sentence-T5",
        2021,
        "info_nce(query, key, negatives)",
        info_nce3,
        nce3,
        TRIPLE,
        basis=PAPER,
    ),
    Row("002#46", "PromptEOL", 2023, "info_nce(z1, z2, z3)", info_nce3, nce3, TRIPLE),
    Row(
        "002#47",
        "Style embeddings (SCL)",
        2026,
        "sup_con(embeddings, labels)",
        lambda T, x: co.sup_con(x, LABELS, temperature=T),
        lambda T, x: _one_set(T, x, LABELS),
        LABELLED,
        basis=ABSTRACT,
    ),
    Row("002#51", "LM-STS-CFT", 2024, "info_nce(z1, z2, z3)", info_nce3, nce3, TRIPLE),
    Row(
        "002#52",
        "Topic modelling, setwise",
        2024,
        "info_nce(pooled_a, pooled_b)",
        info_nce,
        nce,
        PAIR,
        "ELBO and gradient combination apart.",
        ABSTRACT,
    ),
    Row(
        "002#53",
        "Universal Sentence Encoder",
        2018,
        "info_nce(query, response)",
        info_nce,
        nce,
        PAIR,
    ),
    Row(
        "002#60",
        "RCL, further views as positives",
        2022,
        "info_nce(query, key, positives=index)",
        lambda T, a, b: co.info_nce(a, b, temperature=T, positives=INDEX),
        several,
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#61",
        "SARCSE",
        2024,
        "info_nce(z1, z2)",
        info_nce,
        nce,
        PAIR,
        "Auto-encoder apart.",
        ABSTRACT,
    ),
    Row(
        "002#69",
        "LM-CPPF",
        2023,
        "sup_con(embeddings, labels)",
        lambda T, x: co.sup_con(x, LABELS, temperature=T),
        lambda T, x: _one_set(T, x, LABELS),
        LABELLED,
        basis=ABSTRACT,
    ),
    Row(
        "002#73",
        "Compute-optimal recipe",
        2024,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#74",
        "Mined paraphrases",
        2022,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#78",
        "Inference via interpolation",
        2024,
        "squared_l2_nce(query, key, temperature=2, symmetric=True)",
        lambda T, a, b: co.squared_l2_nce(a, b, temperature=T, symmetric=True),
        lambda T, a, b: (ce(-sq_l2(a, b) / T) + ce(-sq_l2(b, a) / T)) / 2,
        PAIR,
        basis=PAPER,
    ),
    Row(
        "002#82",
        "Supervised graph contrastive",
        2021,
        "soft_target_nce(query, key, targets)",
        lambda T, a, b: co.soft_target_nce(a, b, TARGETS, temperature=T),
        lambda T, a, b: -(TARGETS * (cos(a, b) / T).log_softmax(1)).sum(1).mean(),
        PAIR,
        "Rows of the targets need not sum to 1.",
        ABSTRACT,
    ),
    Row("002#92", "LCO-Emb", 2025, "info_nce(query, key)", info_nce, nce, PAIR, basis=ABSTRACT),
    Row(
        "002#95",
        "Embed and cluster",
        2024,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        "The sampler is apart.",
    ),
    Row("002#97", "m-ST5", 2024, "info_nce(z1, z2, z3)", info_nce3, nce3, TRIPLE, basis=PAPER),
    Row(
        "002#104",
        "LM-SupCon",
        2022,
        "sup_con(cat(views), labels, temperature=0.07)",
        lambda T, x: co.sup_con(x, LABELS, temperature=T),
        lambda T, x: _one_set(T, x, LABELS),
        LABELLED,
    ),
    Row(
        "002#102",
        "CoMa, second stage",
        2025,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        "The first stage, compression, is the model's.",
        ABSTRACT,
    ),
    Row(
        "002#106",
        "TPP-LLM-Embedding",
        2024,
        "info_nce(query, key)",
        info_nce,
        nce,
        PAIR,
        basis=ABSTRACT,
    ),
    Row(
        "002#117",
        "MuCo",
        2026,
        "info_nce(query, key, query_ids=image, key_ids=image)",
        lambda T, a, b: co.info_nce(a, b, temperature=T, query_ids=GROUPS, key_ids=GROUPS),
        lambda T, a, b: ce(
            (cos(a, b) / T).masked_fill((GROUPS.unsqueeze(1) == GROUPS) & ~DIAGONAL, -math.inf)
        ),
        PAIR,
        "One call a turn.",
    ),
    Row(
        "002#118",
        "Arora et al., logistic",
        2019,
        "info_nce(f_x, f_positive, f_negatives, normalize=False, temperature=1, in_batch=False)",
        lambda a, b, c: co.info_nce(a, b, c, temperature=1, normalize=False, in_batch=False),
        lambda a, b, c: torch.log1p((a @ c.T - (a * b).sum(1, keepdim=True)).exp().sum(1)).mean(),
        rows_of((N, D), (N, D), (4, D)),
        basis=PAPER,
    ),
    Row(
        "x4",
        "SupCon, sum inside the logarithm",
        2020,
        "sup_con(embeddings, labels, sum_over_positives='in')",
        lambda T, x: co.sup_con(x, LABELS, temperature=T, sum_over_positives="in"),
        lambda T, x: _one_set(T, x, LABELS, inside=True),
        LABELLED,
    ),
    Row(
        "x5",
        "SupCon, own denominators (pytorch-metric-learning's NT-Xent)",
        2020,
        "sup_con(embeddings, labels, positives_in_denominator=False)",
        lambda T, x: co.sup_con(x, LABELS, temperature=T, positives_in_denominator=False),
        lambda T, x: _one_set(T, x, LABELS, own=True),
        LABELLED,
        "Mean over a row's positives, then over rows; theirs is over all pairs.",
    ),
    Row(
        "x6",
        "Decoupled contrastive loss (DCL)",
        2022,
        "decoupled_nce(view_a, view_b)",
        lambda T, a, b: co.decoupled_nce(a, b, temperature=T),
        dcl,
        PAIR,
    ),
    Row(
        "x7",
        "DCLW",
        2022,
        "decoupled_nce(view_a, view_b, positive_weight_width=0.5)",
        lambda T, a, b: co.decoupled_nce(a, b, temperature=T, positive_weight_width=0.5),
        lambda T, a, b: dcl(T, a, b, sigma=0.5),
        PAIR,
        "Weights over the N pairs, not differentiated.",
        stops_gradient=True,
    ),
    Row(
        "x8",
        "Debiased contrastive loss",
        2020,
        "debiased_nce(view_a, view_b)",
        lambda T, a, b: co.debiased_nce(a, b, temperature=T),
        debiased,
        PAIR,
    ),
    Row(
        "x9",
        "Hard negative samples (Robinson)",
        2021,
        "debiased_nce(view_a, view_b, hardness=1)",
        lambda T, a, b: co.debiased_nce(a, b, temperature=T, hardness=1.0),
        lambda T, a, b: debiased(T, a, b, beta=1.0),
        PAIR,
    ),
    *[
        Row(
            f"x10 {which}",
            f"Hardness-weighted negatives, {which}",
            2025,
            f"hardness_weighted_nce(query, key, negatives, hardness_of={which!r})",
            lambda T, a, b, c, which=which: co.hardness_weighted_nce(
                a, b, c, temperature=T, hardness=2.0, hardness_of=which
            ),
            lambda T, a, b, c, which=which: hardness(T, a, b, c, which=which),
            TRIPLE,
            once_differentiable=True,
            stops_gradient=True,
        )
        for which in ("all", "in_batch", "negatives")
    ],
    Row(
        "x11",
        "UniCL",
        2022,
        "uni_cl(image, text, image_labels, text_labels)",
        lambda T, a, b: co.uni_cl(a, b, LABELS, OTHER_LABELS, temperature=T),
        uni_cl,
        rows_of((), (7, D), (5, D)),
        "Mean of both directions where the authors add them up.",
    ),
    Row(
        "x12",
        "Soft targets by index",
        "-",
        "soft_target_nce(query, key, targets, index=index)",
        lambda T, a, b: co.soft_target_nce(a, b, TARGETS[:, :2], index=INDEX, temperature=T),
        lambda T, a, b: (
            -sum(
                TARGETS[i, c] * (cos(a, b) / T).log_softmax(1)[i, p]
                for i, row in enumerate(INDEX)
                for c, p in enumerate(row)
                if p >= 0
            )
            / N
        ),
        PAIR,
    ),
]


def _banded_without_diagonal(T, f, g):
    logits = (f @ g.T / T).masked_fill(DIAGONAL, -math.inf)
    log_p = logits.log_softmax(1).masked_fill(DIAGONAL, 0.0)
    gap = (torch.arange(N).unsqueeze(1) - torch.arange(N)).abs()
    near = ((gap > 0) & (gap <= 2)).double()
    return -(near / near.sum(1, keepdim=True) * log_p).sum(1).mean()


assert len({row.id for row in ROWS}) == len(ROWS)
