"""First and second derivatives of every option, in float64."""

import pytest
import torch
from cases import CASES, normal

case = pytest.mark.parametrize("name", CASES)
reduced = pytest.mark.parametrize("reduction", ["mean", "none"])


def as_function(name: str, backend: str, **options):
    """The loss as a function of its leaves alone, and those leaves."""
    call = CASES[name]().fresh()
    names = list(call.leaves)

    def function(*leaves):
        leaves_by_name = dict(zip(names, leaves, strict=True))
        return call.with_leaves(leaves_by_name).loss(backend=backend, **options)

    return function, tuple(call.leaves.values())


def second_derivatives(name: str, backend: str, reduction: str):
    """Gradients of one fixed linear function of the gradients."""
    function, leaves = as_function(name, backend, reduction=reduction)
    loss = function(*leaves)
    upstream = normal(*loss.shape, seed=50).requires_grad_()
    slopes = torch.autograd.grad(loss, leaves, upstream, create_graph=True)
    total = sum((g * normal(*g.shape, seed=51)).sum() for g in slopes)
    return torch.autograd.grad(total, (*leaves, upstream))


@case
def test_first(name, backend):
    function, leaves = as_function(name, backend)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(
    "name", ["square", "symmetric, negatives", "everything, several positives"]
)
def test_every_element(name, backend):
    function, leaves = as_function(name, backend)
    assert torch.autograd.gradcheck(function, leaves)


@case
def test_second(name):
    function, leaves = as_function(name, "reference")
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@case
@reduced
def test_second_in_every_backend(name, reduction, bounded_backend):
    torch.testing.assert_close(
        second_derivatives(name, bounded_backend, reduction),
        second_derivatives(name, "reference", reduction),
        rtol=1e-9,
        atol=1e-11,
    )
