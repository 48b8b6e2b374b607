"""InfoNCELoss: the function with its settings kept, and a temperature that may learn."""

import copy
import io
import math
import pickle

import pytest
import torch
from cases import CASES, normal

import contrastive_ops
from contrastive_ops import InfoNCELoss, info_nce

SETTINGS = {
    "temperature": 0.2,
    "symmetric": True,
    "false_negative_margin": 0.1,
    "margin": 0.05,
    "label_smoothing": 0.1,
    "matryoshka_dims": [2, 4],
    "matryoshka_weights": [1.0, 0.5],
    "reduction": "sum",
}


def rows():
    return normal(6, 4, seed=1), normal(8, 4, seed=2)


@pytest.mark.parametrize(
    "name", ["square", "own log-weight", "everything", "symmetric, several positives", "sum"]
)
def test_is_the_function(name, backend):
    """What is set once and what comes with the batch, together, are the function's arguments."""
    call = CASES[name]()
    fixed = InfoNCELoss.__init__.__kwdefaults__
    options = call.options | {"temperature": 0.3, "backend": backend}
    module = InfoNCELoss(**{k: v for k, v in options.items() if k in fixed})
    with_batch = {k: v for k, v in options.items() if k not in fixed}
    loss = module(call.query, call.key, call.negatives, **with_batch)
    assert torch.equal(loss, info_nce(call.query, call.key, call.negatives, **options))


def test_defaults_are_the_functions():
    ours, function = InfoNCELoss.__init__.__kwdefaults__, info_nce.__kwdefaults__
    shared = ours.keys() & function.keys()
    assert {"temperature", "symmetric", "normalize", "reduction", "margin"} <= shared
    assert {k: ours[k] for k in shared} == {k: function[k] for k in shared}


@pytest.mark.parametrize("learnable", [False, True])
def test_copies(learnable):
    module = InfoNCELoss(**SETTINGS, learnable_temperature=learnable)
    if learnable:
        torch.optim.SGD(module.parameters(), 0.1).step()
    expected = module(*rows())
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(*rows()), expected)
        assert repr(twin) == repr(module)
    if learnable:
        twin = copy.deepcopy(module)
        with torch.no_grad():
            next(twin.parameters()).add_(0.5)
        assert torch.equal(module(*rows()), expected)
        assert not torch.equal(twin(*rows()), expected)


def test_state_dict_carries_the_temperature():
    module = InfoNCELoss(temperature=0.5, learnable_temperature=True)
    other = InfoNCELoss(temperature=0.05, learnable_temperature=True)
    assert not torch.equal(module(*rows()), other(*rows()))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(*rows()), other(*rows()))
    assert not InfoNCELoss(temperature=0.5).state_dict()


def test_fixed_temperature_has_no_parameter():
    assert not list(InfoNCELoss(temperature=0.1).parameters())


def test_temperature_learns(backend):
    """The gradient of the log-scale is the temperature's, times -T; descent follows it."""
    module = InfoNCELoss(temperature=0.2, learnable_temperature=True, backend=backend)
    (parameter,) = module.parameters()
    query, key = rows()
    loss = module(query, key)
    loss.backward()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    info_nce(query, key, temperature=temperature, backend=backend).backward()
    assert parameter.grad.item() == pytest.approx(-0.2 * temperature.grad.item(), rel=1e-5)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(5):
        before = module(query, key)
        optimizer.zero_grad()
        before.backward()
        optimizer.step()
        assert module(query, key) < before


@pytest.mark.parametrize(("shift", "bound"), [(10.0, 0.01), (-10.0, 2.0)])
def test_clamp(shift, bound, backend):
    """Beyond its bounds the temperature is the bound."""
    module = InfoNCELoss(
        temperature=0.2, learnable_temperature=True, max_temperature=2.0, backend=backend
    )
    with torch.no_grad():
        next(module.parameters()).add_(shift)
    expected = info_nce(*rows(), temperature=bound, backend=backend)
    assert module(*rows()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_initial_value_at_a_bound_is_exact():
    """CLIP starts near its clamp: starting on it must not be an error of rounding."""
    for temperature in (0.01, 0.07, 10.0):
        module = InfoNCELoss(temperature=temperature, learnable_temperature=True)
        expected = info_nce(*rows(), temperature=temperature)
        assert module(*rows()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_repr_says_what_differs():
    text = repr(InfoNCELoss(**SETTINGS))
    assert "0.2" in text
    assert "symmetric=True" in text
    assert "label_smoothing=0.1" in text
    assert "normalize" not in text
    assert "learnable" in repr(InfoNCELoss(learnable_temperature=True))


def test_moves_with_its_model():
    """Inside a model: dtype conversions and parameter lists reach the temperature."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Identity())
    model.loss = InfoNCELoss(learnable_temperature=True)
    assert len(list(model.parameters())) == 3
    model = model.to(torch.bfloat16)
    query, key = (x.bfloat16() for x in rows())
    loss = model.loss(model[0](query), key)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_functional_call():
    module = InfoNCELoss(learnable_temperature=True, temperature=0.1)
    ((name, parameter),) = module.named_parameters()
    other = torch.full_like(parameter, -math.log(0.5))
    loss = torch.func.functional_call(module, {name: other}, rows())
    assert loss.item() == pytest.approx(info_nce(*rows(), temperature=0.5).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": 20.0, "learnable_temperature": True}, "temperature"),
        ({"temperature": 0.001, "learnable_temperature": True}, "temperature"),
        ({"min_temperature": 0.0}, "min_temperature"),
        ({"max_temperature": math.inf}, "max_temperature"),
    ],
)
def test_bad_settings(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
        contrastive_ops.InfoNCELoss(**arguments)
