"""Inputs that break other libraries' losses: results stay finite, and equal to the plain ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import contrastive_ops as co

sys.path.insert(0, str(Path(__file__).parent))
from valid import VALID, call


def changed(name, change):
    """The valid call's arguments with ``change`` applied to every embedding."""
    args, kwargs = VALID[name]

    def of(x):
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() > 1:
            return change(x)
        return type(x)(of(y) for y in x) if isinstance(x, list | tuple) else x

    return [of(x) for x in args], {k: of(v) for k, v in kwargs.items()}


def leaves_in(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, list | tuple):
        return [leaf for x in value for leaf in leaves_in(x)]
    return []


def equal_rows(x):
    return x[..., :1, :].expand_as(x).clone()


def zero_rows(x):
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., 1:, :]], -2)


# No gradient where singular values coincide; undefined at a zero matrix.
SINGULAR = {"effective_rank"}


@pytest.mark.parametrize("name", sorted(set(VALID) - SINGULAR))
@pytest.mark.parametrize(
    "change", [equal_rows, zero_rows, torch.zeros_like], ids=["equal", "zero", "all zero"]
)
def test_degenerate_rows(name, change):
    args, kwargs = changed(name, lambda x: change(x).requires_grad_())
    found = getattr(co, name)(*args, **kwargs)
    assert bool(found.isfinite().all())
    leaves = leaves_in([args, list(kwargs.values())])
    if not found.requires_grad:
        return
    for grad in torch.autograd.grad(found.sum(), leaves, allow_unused=True):
        assert grad is None or bool(grad.isfinite().all())


@pytest.mark.parametrize("name", VALID)
def test_layouts_and_dtypes(name):
    plain = call(name, {})
    strided = changed(name, lambda x: x.repeat_interleave(2, -1)[..., ::2])
    flipped = changed(name, lambda x: x.mT.contiguous().mT)
    for args, kwargs in (strided, flipped):
        torch.testing.assert_close(getattr(co, name)(*args, **kwargs), plain, rtol=1e-5, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        args, kwargs = changed(name, lambda x, dtype=dtype: x.to(dtype))
        found = getattr(co, name)(*args, **kwargs)
        if name == "hardest_negatives":  # rows of the queue, as they are
            assert found.dtype == dtype
            continue
        if name not in ("cosent", "margin_mse"):  # of vectors, which stay float32
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert found.dtype == (dtype if name == "pair_features" else wide)
        args, kwargs = changed(name, lambda x, dtype=dtype: x.to(dtype).double())
        exact = getattr(co, name)(*args, **kwargs)
        torch.testing.assert_close(found.double(), exact.double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype):
    x, labels = VALID["sup_con"][0]
    for name in ("sup_con", "soft_nearest_neighbor", "triplet_margin", "lifted_structure"):
        function = getattr(co, name)
        assert torch.equal(function(x, labels.to(dtype)), function(x, labels))


def test_negative_labels_are_labels_like_any_other():
    x, labels = VALID["sup_con"][0]
    for name in ("sup_con", "soft_nearest_neighbor", "triplet_margin", "lifted_structure"):
        function = getattr(co, name)
        torch.testing.assert_close(function(x, labels - 1), function(x, labels))


TEMPERED = [
    "nt_xent",
    "sup_con",
    "soft_nearest_neighbor",
    "decoupled_nce",
    "debiased_nce",
    "joint_nce",
    "own_positive_nce",
    "hardness_weighted_nce",
    "uni_cl",
    "sigmoid_loss",
    "score_nce",
    "similarity_divergence",
    "list_net",
    "list_mle",
    "embedding_kl",
    "quick_thought",
]


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
@pytest.mark.parametrize(
    "name",
    TEMPERED,
)
def test_extreme_temperatures(name, temperature):
    args, kwargs = changed(name, lambda x: x.clone().requires_grad_())
    loss = getattr(co, name)(*args, **kwargs, temperature=temperature)
    exact_args, kwargs = changed(name, torch.Tensor.double)
    exact = getattr(co, name)(*exact_args, **kwargs, temperature=temperature)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    for grad in torch.autograd.grad(loss, leaves_in(args), allow_unused=True):
        assert grad is None or bool(grad.isfinite().all())


def test_an_empty_queue_adds_nothing():
    queue = co.losses.EmbeddingQueue(5, 6)
    q, k = VALID["info_nce"][0][:2]
    assert torch.equal(co.info_nce(q, k, queue.rows), co.info_nce(q, k))


@pytest.mark.parametrize("shape", [(0, 6), (4, 0, 6)])
def test_empty_negatives_have_an_empty_gradient(shape):
    q, k = VALID["info_nce"][0][:2]
    negatives = torch.empty(shape, requires_grad=True)
    q = q.clone().requires_grad_()
    for reduction in ("mean", "none"):
        loss = co.info_nce(q, k, negatives, reduction=reduction)
        assert torch.equal(loss, co.info_nce(q, k, reduction=reduction))
        grads = torch.autograd.grad(loss.sum(), (q, negatives))
        assert grads[1].shape == shape


CENTRES = torch.eye(8).repeat_interleave(2, 0)
NEAR = CENTRES + 0.1 * torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
PAIRED = torch.arange(16) // 2
SOLVED = {
    "sup_con": lambda x, T: co.sup_con(x, PAIRED, temperature=T),
    "sup_con, none": lambda x, T: co.sup_con(x, PAIRED, temperature=T, reduction="none"),
    "uni_cl": lambda x, T: co.uni_cl(x[::2], x[1::2], PAIRED[::2], PAIRED[1::2], temperature=T),
    "soft_target_nce": lambda x, T: co.soft_target_nce(
        x[::2], x[1::2], torch.full((8, 1), 0.7), index=torch.arange(8).view(8, 1), temperature=T
    ),
    "ai_feedback_nce": lambda x, T: co.ai_feedback_nce(
        x[::2], x[1::2], torch.full((8,), 0.7), smoothing="positive", temperature=T
    ),
    "quick_thought": lambda x, T: co.quick_thought(
        x[:2], x[:2], excluded_logit=15.0, normalize=True, temperature=T
    ),
    "group_distillation": lambda x, T: co.group_distillation(
        x[::2], x[1::2].unsqueeze(1), torch.ones(8, 1), temperature=T
    ),
}


@pytest.mark.parametrize("name", SOLVED)
def test_solved_rows_leave_no_rounding(name, bounded_backend, monkeypatch):
    """Losses near 1e-8: log-sum-exps minus logits would be rounding of logits near 30."""
    monkeypatch.setenv("CONTRASTIVE_OPS_BACKEND", bounded_backend)
    results = []
    for dtype in (torch.float64, torch.float32):
        x = NEAR.to(dtype).requires_grad_()
        temperature = torch.tensor(0.03, dtype=dtype, requires_grad=True)
        loss = SOLVED[name](x, temperature)
        grads = torch.autograd.grad(loss.sum(), (x, temperature))
        results.append([loss.detach().double(), *(g.double() for g in grads)])
    assert bool((results[0][0] > 0).all())
    assert bool((results[0][0] < 1e-6).all())
    for exact, found in zip(*results, strict=True):
        assert (found - exact).norm() < 1e-4 * exact.norm()
