"""The loss as a citizen of autograd: frozen sides, repeated and nested backwards, func, dtypes."""

import contextlib
import itertools

import pytest
import torch
from cases import CASES, K, M, N, index, normal, one, per_query, shared

import contrastive_ops
from contrastive_ops.engine import reference

VARIED = ["square", "shared negatives", "own negatives", "symmetric", "several positives"]
varied = pytest.mark.parametrize("name", VARIED)
reduced = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@varied
@reduced
def test_frozen_sides(name, reduction, backend):
    """Every combination of operands with a gradient gets what all of them together get."""
    call = CASES[name]()
    names = list(call.leaves)
    loss, gradients = call.gradients(backend=backend, reduction=reduction)
    for chosen in itertools.product([False, True], repeat=len(names)):
        if not any(chosen):
            continue
        some = call.fresh()
        for leaf, wanted in zip(names, chosen, strict=True):
            some.leaves[leaf].requires_grad_(wanted)
        again = some.loss(backend=backend, reduction=reduction)
        assert again.requires_grad
        again.sum().backward()
        torch.testing.assert_close(again.detach(), loss, rtol=1e-13, atol=0)
        for leaf, wanted in zip(names, chosen, strict=True):
            if wanted:
                torch.testing.assert_close(
                    some.leaves[leaf].grad, gradients[leaf], rtol=1e-11, atol=1e-14
                )
            else:
                assert some.leaves[leaf].grad is None


@varied
@reduced
def test_no_gradient_wanted(name, reduction, backend):
    call = CASES[name]()
    with_gradients, _ = call.gradients(backend=backend, reduction=reduction)
    frozen = call.loss(backend=backend, reduction=reduction)
    assert not frozen.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = call.fresh().loss(backend=backend, reduction=reduction)
        assert not loss.requires_grad
        torch.testing.assert_close(loss.clone(), with_gradients, rtol=1e-13, atol=0)


@varied
@reduced
def test_retained_graph(name, reduction, backend):
    """Backward as often as one likes: gradients add up, and what is saved is nobody else's."""
    _, once = CASES[name]().gradients(backend=backend, reduction=reduction)
    call = CASES[name]().fresh()
    loss = call.loss(backend=backend, reduction=reduction).sum()
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        for leaf, tensor in call.leaves.items():
            torch.testing.assert_close(
                tensor.grad, times * once[leaf], rtol=1e-12, atol=1e-14, msg=f"{leaf}, {times}"
            )
    for tensor in call.leaves.values():
        tensor.grad.zero_()
    loss.backward()
    for leaf, tensor in call.leaves.items():
        torch.testing.assert_close(tensor.grad, once[leaf], rtol=1e-12, atol=1e-14)


@reduced
def test_second_backward_without_retaining_is_an_error(reduction, backend):
    loss = CASES["square"]().fresh().loss(backend=backend, reduction=reduction).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_changed_operands_are_noticed(reduction, backend):
    """A backward must not use rows that were overwritten after the forward."""
    call = CASES["square"]().fresh()
    rows = call.query * 1.0
    loss = call.loss(query=rows, backend=backend, reduction=reduction).sum()
    _, expected = CASES["square"]().gradients(backend=backend, reduction=reduction)
    with torch.no_grad():
        rows.zero_()
    with contextlib.suppress(RuntimeError):  # "modified by an inplace operation"
        loss.backward()
    if call.key.grad is not None:
        torch.testing.assert_close(call.key.grad, expected["key"])


@varied
@pytest.mark.parametrize("factor", [-3.5, 0.0, 65536.0])
def test_upstream_gradient(name, factor, backend):
    _, plain = CASES[name]().gradients(backend=backend)
    call = CASES[name]().fresh()
    (call.loss(backend=backend) * factor).backward()
    for leaf, tensor in call.leaves.items():
        torch.testing.assert_close(tensor.grad, factor * plain[leaf], rtol=1e-12, atol=1e-13)


@varied
def test_composes_with_what_comes_before_and_after(name, backend):
    """Embeddings of one encoder on both sides, and a loss that is one term among others."""
    call = CASES[name]()
    weight = normal(4, 4, seed=40).requires_grad_()

    def total(chosen):
        loss = call.loss(query=call.query @ weight, key=call.key @ weight, backend=chosen)
        return loss**2 + 0.1 * weight.square().sum()

    (actual,) = torch.autograd.grad(total(backend), weight)
    (expected,) = torch.autograd.grad(total("reference"), weight)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda w: call.loss(query=call.query @ w, key=call.key @ w, backend=backend), weight
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_tensor_on_both_sides(symmetric, backend):
    rows = normal(7, 5).requires_grad_()

    def loss(x):
        return contrastive_ops.info_nce(
            x, x, x, temperature=0.5, symmetric=symmetric, backend=backend
        )

    assert torch.autograd.gradcheck(loss, rows)


@reduced
def test_accumulated_gradients(reduction, backend):
    """Micro-batches add into .grad as dense ones do."""
    call = one().fresh()
    parts = [call.query[:2], call.query[2:]]
    for part in parts:
        call.loss(query=part, backend=backend, reduction=reduction).sum().backward()
    expected = sum(
        torch.autograd.grad(
            call.loss(query=part, backend="reference", reduction=reduction).sum(), call.key
        )[0]
        for part in parts
    )
    torch.testing.assert_close(call.key.grad, expected, rtol=1e-11, atol=1e-14)


def test_gradients_are_the_callers_own(backend):
    """Changing a returned gradient in place must not change the next one."""
    call = CASES["square"]().fresh()
    loss = call.loss(backend=backend)
    leaves = tuple(call.leaves.values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    for gradient in first:
        gradient.zero_()
    for gradient, expected in zip(torch.autograd.grad(loss, leaves), kept, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@varied
@reduced
def test_functional_gradient(name, reduction, backend):
    call = CASES[name]()
    names = list(call.leaves)

    def loss(*leaves):
        by_name = dict(zip(names, leaves, strict=True))
        return call.with_leaves(by_name).loss(backend=backend, reduction=reduction).sum()

    every = tuple(range(len(names)))
    leaves = tuple(t.detach() for t in call.leaves.values())
    gradients, value = torch.func.grad_and_value(loss, argnums=every)(*leaves)
    expected_value, expected = call.gradients(backend=backend, reduction=reduction)
    torch.testing.assert_close(value, expected_value.sum(), rtol=1e-13, atol=0)
    for leaf, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[leaf], rtol=1e-12, atol=1e-14)


def test_functional_hessian_vector_product(backend):
    call = CASES["symmetric, negatives"]()
    direction = normal(*call.query.shape, seed=41)

    def slope(chosen):
        gradient = torch.func.grad(lambda q: call.loss(query=q, backend=chosen))
        return torch.func.vjp(gradient, call.query)[1](direction)[0]

    torch.testing.assert_close(slope(backend), slope("reference"), rtol=1e-10, atol=1e-12)


def test_gradient_penalty(backend):
    """A gradient's norm in the loss: the commonest use of second derivatives."""

    def penalised(chosen):
        call = CASES["shared negatives"]().fresh()
        loss = call.loss(backend=chosen)
        (gradient,) = torch.autograd.grad(loss, call.query, create_graph=True)
        (loss + gradient.square().sum()).backward()
        return [t.grad for t in call.leaves.values()]

    torch.testing.assert_close(penalised(backend), penalised("reference"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_have_a_stated_limit(reduction, bounded_backend, monkeypatch):
    """Above it an error that says so: never a zero, never a dense matrix behind one's back."""
    assert reference.MAX_ELEMENTS == 2**26
    call = CASES["shared negatives"]().fresh()
    loss = call.loss(backend=bounded_backend, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, call.query, create_graph=True)
    monkeypatch.setattr(reference, "MAX_ELEMENTS", N * (M + K))
    assert torch.autograd.grad(gradient.sum(), call.key, retain_graph=True)[0].any()
    monkeypatch.setattr(reference, "MAX_ELEMENTS", N * (M + K) - 1)
    with pytest.raises(ValueError, match=f"second derivatives .* {N} x {M + K}"):
        gradient.sum().backward()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_temperature_of_any_dtype(dtype, symmetric, backend):
    call = one(m=N, symmetric=symmetric)
    call = call.with_leaves(
        {n: t.float() for n, t in call.leaves.items()} | {"temperature": torch.tensor(0.25)}
    )
    expected = call.derivative({"temperature": torch.tensor(1.0)})
    temperature = torch.tensor(0.25, dtype=dtype, requires_grad=True)
    loss = call.loss(temperature=temperature, backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32
    assert temperature.grad.dtype == dtype
    assert temperature.grad.shape == ()
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    assert temperature.grad.item() == pytest.approx(expected, rel=2 * rounding)


@pytest.mark.parametrize("negatives", [shared(), per_query()])
@pytest.mark.parametrize("positives", [None, index() % N])
def test_scalar_parameter(negatives, positives, backend):
    """A temperature trained through its own graph (log-scale), as CLIP does."""
    log_scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    call = one(negatives=negatives, positives=positives)
    assert torch.autograd.gradcheck(
        lambda s: call.loss(temperature=(-s).exp(), backend=backend), log_scale
    )
