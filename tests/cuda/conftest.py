"""The CUDA kernels compiled for this CPU, as backend ``cuda``: one build for all tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "mining"), str(ROOT / "tests" / "triton")]

FLAGS = "-std=c++20 -O3 -ffp-contract=off -U_FORTIFY_SOURCE -fPIC -shared -Wall -Wextra -Werror"
FLAGS += " -Wno-unknown-pragmas -Wno-clobbered"


@pytest.fixture(scope="session")
def host_library(tmp_path_factory):
    """The path of csrc/cuda as a library for the CPU; one that the environment names is taken."""
    named = os.environ.get("CONTRASTIVE_OPS_CUDA_LIBRARY")
    if named:
        return named
    compiler = os.environ.get("CXX", "g++")
    path = tmp_path_factory.mktemp("cuda") / "host.so"
    source = ROOT / "csrc" / "cuda" / "selection.cu"
    command = [compiler, *FLAGS.split(), "-x", "c++", str(source), "-o", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"no C++ compiler was found (looked for {compiler})")
    assert done.returncode == 0, done.stderr
    return str(path)


@pytest.fixture(autouse=True)
def _on_the_cpu(host_library, monkeypatch):
    from contrastive_ops.engine.cuda import library

    monkeypatch.setenv(library.LIBRARY_VARIABLE, host_library)
    assert library.load()[1] == "ok"
