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
    told = json.loads(output.read_text())
    for plan in told["plans"]:
        plan["kernels"] = [
            told["kernels"][number] | {"launches": launches, "seconds": seconds}
            for number, launches, seconds in plan["kernels"]
        ]
    return told["plans"]


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
            # Rows wherever they lie, and one document after another, are read by pointers.
            gathers = kernel["kernel"] in ("group_values", "token_maxima")
            assert gathers or kernel["bulk"] > 0
            assert 0 < kernel["registers"] <= 255
            assert 0 < kernel["shared"] <= 227 << 10


def test_how_often_the_logits_are_computed(plans):
    """3G: one pass of tiles and two library products a chunk; two ways and one set against itself
    have a second pass, at half the work where the matrix is symmetric."""
    found = {(plan["family"], plan["problem"]): plan for plan in plans}
    one, two = (found["info_nce", f"{way}, T a number"] for way in ("one way", "two ways"))
    same, pairs = found["nt_xent", "T a number"], found["sigmoid_loss", "T and bias tensors"]
    assert {kernel["kernel"] for kernel in tiles(one)} == {"statistics"}
    assert {kernel["kernel"] for kernel in tiles(two)} == {"statistics", "coefficients"}
    assert {kernel["kernel"] for kernel in tiles(same)} == {"statistics", "coefficients"}
    assert {kernel["kernel"] for kernel in tiles(pairs)} == {"pairwise"}
    assert same["predicted_seconds"] < 0.55 * two["predicted_seconds"]
    for plan in plans:
        assert plan["predicted_seconds"] > plan["roofline_seconds"]


def test_selection_scans_once_and_looks_again_at_few(plans):
    (plan,) = (plan for plan in plans if plan["family"] == "row_select")
    spent = {kernel["kernel"]: kernel["seconds"] for kernel in tiles(plan)}
    assert spent.keys() == {"group_maxima", "group_values"}
    assert spent["group_values"] < 0.1 * spent["group_maxima"]


ROLES = """
import os, pathlib, sys
from contrastive_ops.kernels import config

chip = config.ARCHITECTURES["sm_90"]
other = config.Architecture("sm_89", 99 << 10, 100 << 10)
for role in config.ROLES:
    for itemsize, precision in ((2, "ieee"), (4, "ieee"), (4, "tf32"), (4, "tf32x3")):
        for architecture in (*config.ARCHITECTURES.values(), other):
            tile = config.tile_for(architecture, role, itemsize, precision)
            assert tile.shared_bytes(itemsize) <= architecture.shared_bytes, (architecture, tile)
            assert (128 // itemsize) % tile.block_k == 0, tile
            assert not tile.bulk or architecture.bulk
mine = config.Tile(64, 64, 32, 4, 2)
path = pathlib.Path(sys.argv[1])
config.write_tuned(path, {("sm_90", "16", "plain"): mine})
before = config.tile_for(chip, "plain", 2, "ieee")
os.environ[config.TUNED_VARIABLE] = str(path)
assert config.tile_for(chip, "plain", 2, "ieee") == mine != before
assert config.tile_for(chip, "maxima", 2, "ieee") != mine
"""


def test_tiles_keep_their_constraints(tmp_path):
    """On architectures with a table and without one; tuned tiles only where they are asked for."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", ROLES, str(tmp_path / "tiles.json")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


LENGTHS = """
from functools import partial
import torch
from contrastive_ops.benchmarks import gpu_plan, gpu_softmax
from contrastive_ops.benchmarks.gpu_cases import empty
from contrastive_ops.engine.problem import Operands, SimilarityProblem

def kernels(n, m, symmetric):
    rows = [empty(count, 768, of=torch.bfloat16) for count in (n, m)]
    learnt = Operands(*rows, temperature=empty(of=torch.float32))
    problem = SimilarityProblem(symmetric=symmetric)
    plan = gpu_plan.record(partial(gpu_softmax.step, problem, learnt), "sm_90")
    return {launch.key() for launch in plan.launches}

for symmetric in (False, True):
    assert kernels(4096, 4096, symmetric) == kernels(5001, 5003, symmetric)
"""


def test_lengths_are_run_time_arguments():
    """The same compiled kernels serve batches of other sizes. Tensors without data have no values:
    nothing on the way can have read one."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LENGTHS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
