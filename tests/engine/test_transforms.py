"""PyTorch's transforms and dispatch modes around the loss: right, or served by the reference."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from contrastive_ops import info_nce


def rows(n=6, m=7, d=5):
    return (torch.randn(n, d, dtype=torch.float64), torch.randn(m, d, dtype=torch.float64))


def dense(query, key, temperature=0.05):
    unit = nn.functional.normalize
    logits = unit(query, dim=1) @ unit(key, dim=1).T / temperature
    return nn.functional.cross_entropy(logits, torch.arange(len(query)))


def test_forward_mode(backend):
    query, key = rows()
    tangent = torch.randn_like(query)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, tangent)
        actual = forward_ad.unpack_dual(info_nce(dual, key, backend=backend)).tangent
        expected = forward_ad.unpack_dual(dense(dual, key)).tangent
        one = torch.ones((), dtype=torch.float64)
        temperature = forward_ad.make_dual(0.1 * one, one)
        by_temperature = [
            forward_ad.unpack_dual(loss).tangent
            for loss in (
                info_nce(query, key, temperature=temperature, backend=backend),
                dense(query, key, temperature),
            )
        ]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*by_temperature)


def test_jvp(backend):
    query, key = rows()
    tangent = torch.randn_like(query)
    actual = torch.func.jvp(lambda x: info_nce(x, key, backend=backend), (query,), (tangent,))
    expected = torch.func.jvp(lambda x: dense(x, key), (query,), (tangent,))
    torch.testing.assert_close(actual, expected)


def test_vmap(backend):
    query, key = torch.randn(3, 6, 5, dtype=torch.float64), rows()[1]
    actual = torch.func.vmap(lambda x: info_nce(x, key, backend=backend))(query)
    torch.testing.assert_close(actual, torch.stack([dense(x, key) for x in query]))


def test_hessian(backend):
    query, key = rows(3, 3, 2)
    actual = torch.func.hessian(lambda x: info_nce(x, key, backend=backend))(query)
    torch.testing.assert_close(actual, torch.func.hessian(lambda x: dense(x, key))(query))


def test_make_fx_records_the_operator(backend):
    graph = make_fx(lambda x, y: info_nce(x, y, backend=backend))(*rows())
    other = rows()
    torch.testing.assert_close(graph(*other), dense(*other))


def test_make_fx_of_the_gradient(backend):
    def gradient(x, y):
        return torch.func.grad(lambda z: info_nce(z, y, backend=backend))(x)

    graph = make_fx(gradient)(*rows())
    other = rows()
    expected = torch.func.grad(lambda x: dense(x, other[1]))(other[0])
    torch.testing.assert_close(graph(*other), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fake_tensors(backend, reduction):
    with FakeTensorMode():
        query, key = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5)
        loss = info_nce(query, key, reduction=reduction, backend=backend)
        assert loss.shape == (() if reduction == "mean" else (6,))
        loss.sum().backward()
        assert query.grad.shape == (6, 5)
