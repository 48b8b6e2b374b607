"""What every test shares: the backends that work here, a fixed seed, hypothesis's settings."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

import contrastive_ops
from contrastive_ops.engine.backends import interpreting

sys.path.insert(0, str(Path(__file__).parent))  # oracle, dense, cases, strategies

WORKING = [name for name, status in contrastive_ops.backends().items() if status == "ok"]
if not interpreting():  # these tests' tensors are on the CPU; tests/triton runs on a GPU, too
    WORKING = [name for name in WORKING if name != "triton"]
BOUNDED = [name for name in WORKING if name != "reference"]  # never hold the N x M matrix

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=40, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:  # a module may name its own: tests/cuda
        metafunc.parametrize("backend", getattr(metafunc.module, "BACKENDS", WORKING))
    if "bounded_backend" in metafunc.fixturenames:
        metafunc.parametrize("bounded_backend", BOUNDED)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    """A caller's environment must not change which backend a test runs."""
    monkeypatch.delenv("CONTRASTIVE_OPS_BACKEND", raising=False)


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cpu_kernel():
    if "cpu" not in WORKING:
        pytest.skip(f"cpu: {contrastive_ops.backends()['cpu']}")
