"""The folder's helpers, and the scans that this CPU's kernel has."""

import sys
from pathlib import Path

import pytest

from contrastive_ops.engine import extension

sys.path.insert(0, str(Path(__file__).parent))  # brute


@pytest.fixture
def isas():
    """Runs a function under every instruction set of this CPU."""
    kernel = extension.load()[0]
    if kernel is None:
        pytest.skip(f"cpu: {extension.load()[1]}")

    def run(function):
        try:
            for name in kernel.available_isas():
                kernel.select_isa(name)
                function(name)
        finally:
            kernel.select_isa("")

    return run
