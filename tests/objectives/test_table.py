"""Every row of the table: our call against the formula written densely in float64."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import contrastive_ops

sys.path.insert(0, str(Path(__file__).parent))
from table import PAGE, ROWS, page

# Of torch, of math, and the caller's.
OTHERS = {"cat", "exp", "log", "stack", "zca", "relu", "tanh", "mean"}
IDS = [row.id for row in ROWS]
every_row = pytest.mark.parametrize("row", ROWS, ids=IDS)


def leaves_of(row):
    return [x.requires_grad_() for x in row.leaves()]


def test_ids_are_unique():
    assert len(set(IDS)) == len(IDS)


@every_row
def test_loss_and_gradients(row, backend, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_OPS_BACKEND", backend)
    leaves = leaves_of(row)
    ours, dense = row.ours(*leaves), row.dense(*leaves)
    assert ours.shape == ()
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(row.ours(*leaves), dense, rtol=1e-10, atol=1e-11)
    expected = torch.autograd.grad(dense, leaves)
    assert any(bool((grad != 0).any()) for grad in expected)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("row", [r for r in ROWS if not r.stops_gradient], ids=lambda r: r.id)
def test_gradcheck(row, bounded_backend, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_OPS_BACKEND", bounded_backend)
    leaves = leaves_of(row)
    assert torch.autograd.gradcheck(row.ours, leaves, fast_mode=True)


@every_row
def test_second_derivatives(row, monkeypatch):
    """By the bounded path's own double backward, against the dense formula's."""
    monkeypatch.setenv("CONTRASTIVE_OPS_BACKEND", "torch")
    if row.once_differentiable:
        leaves = leaves_of(row)
        with pytest.raises(ValueError, match="create_graph"):
            torch.autograd.grad(row.ours(*leaves), leaves, create_graph=True)
        return
    seconds = []
    for function in (row.ours, row.dense):
        leaves = leaves_of(row)
        first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        total = sum((g * torch.linspace(-1, 1, g.numel()).view(g.shape)).sum() for g in first)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        seconds.append(
            [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        )
    torch.testing.assert_close(seconds[0], seconds[1], rtol=1e-6, atol=1e-8)


def test_the_page_is_generated():
    assert PAGE.read_text() == page(), "run: python tests/objectives/table.py"


def test_calls_exist():
    """Every function that a call names is a public one."""
    for row in ROWS:
        for name in re.findall(r"\b([a-z_]+)\(", row.call):
            known = hasattr(contrastive_ops, name) or name in OTHERS
            assert known, f"{row.id}: {name}"
