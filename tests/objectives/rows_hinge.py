"""Rows of triplet and hinge losses."""

from __future__ import annotations

import itertools

import torch
from row import CODE, PAPER, Row, cos, l2, rows_of, sq_l2, unit

import contrastive_ops as co

N, D = 6, 5
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 0])
LABELLED = rows_of((9, D))
TRIPLE = rows_of((N, D), (N, D), (N, D))
DIAGONAL = torch.eye(N, dtype=torch.bool)
DISTANCES = {"sq_l2": sq_l2, "l2": l2, "cosine": lambda x, y: 1 - cos(x, y)}


def triplets(labels):
    n = len(labels)
    for a, p in itertools.permutations(range(n), 2):
        if labels[a] == labels[p]:
            for k in range(n):
                if labels[k] != labels[a]:
                    yield a, p, k


def mined(x, mining, margin=0.2, distance="sq_l2", labels=LABELS, reduction="mean"):
    """By lists of triplets."""
    d = DISTANCES[distance](unit(x), unit(x))
    chosen = []
    for a in range(len(x)):
        of_a = [(p, k) for b, p, k in triplets(labels) if a == b]
        positives = sorted({p for p, _ in of_a})
        negatives = sorted({k for _, k in of_a})
        if not positives or not negatives:
            continue
        if mining == "all":
            chosen += [(a, p, k) for p, k in of_a]
        elif mining == "semi-hard":
            for p in positives:
                farther = [k for k in negatives if d[a, k] > d[a, p]]
                if farther:
                    chosen.append((a, p, min(farther, key=lambda k: d[a, k].item())))
                else:
                    chosen.append((a, p, max(negatives, key=lambda k: d[a, k].item())))
        else:
            pick = max if mining == "hard" else min
            p = pick(positives, key=lambda p: d[a, p].item())
            chosen.append((a, p, min(negatives, key=lambda k: d[a, k].item())))
    losses = torch.stack([(d[a, p] - d[a, k] + margin).clamp(min=0) for a, p, k in chosen])
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (len(losses) if reduction == "mean" else (losses > 0).sum())


def given(metric, margin):
    def loss(a, p, n):
        return (metric(a, p).diagonal() - metric(a, n).diagonal() + margin).clamp(min=0).mean()

    return loss


def lifted(x, margin=1.0):
    d = l2(x, x)
    total, count = 0.0, 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if LABELS[i] == LABELS[j]:
            others = torch.cat(
                [margin - d[i][LABELS[i] != LABELS], margin - d[j][LABELS[j] != LABELS]]
            )
            total = total + (d[i, j] + others.logsumexp(0)).clamp(min=0).square()
            count += 1
    return total / (2 * count)


def energy(q, k, n, margin=0.2):
    s = torch.cat([cos(q, k).masked_fill(DIAGONAL, -9.0), cos(q, n)], 1)
    return (margin - cos(q, k).diagonal() + s.amax(1)).clamp(min=0).mean()


def band(gap, alpha, beta):
    return (gap + alpha).relu() + (-gap - beta).relu()


CLUSTERS = torch.tensor([0, 1, 0, 0, 2, 1])


def cluster(q, k):
    s = cos(q, k)
    same = (CLUSTERS.unsqueeze(1) == CLUSTERS) & ~DIAGONAL
    return band((s - s.diagonal().unsqueeze(1)) * same, 0.2, 0.5).mean()


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()


def simctg(h, margin=0.5):
    terms = []
    for states, mask in zip(h, MASK, strict=True):
        c = cos(states[mask], states[mask])
        off = ~torch.eye(len(c), dtype=torch.bool)
        terms.append((margin - c.diagonal().unsqueeze(1) + c).clamp(min=0)[off])
    return torch.cat(terms).mean()


Y = torch.tensor([1.0, 0, 1, 1, 0, 0], dtype=torch.float64)


def ccl(u, v, margin=0.5):
    d = 1 - cos(u, v).diagonal()
    return ((Y * d**2 + (1 - Y) * (margin - d).relu() ** 2) / 2).mean()


ROWS = [
    Row(
        "s0.7",
        "FaceNet triplet, semi-hard",
        2015,
        "triplet_margin(embeddings, labels)",
        lambda x: co.triplet_margin(x, LABELS),
        lambda x: mined(x, "semi-hard"),
        LABELLED,
        "Deterministic: the nearest negative beyond the positive, else the farthest. "
        "`mining='violator'` draws one of those with a positive loss, as the popular port does.",
    ),
    *[
        Row(
            f"s0.7 {mining} {distance}",
            f"Triplet, {mining}, {distance}",
            2017,
            f"triplet_margin(embeddings, labels, mining={mining!r}, distance={distance!r})",
            lambda x, mining=mining, distance=distance: co.triplet_margin(
                x, LABELS, mining=mining, distance=distance, margin=0.3
            ),
            lambda x, mining=mining, distance=distance: mined(x, mining, 0.3, distance),
            LABELLED,
        )
        for mining in ("all", "hard", "semi-hard", "easy")
        for distance in ("sq_l2", "l2", "cosine")
    ],
    Row(
        "s0.8",
        "Lifted structure",
        2016,
        "lifted_structure(embeddings, labels)",
        lambda x: co.lifted_structure(x, LABELS),
        lifted,
        LABELLED,
    ),
    Row(
        "002#6",
        "PromCSE",
        2022,
        "info_nce(z1, z2, z3) + 10 * energy_hinge(z1, z2, z3)",
        lambda a, b, c: co.info_nce(a, b, c) + 10 * co.energy_hinge(a, b, c),
        lambda a, b, c: (
            torch.nn.functional.cross_entropy(cos(a, torch.cat([b, c])) / 0.05, torch.arange(N))
            + 10 * energy(a, b, c)
        ),
        TRIPLE,
    ),
    Row(
        "002#37",
        "Phrase-BERT",
        2021,
        "triplet(anchor, positive, negative, margin=5)",
        lambda *x: co.triplet(*x, margin=5),
        given(l2, 5),
        TRIPLE,
    ),
    Row(
        "002#45",
        "CWM",
        2023,
        "triplet(w, c, other, distance='dot')",
        lambda *x: co.triplet(*x, distance="dot"),
        given(lambda x, y: -(x @ y.T), 1),
        TRIPLE,
        basis=PAPER,
    ),
    Row(
        "002#49",
        "SimCTG",
        2022,
        "token_hinge(tokens, mask)",
        lambda h: co.token_hinge(h, MASK),
        simctg,
        rows_of((3, 5, 4)),
        "The mean over all valid pairs of the batch; MLE apart.",
    ),
    Row(
        "002#50c",
        "SBERT triplet",
        2019,
        "triplet(anchor, positive, negative)",
        lambda *x: co.triplet(*x),
        given(l2, 1),
        TRIPLE,
        basis=PAPER,
    ),
    Row(
        "002#67",
        "ClusterNS",
        2023,
        "info_nce(z1, z2, centroids) + 1e-4 * cluster_band_hinge(z1, z2, clusters)",
        lambda a, b, c: (
            co.info_nce(a, b, c.detach())
            + 0.1 * co.cluster_band_hinge(a, b, CLUSTERS)
            + 0 * c.sum()
        ),
        lambda a, b, c: (
            torch.nn.functional.cross_entropy(
                cos(a, torch.cat([b, c.detach()])) / 0.05, torch.arange(N)
            )
            + 0.1 * cluster(a, b)
            + 0 * c.sum()
        ),
        TRIPLE,
        "Pairs of different clusters count the constant of a zero gap, as in the authors' code.",
        stops_gradient=True,
    ),
    Row(
        "002#76b",
        "Triple-encoders, NLI contrastive term",
        2024,
        "pair_contrastive(u, v, targets)",
        lambda u, v: co.pair_contrastive(u, v, Y),
        ccl,
        rows_of((N, D), (N, D)),
    ),
    Row(
        "002#118b",
        "Arora et al., hinge",
        2019,
        "triplet(f_x, f_positive, f_negative, distance='dot')",
        lambda *x: co.triplet(*x, distance="dot"),
        lambda x, p, n: (1 - (x * (p - n)).sum(1)).clamp(min=0).mean(),
        TRIPLE,
        basis=PAPER,
    ),
    Row(
        "x1",
        "SNCSE",
        2022,
        "info_nce(z1, z2) + w * band_hinge(z1, z2, z3)",
        lambda a, b, c: co.info_nce(a, b) + co.band_hinge(a, b, c),
        lambda a, b, c: (
            torch.nn.functional.cross_entropy(cos(a, b) / 0.05, torch.arange(N))
            + band(cos(a, c).diagonal() - cos(a, b).diagonal(), 0.1, 0.3).mean()
        ),
        TRIPLE,
        basis=CODE,
    ),
    Row(
        "x14",
        "N-pair",
        2016,
        "n_pair(anchor, positive, l2_weight=w)",
        lambda a, b: co.n_pair(a, b, l2_weight=0.1),
        lambda a, b: (
            torch.nn.functional.cross_entropy(a @ b.T, torch.arange(N))
            + 0.1 * (a.square().sum(1) + b.square().sum(1)).mean() / 2
        ),
        rows_of((N, D), (N, D)),
    ),
]
