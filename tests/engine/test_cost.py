"""Products that nobody asked for are not computed, and large problems are indexed rightly."""

import math

import pytest
import torch
from cases import normal
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from contrastive_ops import info_nce

N, M, D = 128, 160, 64
PRODUCT = 2 * N * M * D


def _added_product(_, a_shape, b_shape, **kwargs):
    return mm_flop(a_shape, b_shape)


@pytest.fixture(autouse=True)
def _products_are_seen(monkeypatch):
    """The counter would be shown the one operator; what is counted here are its products."""
    monkeypatch.setattr("contrastive_ops.engine.tracing.is_traced", lambda: False)


IN_PLACE = {torch.ops.aten.addmm_: _added_product}  # the counter itself does not know it


def flops(*wanted: bool, **options) -> float:
    """Of loss and backward in PyTorch's products, in similarity products."""
    rows = [
        normal(count, D, seed=count, dtype=torch.float32).requires_grad_(want)
        for count, want in zip((N, M), wanted, strict=True)
    ]
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        loss = info_nce(*rows, backend="torch", **options)
        if loss.requires_grad:
            loss.sum().backward()
    return counter.get_total_flops() / PRODUCT


@pytest.mark.parametrize("workspace_bytes", [None, 1 << 16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("wanted", "products"),
    [((True, True), 3), ((True, False), 2), ((False, False), 1)],
)
def test_one_direction(wanted, products, reduction, workspace_bytes):
    """Gradients come with the stripe that computed the logits: nothing is computed twice."""
    options = {"reduction": reduction, "workspace_bytes": workspace_bytes}
    assert flops(*wanted, **options) == pytest.approx(products, rel=0.02)


def test_no_grad():
    with torch.no_grad():
        assert flops(True, True) == pytest.approx(1, rel=0.02)


def test_rows_are_computed_again_at_most_once():
    """Without their weights the gradients have to wait: one product more."""
    assert flops(True, True, reduction="none") == pytest.approx(4, rel=0.02)


def test_other_keys_cost_nothing():
    """in_batch=False looks at a query's own candidates alone."""
    assert flops(True, True, in_batch=False) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_more_than_two_to_the_31_logits(symmetric, cpu_kernel):
    """Positions in the matrix that is never held do not fit 32 bits."""
    n, distinct = 46_400, 100
    query = normal(distinct, 1, seed=1, dtype=torch.float32).repeat(n // distinct, 1)
    key = normal(n, 1, seed=2, dtype=torch.float32)
    query.requires_grad_()
    options = {"temperature": 2.0, "normalize": False, "reduction": "sum", "backend": "cpu"}
    info_nce(query, key, symmetric=symmetric, **options).backward()
    x, y = query.detach().double(), key.double()
    rows = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    logits = x[rows] * y.T / 2
    slope = (torch.softmax(logits, 1) * y.T).sum(1) - y[rows, 0]
    if symmetric:
        columns = torch.logsumexp(x[:distinct] * y.T / 2, 0) + math.log(n / distinct)
        back = (torch.exp(logits - columns) * y.T).sum(1) - y[rows, 0]
        slope = (slope + back) / 2
    torch.testing.assert_close(query.grad[rows, 0].double(), slope / 2, rtol=1e-4, atol=1e-5)
