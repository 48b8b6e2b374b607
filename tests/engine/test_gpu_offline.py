"""What every GPU kernel compiles to, without a GPU: `make gpu-offline` does all of them."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The plain problems in bfloat16 on Hopper: the kernels whose speed was promised."""
    pytest.importorskip("triton")
    output = tmp_path_factory.mktemp("offline") / "plans.json"
    module = "contrastive_ops.benchmarks.gpu_offline"
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", "--arch", "sm_90", "--output", str(output)],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())["plans"]


def tiles(plan):
    return [kernel for kernel in plan["kernels"] if "tile" in kernel]


def test_no_faults(plans):
    """No spills, within shared memory, tensor cores and bulk copies used."""
    kernels = [kernel for plan in plans for kernel in plan["kernels"] if "faults" in kernel]
    assert len(kernels) > 10
    assert all(kernel["faults"] == [] and kernel["spills"] == 0 for kernel in kernels)


def test_tiles_use_the_hardware(plans):
    for plan in plans:
        assert tiles(plan)
        for kernel in tiles(plan):
            assert kernel["matrix"] > 0
            assert kernel["bulk"] > 0
            assert 0 < kernel["registers"] <= 255
            assert 0 < kernel["shared"] <= 227 << 10


def test_one_way_computes_the_logits_once(plans):
    """3G: one pass of tiles and two library products a chunk; two ways have a second pass."""
    one, two = plans
    assert {kernel["kernel"] for kernel in tiles(one)} == {"statistics"}
    assert {kernel["kernel"] for kernel in tiles(two)} == {"statistics", "coefficients"}
    for plan in plans:
        assert plan["predicted_seconds"] > plan["roofline_seconds"]
