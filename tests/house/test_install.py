"""Installing: never a failed install for want of a compiler or torch, and the state is recorded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("contrastive_ops", "kernels", "benchmarks")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")

# A small stand-in for csrc/, so that the paths of the build are tested and not the compiler.
BINDING = """
#include <torch/csrc/utils/pybind.h>
#include "part.h"
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("part", &part); }
"""

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not a source checkout"),
    pytest.mark.skipif(
        importlib.util.find_spec("wheel") is None
        and importlib.util.find_spec("setuptools") is None,
        reason="needs setuptools",
    ),
]


@pytest.fixture
def sources(tmp_path):
    """A copy of the sources with the stand-in for the C++ part."""
    copy = tmp_path / "sources"
    copy.mkdir()
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "results")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    (copy / "csrc" / "cpu").mkdir(parents=True)
    (copy / "csrc" / "binding.cpp").write_text(BINDING)
    (copy / "csrc" / "part.h").write_text("int part();\n")
    (copy / "csrc" / "cpu" / "part.cpp").write_text("int part() { return 42; }\n")
    return copy


def build(sources, *command, expect=0, **environment):
    """Runs setup.py; returns what it printed."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("CONTRASTIVE_OPS_") and key != "PYTHONPATH"
    }
    done = subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=sources,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    return output


def record(folder):
    return json.loads((Path(folder) / "contrastive_ops" / "_build.json").read_text())


def wheel(sources, **environment):
    """Builds a wheel; returns its name and the files in it."""
    output = build(sources, "bdist_wheel", **environment)
    (path,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    return path.name, content, output


def test_pure_python_wheel(sources):
    name, content, output = wheel(sources, CONTRASTIVE_OPS_NO_EXTENSION="1")
    assert name.endswith("-py3-none-any.whl")
    assert "installing without the C++ kernels" in output
    state = json.loads(content["contrastive_ops/_build.json"])
    assert state["built"] is False
    assert "CONTRASTIVE_OPS_NO_EXTENSION" in state["reason"]
    for module in ("__init__", "cli", "kernels/__init__", "benchmarks/command"):
        assert f"contrastive_ops/{module}.py" in content
    assert "contrastive_ops/py.typed" in content
    assert "contrastive_ops/report/page.html.jinja" in content
    assert "contrastive_ops/training/recipes/simcse-unsup.yaml" in content
    tops = {entry.partition("/")[0] for entry in content}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"contrastive_ops"}


def test_without_torch_at_build_time(sources, tmp_path):
    # A torch that cannot be found, as in pip's isolated builds.
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    )
    _, content, _ = wheel(sources, PYTHONPATH=str(hide))
    state = json.loads(content["contrastive_ops/_build.json"])
    assert state["built"] is False
    assert "torch" in state["reason"]


def test_without_a_compiler(sources):
    output = build(sources, "build_ext", "--inplace", CXX="no-such-compiler")
    assert "installing without the C++ kernels" in output
    assert record(sources)["built"] is False
    assert record(sources)["cuda"]["built"] is False
    assert "no-such-compiler" in record(sources)["reason"]


NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release $NVCC_RELEASE, V1"; exit; fi
echo "$@" >> "$0.calls"
[ -z "$NVCC_REFUSES" ] || { echo "error: no such thing" >&2; exit 2; }
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


def test_cuda_kernels_where_nvcc_suits_torch(sources, tmp_path):
    """A stand-in for nvcc, and a torch that says it has CUDA; failures only cost the kernels."""
    nvcc = tmp_path / "home" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import torch; torch.version.cuda = '13.1'\n")
    (sources / "csrc" / "cuda").mkdir()
    (sources / "csrc" / "cuda" / "selection.cu").write_text("")
    library = sources / "contrastive_ops" / "_cuda.so"
    environment = {"CXX": "no-such-compiler", "CUDA_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(site), "TORCH_CUDA_ARCH_LIST": "7.5+PTX 8.0;9.0+PTX;"}

    build(sources, "build_ext", "--inplace", NVCC_RELEASE="13.0", **environment)
    facts = record(sources)["cuda"]
    assert facts == {"built": True, "cuda": "13.0", "architectures": "7.5+PTX 8.0;9.0+PTX;"}
    assert library.read_text() == "library\n"
    (call,) = nvcc.with_name("nvcc.calls").read_text().splitlines()
    for architecture in ("sm_80", "sm_90a", "code=compute_90"):
        assert f"code={architecture}".replace("code=code", "code") in call
    assert "compute_75" not in call

    build(sources, "build_ext", "--inplace", NVCC_RELEASE="12.8", **environment)
    assert record(sources)["cuda"]["reason"] == "nvcc is of CUDA 12.8, torch of 13.1"
    assert not library.exists()

    older = environment | {"TORCH_CUDA_ARCH_LIST": "7.0;7.5"}
    build(sources, "build_ext", "--inplace", NVCC_RELEASE="13.0", **older)
    assert "the kernels need 8.0 or newer" in record(sources)["cuda"]["reason"]

    (sources / "csrc" / "cuda" / "selection.cu").write_text("// changed")
    refused = {"NVCC_RELEASE": "13.0", "NVCC_REFUSES": "1"}
    build(sources, "build_ext", "--inplace", **refused, **environment)
    assert "nvcc failed: error: no such thing" in record(sources)["cuda"]["reason"]
    assert not library.exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_build_failure_and_repair(sources):
    part = sources / "csrc" / "cpu" / "part.cpp"
    good = part.read_text()

    build(sources, "build_ext", "--inplace")
    state = record(sources)
    assert state["built"] is True
    import torch

    assert state["torch"] == torch.__version__
    assert state["compiler"]
    assert load_part(sources) == 42

    # What cannot be compiled degrades, takes the library of before away, and is fatal on request.
    part.write_text("int part() { return forty_two; }\n")
    build(sources, "build_ext", "--inplace", expect=1, CONTRASTIVE_OPS_REQUIRE_EXTENSION="1")
    build(sources, "build_ext", "--inplace")
    assert record(sources)["built"] is False
    assert not list((sources / "contrastive_ops").glob("_C*.so"))

    # Only the changed file is compiled again, and a changed header counts.
    part.write_text(good.replace("42", "43"))
    binding = next((sources / "build").rglob("binding.o"))
    before = binding.stat().st_mtime_ns
    build(sources, "build_ext", "--inplace")
    assert load_part(sources) == 43
    assert binding.stat().st_mtime_ns == before
    (sources / "csrc" / "part.h").write_text("int part();  // touched\n")
    build(sources, "build_ext", "--inplace")
    assert binding.stat().st_mtime_ns > before


def load_part(sources):
    (library,) = (sources / "contrastive_ops").glob("_C*.so")
    code = (
        "import importlib.util as u, sys, torch\n"
        "spec = u.spec_from_file_location('_C', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.part())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_required_extension_is_fatal_without_torch(sources, tmp_path):
    (sources / "csrc" / "binding.cpp").unlink()
    output = build(sources, "build", expect=1, CONTRASTIVE_OPS_REQUIRE_EXTENSION="1")
    assert "were required" in output
    assert "binding.cpp" in output
