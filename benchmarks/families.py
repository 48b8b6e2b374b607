"""The suites of single families: each objective against dense PyTorch and the libraries' own.

Every comparison is one objective on one set of inputs, as a trained encoder leaves them: rows lie
around centres, and what belongs together lies close. Steps are forward and backward. Rows of
results have the keys of the other suites; errors are against the formula in float64.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .command import OtherSuite
from .machine import available_memory
from .memory import _peak_rise, _trim
from .timing import Times, interleave
from .variants import Unavailable

Row = dict[str, Any]
Say = Callable[[str], None]
Loss = Callable[..., Tensor]
Sum = Callable[..., tuple[Tensor, Any]]
OURS = "contrastive-ops"
_SAFE_SHARE = 0.6
_ROWS = 512


@dataclass(frozen=True)
class Variant:
    """How to build the loss; about how many bytes a step takes, which may be too many."""

    build: Callable[[Row], Loss]
    bytes: Callable[[Row], float] = lambda case: 0.0


@dataclass(frozen=True)
class Comparison:
    """One objective: its case, inputs, variants (the first is the one all are compared with).

    ``exact(case)`` is a function (*leaves, rows) -> (sum of some rows' losses, how many count): the
    loss is the ratio of both sums over all rows, or ``closing`` of the sum alone. ``n`` of the case
    is the number of rows.
    """

    what: str
    case: Row
    leaves: Callable[[Row], list[Tensor]]
    variants: dict[str, Variant]
    exact: Callable[[Row], Sum]
    closing: Callable[[float], float] | None = None


# ---- running


def measure(suite: str, quick: bool, say: Say) -> list[Row]:
    """All comparisons of the suite."""
    rows = []
    for i, comparison in enumerate(SUITES[suite][1](quick)):
        rows += _measure(suite, i, comparison, quick, say)
    return rows


def _measure(suite: str, index: int, c: Comparison, quick: bool, say: Say) -> list[Row]:
    rows: dict[str, Row] = {}
    runners: dict[str, Callable[[], Tensor]] = {}
    for name, variant in c.variants.items():
        rows[name] = {"what": c.what, "case": c.case, "variant": name}
        rows[name]["ours"] = name.startswith(OURS)
        try:
            need, free = variant.bytes(c.case), available_memory()
            if need > _SAFE_SHARE * free:
                gibibytes = f"{need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
                raise Unavailable(f"needs about {gibibytes}")
            runners[name] = Step(variant.build(c.case), c.leaves(c.case))
        except Unavailable as reason:
            rows[name]["unavailable"] = str(reason)
    say("float64 oracle")
    exact = solve(c)
    for name, run in runners.items():
        say(f"{name}: error")
        rows[name]["errors"] = None if name.endswith("one width") else errors(run, exact)
    budget, rounds = (0.2, 2) if quick else (15.0, 5)
    times = interleave(
        runners, budget=budget, min_rounds=rounds, max_rounds=15, sample=0.05, tick=say
    )
    runners.clear()
    gc.collect()
    for name in c.variants:
        if "unavailable" in rows[name]:
            continue
        rows[name] |= _summary(times, name, next(iter(c.variants)))
        say(f"{name}: memory")
        rows[name]["peak_memory_bytes"] = _measure_memory(suite, index, name, quick)
    return list(rows.values())


class Step:
    """One forward and backward on leaves of its own."""

    def __init__(self, loss: Loss, leaves: list[Tensor]) -> None:
        self.loss, self.leaves = loss, [x.requires_grad_(x.is_floating_point()) for x in leaves]

    def __call__(self) -> Tensor:
        for x in self.leaves:
            x.grad = None
        loss = self.loss(*self.leaves)
        loss.backward()
        return loss.detach()


def solve(c: Comparison) -> tuple[float, list[Tensor]]:
    """Loss and gradients in float64, some rows at a time."""
    leaves = [x.double() if x.is_floating_point() else x for x in c.leaves(c.case)]
    floats = [x.requires_grad_() for x in leaves if x.is_floating_point()]
    function = c.exact(c.case)
    total, count = 0.0, 0.0
    rows = c.case.get("exact_rows", _ROWS)
    for start in range(0, c.case["n"], rows):
        value, counted = function(*leaves, slice(start, min(start + rows, c.case["n"])))
        value.backward()
        total += value.item()
        count += float(counted)
    grads = [x.grad for x in floats if x.grad is not None]
    if c.closing is not None:  # of which the derivative is that of the logarithm
        return c.closing(total), [grad / (1 + total) for grad in grads]
    return total / count, [grad / count for grad in grads]


def errors(run: Any, exact: tuple[float, list[Tensor]]) -> dict[str, float]:
    """Of the loss, relative; of the gradients, by norm, the worst leaf."""
    loss = run().double().item()
    grads = [x.grad for x in run.leaves if x.grad is not None]
    worst = max(
        ((mine.double() - true).norm() / true.norm()).item()
        for mine, true in zip(grads, exact[1], strict=True)
    )
    return {"loss": abs(loss - exact[0]) / max(abs(exact[0]), 1e-300), "gradient": worst}


def _summary(times: Times, name: str, base: str) -> Row:
    return {
        "seconds": times.median(name),
        "seconds_spread": times.spread(name),
        "rounds": len(times.seconds[name]),
        "ratio_to_ours": times.ratio(name, base),
    }


def summarize(row: Row) -> str:
    """A row in one line."""
    line = f"  {row['what']:<44} {row['variant']:<46}"
    if "unavailable" in row:
        return f"{line} -- {row['unavailable']}"
    line += f" {row['seconds'] * 1e3:9.2f} ms {row['ratio_to_ours']:7.2f}x"
    if row["errors"]:
        line += f"  error {row['errors']['loss']:.0e}, gradient {row['errors']['gradient']:.0e}"
    return f"{line} {row['peak_memory_bytes'] / 2**20:8.0f} MiB"


# ---- memory


def _measure_memory(suite: str, index: int, name: str, quick: bool) -> int:
    """Bytes that one step needs beyond inputs and gradients, in a process of its own."""
    order = {"suite": suite, "index": index, "variant": name, "quick": quick}
    order["threads"] = torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "contrastive_ops.benchmarks.families", json.dumps(order)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"measuring the memory of {name!r} failed: {reason[-1]}")
    return int(done.stdout.splitlines()[-1])


def measure_here(c: Comparison, name: str) -> int:
    """The same in this process, which should be a fresh one."""
    variant = c.variants[name]
    small = c.case | {"n": min(c.case["n"], 16)}
    Step(variant.build(small), c.leaves(small))()
    run = Step(variant.build(c.case), c.leaves(c.case))
    gc.collect()
    _trim()
    rise = _peak_rise(run)
    grads = sum(x.grad.numel() * x.grad.element_size() for x in run.leaves if x.grad is not None)
    return max(0, rise - grads)


def main() -> None:
    """Entry of that process."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    comparison = SUITES[order["suite"]][1](order["quick"])[order["index"]]
    print(measure_here(comparison, order["variant"]))


# ---- inputs


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pairs(case: Row) -> list[Tensor]:
    """Two views (n, dim) of the same samples, which lie around centres for 16 of them."""
    generator, n, dim = _generator(), case["n"], case["dim"]

    def directions(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)

    centres = directions(max(1, n // 16))
    owner = torch.randint(len(centres), (n,), generator=generator)
    key = F.normalize(centres[owner] + 0.8 * directions(n), dim=1)
    return [F.normalize(key + 0.6 * directions(n), dim=1), key]


def labelled(case: Row) -> list[Tensor]:
    """Rows (n, dim) around the centres of their classes of 8, and the classes."""
    generator, n, dim = _generator(), case["n"], case["dim"]
    labels = torch.arange(n) // 8
    centres = F.normalize(torch.randn(n // 8, dim, generator=generator), dim=1)
    noise = F.normalize(torch.randn(n, dim, generator=generator), dim=1)
    return [F.normalize(centres[labels] + 1.2 * noise, dim=1), labels]


def tokens(case: Row) -> list[Tensor]:
    """Unit token embeddings of queries and documents, (n, Lq, dim) and (n, Ld, dim)."""
    generator, n = _generator(), case["n"]
    return [
        F.normalize(torch.randn(n, length, case["dim"], generator=generator), dim=2)
        for length in (case["query_tokens"], case["key_tokens"])
    ]


def graded(case: Row) -> list[Tensor]:
    """Cosines of n pairs and their grades, of which there are 26."""
    generator = _generator()
    grades = torch.randint(0, 26, (case["n"],), generator=generator)
    noise = 0.3 * torch.randn(case["n"], generator=generator)
    return [(grades / 25 + noise).clamp(-1, 1), grades]


# ---- NT-Xent


def _nt_xent(quick: bool) -> list[Comparison]:
    large: Row = {"n": 256 if quick else 4096, "dim": 256, "temperature": 0.5}
    small: Row = {"n": 64 if quick else 256, "dim": 256, "temperature": 0.5}

    def ours(case: Row) -> Loss:
        from contrastive_ops import nt_xent

        return partial(nt_xent, temperature=case["temperature"])

    def dense(case: Row) -> Loss:
        n, scale = case["n"], 1 / case["temperature"]
        target = torch.arange(2 * n).roll(n)
        itself = torch.eye(2 * n, dtype=torch.bool)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            rows = F.normalize(torch.cat([a, b]), dim=1)
            logits = (rows @ rows.T * scale).masked_fill(itself, -torch.inf)
            return F.cross_entropy(logits, target)

        return loss

    def metric_learning(case: Row) -> Loss:
        losses = _imported("pytorch_metric_learning.losses")
        function = losses.SelfSupervisedLoss(losses.NTXentLoss(case["temperature"]))
        return lambda a, b: function(a, b)

    def exact(case: Row) -> Sum:
        n, scale = case["n"], 1 / case["temperature"]

        def rows(a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, int]:
            every = torch.cat([a, b])
            every = every / every.norm(dim=1, keepdim=True)
            row = torch.arange(part.start, part.stop)
            row = torch.cat([row, row + n])
            logits = every[row] @ every.T * scale
            logits = logits.masked_fill(row.unsqueeze(1) == torch.arange(2 * n), -torch.inf)
            return F.cross_entropy(logits, (row + n) % (2 * n), reduction="sum"), len(row)

        return rows

    def both(case: Row) -> float:
        return 6.0 * (2 * case["n"]) ** 2 * 4

    def listed(case: Row) -> float:  # every pair of a positive and a negative pair
        return 5.0 * 8 * case["n"] ** 3 * 4

    return [
        Comparison(
            f"NT-Xent, 2 x {large['n']} views, D = {large['dim']}",
            large,
            pairs,
            {OURS: Variant(ours), "PyTorch, dense": Variant(dense, both)},
            exact,
        ),
        Comparison(
            f"NT-Xent, 2 x {small['n']} views, D = {small['dim']}",
            small,
            pairs,
            {
                OURS: Variant(ours),
                "PyTorch, dense": Variant(dense),
                "pytorch-metric-learning, NTXentLoss": Variant(metric_learning, listed),
            },
            exact,
        ),
    ]


# ---- Matryoshka


def _matryoshka(quick: bool) -> list[Comparison]:
    return _prefixes(quick)[:1]


def _matryoshka_two_ways(quick: bool) -> list[Comparison]:
    return _prefixes(quick)[1:]


def _prefixes(quick: bool) -> list[Comparison]:
    dims = [384, 256, 128, 64, 32]
    case: Row = {"n": 256 if quick else 4096, "dim": 384, "temperature": 0.05, "dims": dims}
    both: Row = {**case, "symmetric": True}
    views: Row = {**case, "n": case["n"] // 2}

    def prefixes(case: Row, *rows: Tensor) -> Iterator[list[Tensor]]:
        for dim in case["dims"]:
            yield [x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True) for x in rows]

    def ours(case: Row, **options: Any) -> Loss:
        from contrastive_ops import info_nce

        symmetric = case.get("symmetric", False)
        return partial(info_nce, temperature=case["temperature"], symmetric=symmetric, **options)

    def ours_of_views(case: Row, **options: Any) -> Loss:
        from contrastive_ops import nt_xent

        return partial(nt_xent, temperature=case["temperature"], **options)

    def of_prefixes(loss: Callable[..., Loss]) -> Variant:
        return Variant(lambda case: loss(case, matryoshka_dims=case["dims"]))

    def cross_entropies(logits: Tensor, symmetric: bool) -> Tensor:
        target = torch.arange(len(logits))
        loss = F.cross_entropy(logits, target)
        return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss

    def dense(case: Row) -> Loss:
        def loss(a: Tensor, b: Tensor) -> Tensor:
            total = a.new_zeros(())
            for dim in case["dims"]:
                x, y = F.normalize(a[:, :dim], dim=1), F.normalize(b[:, :dim], dim=1)
                logits = x @ y.T / case["temperature"]
                total = total + cross_entropies(logits, case.get("symmetric", False))
            return total

        return loss

    def dense_of_views(case: Row) -> Loss:
        n = case["n"]
        target = torch.arange(2 * n).roll(n)
        itself = torch.eye(2 * n, dtype=torch.bool)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            rows = torch.cat([a, b])
            total = a.new_zeros(())
            for dim in case["dims"]:
                x = F.normalize(rows[:, :dim], dim=1)
                logits = (x @ x.T / case["temperature"]).masked_fill(itself, -torch.inf)
                total = total + F.cross_entropy(logits, target)
            return total

        return loss

    def sentence_transformers(case: Row) -> Loss:
        losses = _imported("sentence_transformers.sentence_transformer.losses")
        model = _Given(case["dim"])
        inner = losses.MultipleNegativesRankingLoss(model, scale=1 / case["temperature"])
        outer = losses.MatryoshkaLoss(model, inner, case["dims"])
        nothing = torch.empty(0)
        return lambda a, b: outer([{"rows": a}, {"rows": b}], nothing)

    def exact(case: Row) -> Sum:
        def rows(a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, int]:
            target = torch.arange(part.start, part.stop)
            total = a.new_zeros(())
            for x, y in prefixes(case, a, b):
                ways = [(x, y), (y, x)] if case.get("symmetric") else [(x, y)]
                for query, key in ways:
                    logits = query[part] @ key.T / case["temperature"]
                    total = total + F.cross_entropy(logits, target, reduction="sum") / len(ways)
            return total, len(target)

        return rows

    def exact_of_views(case: Row) -> Sum:
        n = case["n"]

        def rows(a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, int]:
            row = torch.arange(part.start, part.stop)
            row = torch.cat([row, row + n])
            itself = row.unsqueeze(1) == torch.arange(2 * n)
            total = a.new_zeros(())
            for (x,) in prefixes(case, torch.cat([a, b])):
                logits = (x[row] @ x.T / case["temperature"]).masked_fill(itself, -torch.inf)
                total = total + F.cross_entropy(logits, (row + n) % (2 * n), reduction="sum")
            return total, len(row)

        return rows

    def matrices(copies: int) -> Callable[[Row], float]:
        return lambda case: copies * case["n"] ** 2 * 4.0

    what = f"{len(dims)} prefixes, N = {case['n']}, D = 384"
    return [
        Comparison(
            f"Matryoshka InfoNCE, {what}",
            case,
            pairs,
            {
                OURS: of_prefixes(ours),
                f"{OURS}, one width": Variant(ours),
                "PyTorch, dense": Variant(dense, matrices(20)),
                "sentence-transformers, MatryoshkaLoss": Variant(
                    sentence_transformers, matrices(30)
                ),
            },
            exact,
        ),
        Comparison(
            f"Matryoshka InfoNCE, two directions, {what}",
            both,
            pairs,
            {
                OURS: of_prefixes(ours),
                f"{OURS}, one width": Variant(ours),
                "PyTorch, dense": Variant(dense, matrices(30)),
            },
            exact,
        ),
        Comparison(
            f"Matryoshka NT-Xent, {len(dims)} prefixes, 2 x {views['n']} views, D = 384",
            views,
            pairs,
            {
                OURS: of_prefixes(ours_of_views),
                f"{OURS}, one width": Variant(ours_of_views),
                "PyTorch, dense": Variant(dense_of_views, matrices(120)),
            },
            exact_of_views,
        ),
    ]


class _Given(nn.Module):
    """A model whose embeddings are its inputs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["rows"]}

    def get_embedding_dimension(self) -> int:
        return self.dim


# ---- sigmoid


def _sigmoid(quick: bool) -> list[Comparison]:
    case: Row = {"n": 512 if quick else 8192, "dim": 384, "temperature": 0.1, "bias": -10.0}

    def ours(case: Row) -> Loss:
        from contrastive_ops import sigmoid_loss

        return partial(sigmoid_loss, temperature=case["temperature"], bias=case["bias"])

    def dense(case: Row) -> Loss:
        sign = 2 * torch.eye(case["n"]) - 1

        def loss(a: Tensor, b: Tensor) -> Tensor:
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
            logits = a @ b.T / case["temperature"] + case["bias"]
            return -F.logsigmoid(sign * logits).sum() / case["n"]

        return loss

    def exact(case: Row) -> Sum:
        def rows(a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, int]:
            x, y = (t / t.norm(dim=1, keepdim=True) for t in (a[part], b))
            logits = x @ y.T / case["temperature"] + case["bias"]
            index = torch.arange(part.start, part.stop).unsqueeze(1)
            sign = torch.full_like(logits, -1.0).scatter(1, index, 1.0)
            return torch.logaddexp(-sign * logits, torch.zeros_like(logits)).sum(), len(index)

        return rows

    return [
        Comparison(
            f"Sigmoid, N = {case['n']}, D = 384",
            case,
            pairs,
            {
                OURS: Variant(ours),
                "PyTorch, dense": Variant(dense, lambda c: 6.0 * c["n"] ** 2 * 4),
            },
            exact,
        )
    ]


# ---- triplets


def _triplet(quick: bool) -> list[Comparison]:
    large, cube = (256, 128) if quick else (4096, 1024)
    return [_mined("hard", large), _mined("semi-hard", large), _mined("all", cube)]


def _mined(mining: Literal["hard", "semi-hard", "all"], n: int) -> Comparison:
    case: Row = {"n": n, "dim": 256, "margin": 0.5, "mining": mining}
    # How each library divides: over all anchors or pairs, or over the triplets that are positive.
    reduction: Literal["mean", "nonzero"] = "nonzero" if mining == "all" else "mean"
    names = {"hard": "BatchHard", "semi-hard": "BatchSemiHard", "all": "BatchAll"}
    theirs = f"{names[mining]}TripletLoss"

    def ours(case: Row) -> Loss:
        from contrastive_ops import triplet_margin

        return partial(
            triplet_margin,
            mining=mining,
            margin=case["margin"],
            distance="l2",
            normalize=False,
            reduction=reduction,
        )

    def sentence_transformers(case: Row) -> Loss:
        losses = _imported("sentence_transformers.sentence_transformer.losses")
        module = getattr(losses, theirs)(nn.Identity(), margin=case["margin"])
        return lambda x, labels: module.compute_loss_from_embeddings([x], labels)

    def dense(case: Row) -> Loss:
        def loss(x: Tensor, labels: Tensor) -> Tensor:
            d = torch.cdist(x, x)
            same = labels.unsqueeze(1) == labels
            positive = same & ~torch.eye(len(x), dtype=torch.bool)
            valid = positive.unsqueeze(2) & ~same.unsqueeze(1)
            hinge = (d.unsqueeze(2) - d.unsqueeze(1) + case["margin"]).clamp(min=0.0) * valid
            return hinge.sum() / (hinge > 0).sum()

        return loss

    def exact(case: Row) -> Sum:
        def rows(x: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Any]:
            # In float64 the expanded square has digits to spare, and costs one product.
            square = x.square().sum(1)
            d = square[part].unsqueeze(1) + square - 2 * x[part] @ x.T
            d = d.clamp(min=1e-30).sqrt()
            same = labels[part].unsqueeze(1) == labels
            own = torch.arange(part.start, part.stop).unsqueeze(1) == torch.arange(len(x))
            positive, negative = same & ~own, ~same
            apart = d.masked_fill(~negative, torch.inf)
            if mining == "hard":
                far = d.masked_fill(~positive, -torch.inf).amax(1)
                return (far - apart.amin(1) + case["margin"]).clamp(min=0.0).sum(), len(d)
            row, column = positive.nonzero(as_tuple=True)
            near = d[row, column].unsqueeze(1)
            if mining == "all":
                hinge = (near - apart[row] + case["margin"]).clamp(min=0.0)
                return hinge.sum(), (hinge > 0).sum().item()
            beyond = apart[row].masked_fill(apart[row] <= near, torch.inf).amin(1)
            farthest = d.masked_fill(~negative, -torch.inf).amax(1)[row]
            chosen = torch.where(beyond < torch.inf, beyond, farthest)
            return (near.squeeze(1) - chosen + case["margin"]).clamp(min=0.0).sum(), len(row)

        return rows

    variants = {OURS: Variant(ours)}
    if mining == "all":
        variants["PyTorch, dense B x B x B"] = Variant(dense, lambda c: 5.0 * c["n"] ** 3 * 4)
    variants[f"sentence-transformers, {theirs}"] = Variant(sentence_transformers)
    return Comparison(f"Triplets, {mining}, B = {n}, D = 256", case, labelled, variants, exact)


# ---- late interaction


def _late_interaction(quick: bool) -> list[Comparison]:
    n = 16 if quick else 128
    case: Row = {"n": n, "query_tokens": 32, "key_tokens": 128, "dim": 128, "temperature": 1.0}
    case["exact_rows"] = 8

    def ours(case: Row) -> Loss:
        from contrastive_ops import score_nce, token_similarity

        return lambda q, k: score_nce(token_similarity(q, k), temperature=case["temperature"])

    def dense(case: Row) -> Loss:
        target = torch.arange(case["n"])

        def loss(q: Tensor, k: Tensor) -> Tensor:
            q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
            # The maxima' indices: `amax` would compare the whole matrix again in the backward.
            scores = torch.einsum("nid,mjd->nmij", q, k).max(3).values.sum(2)
            return F.cross_entropy(scores / case["temperature"], target)

        return loss

    def exact(case: Row) -> Sum:
        def rows(q: Tensor, k: Tensor, part: slice) -> tuple[Tensor, int]:
            x, y = (t / t.norm(dim=2, keepdim=True) for t in (q[part], k))
            scores = torch.einsum("nid,mjd->nmij", x, y).max(3).values.sum(2)
            target = torch.arange(part.start, part.stop)
            loss = F.cross_entropy(scores / case["temperature"], target, reduction="sum")
            return loss, len(target)

        return rows

    return [
        Comparison(
            f"MaxSim InfoNCE, {n} x {n} x 32 x 128 tokens, D = 128",
            case,
            tokens,
            {OURS: Variant(ours), "PyTorch, einsum": Variant(dense)},
            exact,
        )
    ]


# ---- CoSENT


def _cosent(quick: bool) -> list[Comparison]:
    case: Row = {"n": 512 if quick else 16_384, "scale": 20.0}

    def ours(case: Row) -> Loss:
        from contrastive_ops import cosent

        return partial(cosent, scale=case["scale"])

    def dense(case: Row) -> Loss:
        def loss(scores: Tensor, grades: Tensor) -> Tensor:
            apart = case["scale"] * (scores.unsqueeze(1) - scores)
            apart = apart.masked_fill(grades.unsqueeze(1) >= grades, -torch.inf)
            return torch.cat([apart.new_zeros(1), apart.flatten()]).logsumexp(0)

        return loss

    def sentence_transformers(case: Row) -> Loss:
        losses = _imported("sentence_transformers.sentence_transformer.losses")
        module = losses.CoSENTLoss(nn.Identity(), case["scale"], lambda scores, _: scores)
        return lambda scores, grades: module.compute_loss_from_embeddings([scores, scores], grades)

    def exact(case: Row) -> Sum:
        def rows(scores: Tensor, grades: Tensor, part: slice) -> tuple[Tensor, int]:
            apart = case["scale"] * (scores[part].unsqueeze(1) - scores)
            return apart[grades[part].unsqueeze(1) < grades].exp().sum(), 1

        return rows

    return [
        Comparison(
            f"CoSENT, {case['n']} scores",
            case,
            graded,
            {
                OURS: Variant(ours),
                "PyTorch, dense": Variant(dense, lambda c: 5.0 * c["n"] ** 2 * 4),
                "sentence-transformers, CoSENTLoss": Variant(sentence_transformers),
            },
            exact,
            math.log1p,
        )
    ]


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed ({error})") from error


SUITES: dict[str, tuple[str, Callable[[bool], list[Comparison]]]] = {
    "nt-xent": ("NT-Xent", _nt_xent),
    "matryoshka": ("Matryoshka InfoNCE", _matryoshka),
    "matryoshka-two-ways": ("Matryoshka, two directions and one set", _matryoshka_two_ways),
    "sigmoid": ("Sigmoid loss", _sigmoid),
    "triplet": ("Mined triplets", _triplet),
    "late-interaction": ("Late interaction", _late_interaction),
    "cosent": ("CoSENT", _cosent),
}

OTHERS = {
    name: OtherSuite(title, partial(measure, name), summarize)
    for name, (title, _) in SUITES.items()
}

if __name__ == "__main__":
    main()
