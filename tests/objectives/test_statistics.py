"""Statistics of a batch, against the brute-force oracle's logits, for every option of the loss."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from cases import CASES

import contrastive_ops as co
from contrastive_ops.engine import softmax_ce


@pytest.fixture
def _one_scan(monkeypatch):
    """No scan but the loss's own."""

    def scan(*_):
        raise AssertionError("a scan of its own")

    monkeypatch.setattr(softmax_ce, "_scan_apart", scan)


def logits_of(call, monkeypatch):
    """(positives, other candidates) of each query on the longest prefix, query to key."""
    seen = []

    def record(positives, others, smoothing):
        seen.append(([float(p) for p in positives], [float(o) for o in others]))
        return 0.0

    widths = call.options.get("matryoshka_dims") or [call.query.shape[1]]
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "_cross_entropy", record)
        call.oracle(symmetric=False, matryoshka_dims=[max(widths)], matryoshka_weights=None)
    return seen


def expected(call, rows):
    ranks = [sum(o > max(p) + 1e-12 for o in others) for p, others in rows]
    entropies = []
    for positives, others in rows:
        p = torch.tensor(positives + others, dtype=torch.float64).softmax(0)
        entropies.append(torch.special.entr(p).sum().item())
    negatives = call.negatives
    given = 0
    if negatives is not None:
        own = negatives.dim() == 3 and call.options.get("negatives_scope") == "own"
        given = negatives.shape[1] if own else negatives.numel() // negatives.shape[-1]
    in_batch = call.options.get("in_batch", True)
    every = sum(given + (call.key.shape[0] - len(p) if in_batch else 0) for p, _ in rows)
    kept = [o for _, others in rows for o in others]
    return co.Statistics(
        *(
            torch.tensor(x, dtype=torch.float64)
            for x in (
                sum(r == 0 for r in ranks) / len(rows),
                ranks,
                [max(others, default=-math.inf) for _, others in rows],
                1 - len(kept) / every if every else 0.0,
                sum(sum(p) / len(p) for p, _ in rows) / len(rows),
                sum(kept) / len(kept) if kept else 0.0,
                sum(entropies) / len(rows),
            )
        )
    )


@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name, backend, monkeypatch):
    call = CASES[name]()
    if call.options.get("reduction") == "none":
        pytest.skip("once is enough")
    seen, leaf = [], call.query.detach().clone().requires_grad_()
    loss = call.loss(backend=backend, statistics=seen.append, query=leaf)
    assert torch.equal(loss, call.loss(backend=backend, query=leaf))
    loss.sum().backward()
    assert len(seen) == 1
    for ours, exact in zip(seen[0], expected(call, logits_of(call, monkeypatch)), strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 5.0])  # with and without maxima in the kernel
def test_many_stripes_and_tiles(dtype, temperature, bounded_backend):
    n, m = 700, 810
    q, k = (
        torch.randn(r, 24, generator=torch.Generator().manual_seed(r)).to(dtype) for r in (n, m)
    )
    k[600] = k[5]  # as close to query 5 as its own key: not above it
    seen = []
    options = {"backend": bounded_backend, "temperature": temperature, "statistics": seen.append}
    co.info_nce(q, k, workspace_bytes=1 << 20, **options)
    co.info_nce(q.requires_grad_(), k, reduction="none", **options).sum().backward()
    co.info_nce(q, k, **options).backward()
    unit = [x.detach().double() / x.detach().double().norm(dim=1, keepdim=True) for x in (q, k)]
    logits = unit[0] @ unit[1].T / temperature
    positive = logits.diagonal()
    apart = logits - torch.diag_embed(torch.full((m,), torch.inf, dtype=torch.float64))[:n]
    rank = (apart > positive.unsqueeze(1) + 1e-5 / temperature).sum(1)
    loose = (apart > positive.unsqueeze(1) - 1e-5 / temperature).sum(1)
    for found in seen:
        assert bool(((rank <= found.rank) & (found.rank <= loose)).all())
        assert found.rank[5] == (apart[5] > positive[5] + 1e-5 / temperature).sum()
        near = {"rtol": 2e-6, "atol": 2e-5 / temperature}
        torch.testing.assert_close(found.hardest_negative.double(), apart.amax(1), **near)
        torch.testing.assert_close(found.positive.double(), positive.mean(), **near)
        kept = logits.sum() - positive.sum()
        torch.testing.assert_close(found.negative.double(), kept / (n * (m - 1)), **near)
        entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
        torch.testing.assert_close(found.entropy.double(), entropy, rtol=2e-5, atol=1e-5)
        assert found.left_out == 0


def of_views(views, temperature, margin=0.0, false_negative_margin=math.inf):
    """NT-Xent's statistics from dense logits in float64."""
    n, count = len(views[0]), len(views)
    rows = torch.nn.functional.normalize(torch.cat(views).detach().double(), dim=1)
    similarity = rows @ rows.T
    index = torch.arange(n * count)
    own = index.unsqueeze(1) % n == index % n
    other = own.clone().fill_diagonal_(False)
    weakest = similarity.masked_fill(~other, math.inf).amin(1, keepdim=True)
    kept = ~own & (similarity <= weakest + false_negative_margin + 1e-12)
    logits = (similarity - margin * other.double()) / temperature
    negatives = logits.masked_fill(~kept, -math.inf)
    best = logits.masked_fill(~other, -math.inf).amax(1, keepdim=True)
    rank = (negatives > best + 1e-12).sum(1)
    entropies = torch.special.entr(logits.masked_fill(~(kept | other), -math.inf).softmax(1))
    return co.Statistics(
        (rank == 0).double().mean(),
        rank,
        negatives.amax(1),
        (~own & ~kept).sum().double() / max(1, (~own).sum()),
        logits[other].mean(),
        logits[kept].sum() / kept.sum().clamp(min=1),
        entropies.sum(1).mean(),
    )


@pytest.mark.usefixtures("_one_scan")
@pytest.mark.parametrize(
    ("n", "count", "options"),
    [
        (1, 2, {}),
        (1, 3, {}),
        (5, 2, {"false_negative_margin": 0.05, "label_smoothing": 0.1}),
        (67, 3, {"margin": 0.2, "temperature": 0.002}),  # tiles that are not full
        (67, 3, {"false_negative_margin": 0.1, "margin": 0.1, "workspace_bytes": 1 << 14}),
        (205, 2, {"false_negative_margin": 0.3, "temperature": 0.002}),  # two stripes
    ],
)
def test_of_views(n, count, options, bounded_backend):
    views = [torch.randn(n, 7, dtype=torch.float64).requires_grad_() for _ in range(count)]
    options = {"temperature": 0.5, **options}
    seen = []
    for kwargs in ({}, {"reduction": "none"}):
        call = {**options, **kwargs, "backend": bounded_backend}
        loss = co.nt_xent(*views, statistics=seen.append, **call)
        assert torch.equal(loss, co.nt_xent(*views, **call))
    known = {
        k: options[k] for k in ("temperature", "margin", "false_negative_margin") if k in options
    }
    for found in seen:
        for ours, exact in zip(found, of_views(views, **known), strict=True):
            torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("_one_scan")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.5])  # with and without maxima in the kernel
def test_of_narrow_views(dtype, temperature, bounded_backend):
    views = [torch.randn(131, 24).to(dtype) for _ in range(3)]
    seen = []
    call = {"temperature": temperature, "backend": bounded_backend}
    co.nt_xent(*views, statistics=seen.append, **call)
    found, exact = seen[0], of_views(views, temperature)
    # Ranks may differ where a negative is as close as the best positive, but for rounding.
    assert (found.rank - exact.rank).abs().sum() <= 2
    near = {"rtol": 2e-6, "atol": 2e-6 / temperature}
    for name in ("hardest_negative", "positive", "negative", "entropy"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), **near)
    assert found.left_out == 0


@pytest.mark.usefixtures("_one_scan")
@pytest.mark.parametrize("symmetric", [False, True])
def test_of_prefixes(symmetric, bounded_backend):
    q, k = (torch.randn(n, 24, dtype=torch.float64) for n in (205, 230))
    negatives = torch.randn(70, 24, dtype=torch.float64)
    q[3, :5] *= 1e-120  # a prefix so short that one pass does not serve it
    options = {"symmetric": symmetric, "false_negative_margin": 0.1, "label_smoothing": 0.1}
    seen = []
    for rows in (q, q[4:]):
        call = {**options, "backend": bounded_backend, "statistics": seen.append}
        co.info_nce(rows, k, negatives, matryoshka_dims=[5, 24, 8], **call)
        co.info_nce(rows.clone().requires_grad_(), k, negatives, matryoshka_dims=[5, 24, 8], **call)
        co.info_nce(rows, k, negatives, **call)
    co.nt_xent(q, k[:205], matryoshka_dims=[24, 6], statistics=seen.append, backend=bounded_backend)
    co.nt_xent(q, k[:205], statistics=seen.append, backend=bounded_backend)
    for found, whole in ((0, 2), (1, 2), (3, 5), (4, 5), (6, 7)):
        for ours, exact in zip(seen[found], seen[whole], strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_the_same_bits_at_every_number_of_threads(cpu_kernel, restored_threads):
    q, k = (torch.randn(410, 24).requires_grad_() for _ in range(2))
    calls = [
        lambda **call: co.nt_xent(q, k, false_negative_margin=0.1, **call),
        lambda **call: co.nt_xent(q, k, temperature=0.005, workspace_bytes=1 << 14, **call),
        lambda **call: co.info_nce(q, k, matryoshka_dims=[5, 24], **call),
    ]
    for call in calls:
        seen = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            call(statistics=seen.append, backend="cpu").backward()
        for found in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found, seen[0], strict=True))


def test_of_modules(backend):
    views = [torch.randn(5, 3, dtype=torch.float64) for _ in range(2)]
    seen = []
    co.losses.NTXentLoss()(*views, statistics=seen.append, backend=backend)
    co.losses.InfoNCELoss(backend=backend)(*views, statistics=seen.append)
    assert [len(s.rank) for s in seen] == [10, 5]
    for ours, exact in zip(seen[0], of_views(views, 0.5), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-9, atol=1e-9)


def rows_of(logits, positives):
    """Statistics whose logits are at hand, and (N,) where their positives are."""
    kept = torch.ones_like(logits, dtype=torch.bool).scatter_(1, positives.unsqueeze(1), False)
    positive = logits.gather(1, positives.unsqueeze(1))
    rank = (kept & (logits > positive)).sum(1)
    negatives = logits.masked_fill(~kept, -math.inf)
    there = negatives > -math.inf
    return co.Statistics(
        (rank == 0).double().mean(),
        rank,
        negatives.amax(1),
        1 - there.sum().double() / kept.sum(),
        positive.mean(),
        negatives[there].mean(),
        torch.special.entr(logits.softmax(1)).sum(1).mean(),
    )


def _sampled_softmax():
    x, y, p = torch.randn(6, 4), torch.randn(8, 4), torch.rand(8).log()
    dims = {"matryoshka_dims": [2, 4, 3]}
    return co.SampledSoftmaxLoss, (x, y, p), dims, x @ y.T - p, None


def _squared_l2_nce():
    x, y = torch.randn(6, 4), torch.randn(8, 4)
    dims = {"matryoshka_dims": [4, 4, 2]}
    return co.SquaredL2NCELoss, (x, y), dims, -torch.cdist(x, y).square(), None


def _brownian_bridge_nce():
    start, middle, end = torch.randn(3, 6, 4)
    times = [torch.zeros(6), torch.linspace(1, 2, 6), torch.full((6,), 3.0)]
    alpha = (times[1] / times[2]).unsqueeze(1)
    away = (middle - (1 - alpha) * start).unsqueeze(0) - alpha * end.unsqueeze(1)
    logits = -away.square().sum(2) / (2 * times[1] * (1 - alpha.squeeze(1)))
    return co.BrownianBridgeNCELoss, (start, middle, end, *times), {}, logits, None


def _vocabulary_softmax():
    x, words, bias = torch.randn(6, 4), torch.randn(9, 4), torch.randn(9)
    targets = torch.tensor([3, 8, 0, 1, 8, 2])
    return co.VocabularySoftmaxLoss, (x, words, targets, bias), {}, x @ words.T + bias, targets


def _threshold_guided_nce():
    x, y, more, *guide = torch.randn(5, 6, 4)
    unit = [torch.nn.functional.normalize(r, dim=1) for r in (x, torch.cat([y, more]), *guide)]
    out = torch.nn.functional.pad(unit[2] @ unit[3].T > 0.3, (0, 6)).fill_diagonal_(False)
    logits = (unit[0] @ unit[1].T / 0.05).masked_fill(out, -math.inf)
    call = {"guide": guide, "guide_threshold": 0.3, "matryoshka_dims": [2, 4]}
    return co.ThresholdGuidedNCELoss, (x, y, more), call, logits, None


@pytest.mark.parametrize(
    "case",
    [
        _brownian_bridge_nce,
        _sampled_softmax,
        _squared_l2_nce,
        _threshold_guided_nce,
        _vocabulary_softmax,
    ],
)
def test_of_other_losses(case, backend):
    torch.set_default_dtype(torch.float64)
    try:
        loss, args, options, logits, positives = case()
    finally:
        torch.set_default_dtype(torch.float32)
    seen = []
    found = loss(backend=backend, **options)(*args, statistics=seen.append)
    assert torch.equal(found, loss(backend=backend, **options)(*args))
    (ours,) = seen
    positives = torch.arange(len(logits)) if positives is None else positives
    for mine, exact in zip(ours, rows_of(logits, positives), strict=True):
        torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-9, atol=1e-9)


def test_compiled_and_transformed():
    q, k = (torch.randn(9, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    seen = []
    co.info_nce(q, k, statistics=seen.append)

    def accuracy_and_loss(q, k):
        found = []
        loss = co.info_nce(q, k, statistics=found.append)
        return found[0].entropy, loss

    compiled = torch.compile(accuracy_and_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k)[0], seen[0].entropy)
    torch.func.grad(lambda x: co.info_nce(x, k, statistics=seen.append))(q)
    torch.testing.assert_close(seen[1].entropy, seen[0].entropy)
