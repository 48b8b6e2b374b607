"""The `triton` backend's checks in Triton's interpreter, which a process has on or off for good.

`pytest` on all tests runs them in a process of its own (tests/engine/test_triton.py); here they
are with TRITON_INTERPRET=1, or on a GPU.
"""

import checks
import pytest
import torch

from contrastive_ops.engine.backends import interpreting

DEVICE = "cpu" if interpreting() else "cuda"

if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("TRITON_INTERPRET is not set and there is no GPU", allow_module_level=True)


@pytest.mark.parametrize(
    "check", [pytest.param(c, id=name) for name, c in checks.all_checks(DEVICE)]
)
def test(check):
    check()
