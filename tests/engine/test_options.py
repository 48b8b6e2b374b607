"""Every option in every backend: value and gradients against the oracle, and a visible effect."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from cases import CASES, H, K, N, normal, one, per_query, shared

case = pytest.mark.parametrize("name", CASES)


@cache
def expected(name):
    """The oracle's row losses, loss, and derivatives along one random direction per leaf."""
    call = CASES[name]()
    directions = {
        leaf: normal(*tensor.shape, seed=20 + i)
        for i, (leaf, tensor) in enumerate(call.leaves.items())
    }
    slopes = {leaf: call.derivative({leaf: v}) for leaf, v in directions.items()}
    return call.oracle(reduction="none"), call.oracle(), directions, slopes


@case
def test_value(name, backend):
    rows, loss, _, _ = expected(name)
    call = CASES[name]()
    assert call.loss(backend=backend).item() == pytest.approx(loss, rel=1e-11, abs=1e-13)
    actual = call.loss(backend=backend, reduction="none")
    assert actual.shape == (N,)
    assert actual.tolist() == pytest.approx(rows, rel=1e-11, abs=1e-13)


@case
def test_gradients(name, backend):
    _, _, directions, slopes = expected(name)
    _, gradients = CASES[name]().gradients(backend=backend)
    for leaf, direction in directions.items():
        slope = (gradients[leaf] * direction).sum().item()
        assert slope == pytest.approx(slopes[leaf], rel=1e-9, abs=1e-11), leaf


@case
def test_row_gradients(name, backend):
    """The rows of reduction "none" carry their own upstream gradients."""
    upstream = normal(N, seed=30)
    call = CASES[name]().fresh()
    call.loss(backend=backend, reduction="none").backward(upstream)
    # The weighted sum of the row losses, written with the oracle's own row weights.
    weight = call.options.get("row_weight")
    scalar = upstream if weight is None else upstream * weight
    options = call.options | {"reduction": "sum", "row_weight": scalar}
    plain = CASES[name]()
    _, _, directions, _ = expected(name)
    for leaf, direction in directions.items():
        slope = replace(plain, options=options).derivative({leaf: direction})
        actual = (call.leaves[leaf].grad * direction).sum().item()
        assert actual == pytest.approx(slope, rel=1e-9, abs=1e-11), leaf


@case
def test_effect(name):
    """Without the option the loss is another one: the cases above would notice its absence."""
    call = CASES[name]()
    assert abs(call.oracle() - call.oracle(**call.without)) > 1e-5


@case
def test_several_stripes(name, bounded_backend):
    call = CASES[name]()
    whole = call.gradients(backend=bounded_backend)
    striped = call.gradients(backend=bounded_backend, workspace_bytes=1)
    torch.testing.assert_close(striped, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_lone_positive_costs_nothing(backend, symmetric, label_smoothing):
    call = one(n=1, m=1, margin=0.3, symmetric=symmetric, label_smoothing=label_smoothing)
    loss, gradients = call.gradients(backend=backend)
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("options", [{"in_batch": False}, {"query_ids": torch.zeros(N).long()}])
def test_rows_left_with_their_positive_cost_nothing(backend, options):
    if "query_ids" in options:
        options = options | {"key_ids": torch.zeros(N).long()}
    loss, gradients = one(m=N, reduction="sum", **options).gradients(backend=backend)
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("negatives", [shared(0), per_query(h=0)])
def test_no_negatives_at_all(backend, negatives):
    assert torch.equal(one(negatives=negatives).loss(backend=backend), one().loss(backend=backend))


def test_padded_negatives_do_not_count(backend):
    """-inf leaves a negative out altogether, whatever its row holds, also of smoothing."""
    negatives = shared()
    weights = torch.zeros(K, dtype=torch.float64)
    weights[2:] = -math.inf
    options = {"label_smoothing": 0.3, "backend": backend}
    shorter, expected_gradients = one(negatives=negatives[:2], **options).gradients()
    longer, gradients = one(negatives=negatives, negative_log_weight=weights, **options).gradients()
    torch.testing.assert_close(longer, shorter, rtol=1e-13, atol=0)
    assert (gradients["negatives"][2:] == 0).all()
    torch.testing.assert_close(gradients["query"], expected_gradients["query"])


def test_scale_is_the_reciprocal_temperature(backend):
    for temperature in (0.02, 0.5, 4.0):
        scaled = replace(one(), options={"scale": 1 / temperature})
        torch.testing.assert_close(
            scaled.loss(backend=backend),
            one(temperature=temperature).loss(backend=backend),
            rtol=1e-12,
            atol=0,
        )


def test_simcse_weight_is_a_factor(backend):
    """exp(log-weight) copies of a negative are worth one with that log-weight."""
    negatives = per_query()
    twice = one(negatives=negatives.repeat(1, 2, 1), negatives_scope="own")
    weighted = one(negatives=negatives, negatives_scope="own", own_negative_log_weight=math.log(2))
    assert twice.loss(backend=backend).item() == pytest.approx(
        weighted.loss(backend=backend).item(), rel=1e-13
    )


def test_row_weights_scale_only_the_sum(backend):
    weight = torch.full((N,), 3.0)
    assert one(row_weight=weight).loss(backend=backend).item() == pytest.approx(
        one().loss(backend=backend).item(), rel=1e-13
    )
    assert one(row_weight=weight, reduction="sum").loss(backend=backend).item() == pytest.approx(
        3 * one(reduction="sum").loss(backend=backend).item(), rel=1e-13
    )


def test_matryoshka_is_a_sum_over_prefixes(backend):
    plain = one(negatives=shared())
    whole = one(negatives=shared(), matryoshka_dims=[2, 4], matryoshka_weights=[0.5, 1.5])
    parts = [
        plain.loss(
            query=plain.query[:, :d],
            key=plain.key[:, :d],
            negatives=plain.negatives[:, :d],
            backend=backend,
        )
        for d in (2, 4)
    ]
    assert whole.loss(backend=backend).item() == pytest.approx(
        (0.5 * parts[0] + 1.5 * parts[1]).item(), rel=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(backend, dtype, weight_dtype):
    call = one(
        negatives=per_query(),
        negative_log_weight=torch.zeros(N, H, dtype=weight_dtype),
        row_weight=torch.ones(N, dtype=weight_dtype),
    ).fresh(dtype)
    options = call.options | {"temperature": torch.tensor(0.25, dtype=weight_dtype)}
    call = replace(call, options=options).fresh()
    loss = call.loss(backend=backend)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for leaf in call.leaves.values():
        assert leaf.grad.dtype == leaf.dtype
    exact = call.oracle()
    assert loss.item() == pytest.approx(exact, rel=1e-12 if dtype == torch.float64 else 1e-2)
