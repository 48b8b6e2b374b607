"""Statistics of a batch, against the brute-force oracle's logits, for every option of the loss."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from cases import CASES

import contrastive_ops as co


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


def test_of_views_and_modules(backend):
    views = [torch.randn(5, 3, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2)]
    seen = []
    co.nt_xent(*views, statistics=seen.append, backend=backend)
    co.losses.NTXentLoss()(*views, statistics=seen.append, backend=backend)
    co.losses.InfoNCELoss(backend=backend)(*views, statistics=seen.append)
    assert [len(s.rank) for s in seen] == [10, 10, 5]
    rows = torch.nn.functional.normalize(torch.cat(views), dim=1)
    logits = (rows @ rows.T / 0.5).fill_diagonal_(-torch.inf)
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
    for found in seen[:2]:
        torch.testing.assert_close(found.entropy, entropy)
        partner = torch.arange(10).roll(5)
        above = (logits > logits.gather(1, partner.unsqueeze(1))).sum(1)
        assert torch.equal(found.rank, above)


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
