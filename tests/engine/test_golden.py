"""A worked example of the literature, and what follows from it."""

import math

import oracle
import pytest
import torch

import contrastive_ops

A = [0.8109, -0.9391, 0.2519]
POSITIVE = [-1.2887, 1.5057, 0.4449]
NEGATIVE = [2.1968, 0.4785, 1.5207]


def rows(dtype=torch.float64):
    return [torch.tensor([v], dtype=dtype, requires_grad=True) for v in (A, POSITIVE, NEGATIVE)]


def test_value_and_gradients(backend):
    a, b, c = rows()
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = contrastive_ops.info_nce(a, b, c, temperature=temperature, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(2.8811159375, abs=1e-10)
    expected = {
        a: [0.8046262604, 0.7189205201, 0.0899834295],
        b: [-0.0571373448, 0.0606325536, -0.3707065230],
        c: [0.1645317255, -0.5770954427, -0.0560946440],
    }
    for leaf, gradient in expected.items():
        assert leaf.grad[0].tolist() == pytest.approx(gradient, abs=1e-10)
    assert temperature.grad.item() == pytest.approx(-5.3301913640, abs=1e-10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, 1.6298179726),
        ({"temperature": 0.1}, 14.1170526723),
        ({"temperature": 0.07}, 20.1672170483),
        ({"temperature": 0.05}, 28.2341038652),
        ({}, 28.2341038652),
        ({"scale": 2}, 2.8811159375),
        ({"temperature": 0.5, "negative_log_weight": math.log(2)}, 3.5458265262),
        ({"temperature": 0.5, "margin": 0.1}, 3.0708997725),
    ],
)
def test_values(backend, options, expected):
    assert contrastive_ops.info_nce(*rows(), backend=backend, **options).item() == pytest.approx(
        expected, abs=1e-9
    )
    assert oracle.info_nce(*rows(), **options) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slides_digits(backend, dtype):
    loss = contrastive_ops.info_nce(*rows(dtype), temperature=0.5, backend=backend)
    assert abs(loss.item() - 2.8811) <= 5e-5
    assert loss.dtype == dtype
