"""Memory: nothing beyond the operands' rows is read or written, and no matrix is ever held."""

import math
import os
import subprocess
import sys

import pytest
import torch
from cases import normal
from strategies import LAYOUTS, laid_out

from contrastive_ops import info_nce

MiB = 1 << 20


def gradients(operands, backend, **options):
    leaves = [x.detach().requires_grad_() for x in operands]
    loss = info_nce(*leaves, backend=backend, **options)
    loss.backward()
    return [loss.detach(), *(x.grad for x in leaves)]


def operands(n: int, m: int, width: int, dtype: torch.dtype):
    return [normal(rows, width, seed=rows, dtype=dtype) for rows in (n, m, 9)]


@pytest.mark.parametrize("layout", [k for k in LAYOUTS if k != "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_layouts(layout, dtype, symmetric, backend):
    rows = operands(33, 37, 19, dtype)
    if layout == "expanded":
        rows = [x[:1].expand_as(x) for x in rows]
    else:
        rows = [laid_out(x, layout) for x in rows]
    expected = gradients([x.clone().contiguous() for x in rows], backend, symmetric=symmetric)
    actual = gradients(rows, backend, symmetric=symmetric)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)


def test_layouts_of_negatives_per_query(backend):
    query, key = operands(7, 8, 6, torch.float32)[:2]
    negatives = normal(7, 4, 6, dtype=torch.float32)
    for view in (
        negatives.transpose(0, 1).contiguous().transpose(0, 1),
        negatives.transpose(1, 2).contiguous().transpose(1, 2),
        laid_out(negatives, "offset"),
        negatives[:1].expand(7, 4, 6),
        negatives[:, :1].expand(7, 4, 6),
    ):
        for scope in ("all", "own"):
            options = {"negatives_scope": scope, "temperature": 0.2}
            expected = gradients([query, key, view.clone().contiguous()], backend, **options)
            actual = gradients([query, key, view], backend, **options)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["ids", "positives", "row_weight", "log-weight", "guide"])
def test_layouts_of_the_descriptors(kind, backend):
    """Strided views of everything that is no embedding."""
    query, key, negatives = operands(6, 8, 5, torch.float32)
    ids = torch.tensor([1, 2, 1, 3, 4, 2])
    options = {
        "ids": {
            "query_ids": ids,
            "key_ids": torch.arange(8) % 3,
            "negative_ids": torch.arange(9) % 5,
        },
        "positives": {"positives": torch.tensor([[0, 1], [1, -1], [2, 7], [3, 4], [5, 6], [7, 0]])},
        "row_weight": {"row_weight": normal(6, dtype=torch.float32).abs()},
        "log-weight": {"negative_log_weight": normal(9, dtype=torch.float32)},
        "guide": {"guide": tuple(normal(len(x), 3, seed=7) for x in (query, key, negatives))},
    }[kind]

    def strided(x):
        if isinstance(x, tuple):
            return tuple(strided(part) for part in x)
        view = torch.stack([x, x.flip(0)], -1)[..., 0]
        assert not view.is_contiguous()
        return view

    expected = gradients([query, key, negatives], backend, **options)
    views = {name: strided(value) for name, value in options.items()}
    assert torch.equal(info_nce(query, key, negatives, backend=backend, **views), expected[0])
    torch.testing.assert_close(
        gradients([query, key, negatives], backend, **views), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("guard", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (65, 67, 33), (257, 259, 17)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_guards_around_the_rows(n, m, width, symmetric, dtype, guard, backend):
    """Rows inside larger buffers: what lies around them neither matters nor changes."""
    plain = operands(n, m, width, dtype)
    buffers, views = [], []
    for rows in plain:
        count = len(rows)
        buffer = torch.full((count + 8, width), guard, dtype=torch.float64).to(dtype)
        buffer[4:-4] = rows
        buffers.append(buffer)
        views.append(buffer[4:-4])
    copies = [b.clone() for b in buffers]
    options = {"symmetric": symmetric, "temperature": 0.1, "workspace_bytes": 1 << 14}
    expected = gradients(plain, backend, **options)
    actual = gradients(views, backend, **options)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
        assert a.isfinite().all()
    for buffer, copy in zip(buffers, copies, strict=True):
        assert torch.equal(buffer.nan_to_num(nan=7.0), copy.nan_to_num(nan=7.0))


def test_operands_are_left_alone(backend):
    rows = operands(20, 21, 7, torch.float32)
    weight, log_weight = torch.rand(20), torch.randn(9)
    everything = [*rows, weight, log_weight]
    copies = [x.clone() for x in everything]
    gradients(rows, backend, row_weight=weight, negative_log_weight=log_weight)
    for x, copy in zip(everything, copies, strict=True):
        assert torch.equal(x, copy)


PEAK = """
import torch
from contrastive_ops import info_nce, nt_xent, sigmoid_loss, similarity_divergence

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

def step(n, m):
    rows = [torch.randn(count, {width}, dtype={dtype}, requires_grad=True) for count in (n, m)]
    {loss}(*rows, backend="{backend}", workspace_bytes={workspace}, {options}).{call}
    return rows

step(512, 512)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
rows = step({n}, {m})
print(status("VmHWM") - before)
"""


def peak_bytes(backend: str, n: int, m: int, width: int, workspace: int, **more: str) -> int:
    """What one step adds to a fresh process at its highest: operands and gradients included."""
    fields = {"dtype": "torch.float32", "options": "", "call": "backward()", "loss": "info_nce"}
    fields |= more
    script = PEAK.format(backend=backend, n=n, m=m, width=width, workspace=workspace, **fields)
    # Threads that wait actively would take the cores from the other tests, and beside those an
    # allocator's arenas come and go: one thread for what is PyTorch's own.
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if backend == "torch" else {})
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def bound(n: int, width: int, workspace: int) -> int:
    """Workspace; operands, their unit rows, gradients and sums of gradients; what malloc keeps."""
    return workspace + 8 * n * width * 4 + 32 * MiB


@linux
@pytest.mark.slow
def test_peak(bounded_backend):
    """The dense logits would be 1 GiB a copy."""
    n, width, workspace = 1 << 14, 64, 32 * MiB
    peak = peak_bytes(bounded_backend, n, n, width, workspace)
    assert peak < bound(n, width, workspace) < MiB << 7


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"options": "symmetric=True"},
        {"options": "symmetric=True", "dtype": "torch.bfloat16"},
        {"options": "reduction='none'", "call": "sum().backward()"},
        {"options": "false_negative_margin=0.1, label_smoothing=0.1, symmetric=True"},
        {"options": "matryoshka_dims=(32, 16, 8, 4)"},
        {"loss": "sigmoid_loss"},
        {"loss": "nt_xent"},
    ],
)
def test_peak_of_options(more, bounded_backend):
    """The dense logits would be 256 MiB a copy."""
    n, width, workspace = 1 << 13, 32, 8 * MiB
    peak = peak_bytes(bounded_backend, n, n, width, workspace, **more)
    assert peak < bound(n, width, workspace) < MiB << 6


@linux
@pytest.mark.slow
def test_memory_grows_as_n(bounded_backend):
    """Twice the rows are at most twice the memory, where the logits are four times as many."""
    sizes = [peak_bytes(bounded_backend, n, n, 16, 4 * MiB) for n in (1 << 12, 1 << 13)]
    assert sizes[1] < 2.2 * sizes[0] + 8 * MiB


@linux
@pytest.mark.slow
def test_peak_of_stripes():
    """Results that outlive a stripe must not lie between the stripes' matrices: the heap would
    grow with every stripe, to the size of the matrix."""
    n, width, workspace = 1 << 12, 8, 2 * MiB
    loss = "(lambda q, k, **o: similarity_divergence(q, k, k, q, reduction='none', **o))"
    peak = peak_bytes("torch", n, n, width, workspace, loss=loss, call="sum().backward()")
    assert peak < bound(n, width, workspace)
