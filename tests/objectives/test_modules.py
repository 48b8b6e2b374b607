"""Module twins, queues, momentum encoders, whitening."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import contrastive_ops as co
from contrastive_ops import losses

sys.path.insert(0, str(Path(__file__).parent))
from valid import VALID

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.eye(6, 4) + 0.1
LABELS = torch.tensor([0, 1, 0, 1, 2, 2])
TWINS = sorted(
    n for n in losses.__all__ if n.endswith("Loss") and n not in ("InfoNCELoss", "PairSoftmaxLoss")
)
# Functions that are no losses, or take one.
WITHOUT = {"adaptive_layers", "angle_scores", "effective_rank", "hardest_negatives", "info_nce"} | {
    "matryoshka",
    "pair_features",
    "running_covariance",
    "token_similarity",
}


def function_of(name):
    return getattr(losses, name).function


def test_every_loss_has_a_twin():
    names = [function_of(name).__name__ for name in TWINS]
    assert sorted(names) == sorted(set(VALID) - WITHOUT)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_its_function(name):
    args, kwargs = VALID[function_of(name).__name__]
    expected = function_of(name)(*args, **kwargs)
    assert torch.equal(getattr(co, name)(**kwargs)(*args), expected)
    assert torch.equal(getattr(co, name)()(*args, **kwargs), expected)
    with pytest.raises(TypeError, match="unknown option 'colour'"):
        getattr(co, name)(colour=1)


@pytest.mark.parametrize("name", [n for n in TWINS if getattr(co, n)().temperature is not None])
def test_a_learned_temperature(name):
    args, kwargs = VALID[function_of(name).__name__]
    twin = getattr(co, name)(temperature=0.3, learnable_temperature=True)
    loss = twin(*args, **kwargs)
    loss.backward()
    assert all(bool(p.grad.isfinite()) and bool(p.grad != 0) for p in twin.parameters())
    torch.testing.assert_close(loss, getattr(co, name)(temperature=0.3)(*args, **kwargs))
    assert "learnable" in repr(twin)


def test_the_sigmoid_twin_learns_its_bias():
    twin = co.SigmoidLoss(learnable_temperature=True)
    assert twin.bias.item() == -10
    assert dict(twin.named_parameters()).keys() == {"bias", "temperature.log_scale"}
    assert "bias=-10, learnable" in repr(twin)
    assert "bias=-3" in repr(co.SigmoidLoss(bias=-3))


def test_options_of_the_call_win():
    twin = co.NTXentLoss(temperature=0.2, reduction="sum")
    torch.testing.assert_close(twin(X, Y, reduction="mean"), co.nt_xent(X, Y, temperature=0.2))


def test_pair_softmax():
    head = co.PairSoftmaxLoss(4, 3, product=True)
    loss = head(X, Y, LABELS)
    logits = torch.cat([X, Y, (X - Y).abs(), X * Y], 1) @ head.classifier.weight.T
    logits = logits + head.classifier.bias
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, LABELS))


def test_a_queue_is_first_in_first_out():
    queue = co.EmbeddingQueue(5, 2)
    assert queue.rows.shape == (0, 2)
    keys = torch.arange(18.0).view(9, 2)
    held: list[list[float]] = []
    for start, stop in ((0, 3), (3, 5), (5, 9)):
        queue.enqueue(keys[start:stop])
        held = (held + keys[start:stop].tolist())[-5:]
        assert sorted(queue.rows.tolist()) == sorted(held)
    queue.enqueue(torch.arange(14.0).view(7, 2))
    assert sorted(queue.rows.tolist()) == sorted(torch.arange(14.0).view(7, 2)[-5:].tolist())
    assert queue.rows.data_ptr() == queue.buffer.data_ptr()  # a view, never a copy
    copy = co.EmbeddingQueue(5, 2)
    copy.load_state_dict(queue.state_dict())
    assert torch.equal(copy.rows, queue.rows)
    assert len(copy) == 5


def test_moco_by_hand():
    queue = co.EmbeddingQueue(8, 4)
    queue.enqueue(Y)
    q = X.clone().requires_grad_()
    loss = co.info_nce(q, Y, queue.rows, in_batch=False)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (q, Y)]
    logits = torch.cat([(unit[0] * unit[1]).sum(1, keepdim=True), unit[0] @ unit[1].T], 1) / 0.05
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    )
    queue.enqueue(X)  # before the backward: what the loss saw is gone
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_bank_keeps_groups_apart():
    bank = co.QueueBank(["de", "fr"], 3, 4)
    bank["de"].enqueue(X)
    assert len(bank["de"]) == 3
    assert len(bank["fr"]) == 0
    with pytest.raises(ValueError, match="expected one of de, fr"):
        bank["en"]
    tongan = co.QueueBank(["to", "keys"], 3, 4)
    tongan["to"].enqueue(X)
    again = co.QueueBank(["keys", "to"], 3, 4)
    again.load_state_dict(tongan.state_dict())
    assert torch.equal(again["to"].rows, tongan["to"].rows)
    for bad in ([], ["a", "a"], ["a.b"], [1]):
        with pytest.raises(ValueError, match="groups: got"):
            co.QueueBank(bad, 3, 4)


def test_a_momentum_encoder_follows():
    encoder = torch.nn.Linear(3, 2)
    copy = co.momentum_encoder(encoder, 0.9)
    before = encoder.weight.detach().clone()
    assert torch.equal(copy.module.weight, before)
    assert not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        encoder.weight += 1
    copy.update_parameters(encoder)
    torch.testing.assert_close(copy.module.weight, before + 0.1)


def test_hardest_negatives():
    queue = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    found = co.hardest_negatives(X, queue, 3, workspace_bytes=1 << 12)
    similarity = torch.nn.functional.cosine_similarity(X.unsqueeze(1), queue.unsqueeze(0), dim=2)
    assert torch.equal(found, queue[similarity.topk(3, 1).indices])


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened_features_are_white(kind):
    x = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    white = co.Whitening(x, kind=kind)(x)
    torch.testing.assert_close(
        torch.cov(white.T, correction=0), torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        white.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0
    )
    if kind == "pca":
        first = co.Whitening(x, dims=2)(x)
        torch.testing.assert_close(first, white[:, :2])


def test_group_zca_with_equal_eigenvalues():
    """Where the derivative through an eigendecomposition is NaN."""
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64).requires_grad_()
    layer = co.GroupZCA(1, shuffle=False)
    assert torch.autograd.gradcheck(layer, (x,))
    white = layer(x)
    torch.testing.assert_close(
        white.T @ white / 4, torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0
    )
