"""Alignment and uniformity against their definitions, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from contrastive_ops import metrics
from contrastive_ops.metrics import alignment, uniformity

A = [0.8109, -0.9391, 0.2519]
B = [-1.2887, 1.5057, 0.4449]
C = [2.1968, 0.4785, 1.5207]


def test_golden_values():
    a, b, c = (torch.tensor([row], dtype=torch.float64) for row in (A, B, C))
    assert alignment(a, b).item() == pytest.approx(3.8252436295, abs=1e-9)
    assert uniformity(torch.cat([a, b, c])).item() == pytest.approx(-3.0520408188, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_is_the_mean_power_of_distances(alpha):
    x, y = torch.randn(2, 50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sum(
        math.dist(p, q) ** alpha
        for p, q in zip(normalize(x).tolist(), normalize(y).tolist(), strict=True)
    )
    assert alignment(x, y, alpha=alpha).item() == pytest.approx(expected / 50, rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("block_rows", [1, 7, 100])
def test_uniformity_is_the_log_mean_potential_at_any_block_size(monkeypatch, t, block_rows):
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block_rows * 40 * 8)
    unit = normalize(x).tolist()
    terms = [
        math.exp(-t * math.dist(unit[i], unit[j]) ** 2) for i in range(40) for j in range(i + 1, 40)
    ]
    expected = math.log(math.fsum(terms) / len(terms))
    assert uniformity(x, t=t).item() == pytest.approx(expected, abs=1e-12)


def test_gradients(monkeypatch):
    x, y = (
        torch.randn(6, 4, dtype=torch.float64, requires_grad=True, generator=generator)
        for generator in [torch.Generator().manual_seed(2)] * 2
    )
    for alpha in (1.0, 2.0, 3.0):
        assert torch.autograd.gradcheck(lambda a, b, p=alpha: alignment(a, b, alpha=p), (x, y))
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", 2 * 6 * 8)
    assert torch.autograd.gradcheck(uniformity, (x,))


def test_equal_pairs_have_no_distance_and_no_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    loss = alignment(x, x.detach(), alpha=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_length_of_a_row_does_not_matter(scale):
    x, y = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(3))
    assert alignment(x * scale, y).item() == pytest.approx(alignment(x, y).item(), rel=1e-5)
    assert uniformity(x * scale).item() == pytest.approx(uniformity(x).item(), rel=1e-5)


def test_low_precision_is_computed_in_float32():
    x, y = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    for value, wide in (
        (alignment(x, y), alignment(x.float(), y.float())),
        (uniformity(x), uniformity(x.float())),
    ):
        assert value.dtype == torch.float32
        assert value.item() == wide.item()


def test_a_zero_row_stays_zero():
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert alignment(x, x).item() == 0.0
    assert uniformity(x).item() == pytest.approx(-2.0)  # squared distance 1, t = 2


def test_uniformity_never_holds_the_square_matrix():
    from torch.profiler import ProfilerActivity, profile

    x = torch.randn(4000, 8, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        uniformity(x).backward()
    largest = max(event.cpu_memory_usage for event in trace.events())
    assert largest < 6 * metrics._BLOCK_BYTES
    assert metrics._BLOCK_BYTES < 4000 * 4000 * 4 / 1.9


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: alignment(x, x[:2]), "y"),
        (lambda x: alignment(x, x.double()), "y"),
        (lambda x: alignment(x[0], x[0]), "x"),
        (lambda x: alignment(x[:0], x[:0]), "x"),
        (lambda x: alignment(x.long(), x.long()), "x"),
        (lambda x: alignment(x, x, alpha=0.0), "alpha"),
        (lambda x: uniformity(x[:1]), "x"),
        (lambda x: uniformity(x[:, :0]), "x"),
        (lambda x: uniformity(x, t=-1.0), "t"),
        (lambda x: uniformity(x, t=math.inf), "t"),
    ],
)
def test_bad_input(call, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        call(torch.ones(3, 4))


def test_not_a_tensor():
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        alignment([[1.0]], [[1.0]])
