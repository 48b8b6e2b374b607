"""The `triton` backend without a GPU: its checks in the interpreter, and how it is chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contrastive_ops
from contrastive_ops import info_nce

TESTS = Path(__file__).parent.parent / "triton"


@pytest.mark.slow
def test_in_the_interpreter():
    """In a process of its own: the interpreter is on or off for good, and concerns everybody."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_importing_is_cheap():
    code = "import sys, contrastive_ops; sys.exit('contrastive_ops.kernels.rows' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton")
    assert "TRITON_INTERPRET=1" in contrastive_ops.backends()["triton"]
    with pytest.raises(ValueError, match="backend: 'triton' cannot be used here: no GPU"):
        info_nce(torch.randn(3, 2), torch.randn(3, 2), backend="triton")


@pytest.mark.parametrize("value", ["fp32", "", 3, "IEEE"])
def test_bad_precision(value):
    with pytest.raises(ValueError, match=r"^precision: got .*, expected one of ieee, tf32x3, tf32"):
        info_nce(torch.randn(3, 2), torch.randn(3, 2), precision=value)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_precision_is_a_lower_bound(backend, precision):
    """Backends without a choice are as exact as ever."""
    rows = torch.randn(5, 4), torch.randn(6, 4)
    exact = info_nce(*rows, backend=backend)
    assert torch.equal(info_nce(*rows, backend=backend, precision=precision), exact)
