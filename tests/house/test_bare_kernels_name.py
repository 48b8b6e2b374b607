"""With the repository root on the path, the bare name `kernels` belongs to another distribution."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "kernels" / "__init__.py").is_file(), reason="not a source checkout"
)


def run(code, *, extra_path=()):
    """Runs the code from the repository root, which is first on the path as with `python -c`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, extra_path))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def other_kernels(tmp_path):
    """Another distribution named kernels, installed somewhere on the path."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from . import layer\n__version__ = '0.12.3'\nget_kernel = lambda x: layer.NAME + x\n"
    )
    (package / "layer.py").write_text("NAME = 'the other '\n")
    metadata = tmp_path / "kernels-0.12.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.3\n")
    return tmp_path


def test_ours_is_found_under_the_package_only():
    out = run("import contrastive_ops.kernels as k; print(k.__name__, hasattr(k, '__version__'))")
    assert out == "contrastive_ops.kernels False"


def test_the_bare_name_yields_to_the_other_distribution(other_kernels):
    code = "import kernels, kernels.layer; print(kernels.get_kernel('one'), kernels.__file__)"
    out = run(code, extra_path=[other_kernels])
    assert out == f"the other one {other_kernels / 'kernels' / '__init__.py'}"


def test_the_bare_name_is_of_no_use_without_the_other_distribution():
    out = run("import kernels; print(kernels.__version__, hasattr(kernels, 'get_kernel'))")
    assert out == "0 False"


def test_transformers_does_not_take_our_folder_for_it():
    pytest.importorskip("transformers")
    code = (
        "from transformers import AutoModel, BertConfig, BertModel\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "import importlib.metadata as m\n"
        "installed = any(d.name == 'kernels' for d in m.distributions())\n"
        "config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1,"
        " num_attention_heads=1, intermediate_size=4)\n"
        "BertModel(config)\n"
        "print(installed, is_kernels_available())"
    )
    installed, available = run(code).split()
    assert installed == "True" or available == "False"
