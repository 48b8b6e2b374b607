"""Which backend serves a call, and how one says so."""

import pytest
import torch
from cases import CASES

import contrastive_ops
from contrastive_ops import info_nce
from contrastive_ops.engine import backends

VARIABLE = "CONTRASTIVE_OPS_BACKEND"
rows = torch.randn(2, 6, 5)


@pytest.fixture
def served(monkeypatch):
    """The names of the backends whose kernels were asked for."""
    names = []
    choose = backends.choose

    def noted(*args):
        names.append(choose(*args))
        return names[-1]

    monkeypatch.setattr(backends, "choose", noted)
    return names


def test_status():
    status = contrastive_ops.backends()
    assert {"reference", "torch", "cpu", "triton", "cuda"} == set(status)
    assert status["reference"] == status["torch"] == "ok"
    assert all(isinstance(reason, str) and reason for reason in status.values())


def test_by_argument(backend, served):
    info_nce(*rows, backend=backend)
    assert served == [backend]


def test_by_environment(backend, served, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    info_nce(*rows)
    assert served == [backend]


def test_argument_wins(served, monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    info_nce(*rows, backend="torch")
    assert served == ["torch"]


def test_empty_variable_is_none_at_all(served, monkeypatch):
    info_nce(*rows)
    monkeypatch.setenv(VARIABLE, "")
    info_nce(*rows)
    assert served[0] == served[1]


def test_fastest_by_default(served):
    info_nce(*rows)
    kernel = contrastive_ops.backends()["cpu"] == "ok"
    assert served == ["cpu" if kernel else "torch"]


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu "])
def test_unknown_name(name, monkeypatch):
    with pytest.raises(ValueError, match=f"^backend: got '{name}', expected one of reference, "):
        info_nce(*rows, backend=name)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ValueError, match=f"^{VARIABLE}: got '{name}', expected one of reference, "):
        info_nce(*rows)


def test_unavailable_backend_says_why():
    for name, status in contrastive_ops.backends().items():
        if status != "ok":
            with pytest.raises(ValueError, match="backend: ") as error:
                info_nce(*rows, backend=name)
            assert status in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_no_dense_matrix_behind_ones_back(name, bounded_backend, monkeypatch):
    """Forward and first derivatives never go through the dense reference's row losses whole."""
    from contrastive_ops.engine import reference

    widest = []
    logits = reference.logits

    def watched(problem, operands):
        widest.append(operands.query.shape[0])
        return logits(problem, operands)

    monkeypatch.setattr(reference, "logits", watched)
    CASES[name]().gradients(backend=bounded_backend, workspace_bytes=1)
    assert all(count == 1 for count in widest)
