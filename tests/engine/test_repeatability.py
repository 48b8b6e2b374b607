"""The same bits on every run, at every thread count, from several threads, in forked processes."""

import threading

import pytest
import torch
from cases import CASES, normal
from torch import multiprocessing

from contrastive_ops import info_nce

OPTIONS = [
    {},
    {"symmetric": True},
    {"reduction": "none"},
    {"symmetric": True, "reduction": "none"},
    {"symmetric": True, "false_negative_margin": 0.1, "label_smoothing": 0.1},
]
with_options = pytest.mark.parametrize("options", OPTIONS)
exact_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)


def outcome(n, m, width, dtype, backend, **options):
    """Loss and all gradients, of rows that are the same for the same sizes."""
    rows = [normal(count, width, seed=count, dtype=dtype) for count in (n, m, 23)]
    leaves = [x.requires_grad_() for x in rows]
    temperature = torch.tensor(0.1, requires_grad=True)
    loss = info_nce(*leaves, temperature=temperature, backend=backend, **options)
    loss.sum().backward()
    return [loss.detach(), temperature.grad, *(x.grad for x in leaves)]


def assert_same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@with_options
@exact_dtypes
def test_runs(options, dtype, backend):
    expected = outcome(129, 131, 33, dtype, backend, **options)
    for _ in range(3):
        assert_same_bits(outcome(129, 131, 33, dtype, backend, **options), expected)


@with_options
@exact_dtypes
@pytest.mark.parametrize(("n", "m", "width"), [(5, 7, 3), (300, 301, 33), (1031, 1200, 64)])
@pytest.mark.parametrize("workspace_bytes", [None, 1 << 17])
def test_thread_counts(n, m, width, workspace_bytes, options, dtype, restored_threads, cpu_kernel):
    """Of the kernel alone: PyTorch's own products may sum in another order with other threads."""
    options = options | {"workspace_bytes": workspace_bytes}
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(outcome(n, m, width, dtype, "cpu", **options))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@with_options
def test_python_threads(options, backend):
    """Two threads at once, each with a problem of its own."""
    sizes = [(257, 260, 17), (140, 333, 40)]
    expected = [outcome(*size, torch.float32, backend, **options) for size in sizes]
    wrong = []

    def work(size, right):
        for _ in range(10):
            result = outcome(*size, torch.float32, backend, **options)
            if not all(torch.allclose(a, e, rtol=1e-6) for a, e in zip(result, right, strict=True)):
                wrong.append(size)

    workers = [
        threading.Thread(target=work, args=pair) for pair in zip(sizes, expected, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_backward_in_another_thread(backend):
    call = CASES["symmetric, negatives"]().fresh()
    loss = call.loss(backend=backend)
    worker = threading.Thread(target=loss.backward)
    worker.start()
    worker.join()
    _, expected = CASES["symmetric, negatives"]().gradients(backend=backend)
    torch.testing.assert_close({n: t.grad for n, t in call.leaves.items()}, expected)


def _in_child(backend, queue):
    torch.set_num_threads(1)  # as a DataLoader's workers do
    loss, *_ = outcome(300, 301, 33, torch.float32, backend)
    queue.put(loss.item())


def test_fork(backend):
    """A forked worker computes what its parent, whose threads it has lost, computed before."""
    expected = outcome(300, 301, 33, torch.float32, backend)[0].item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(backend, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-6)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_thread_count_is_left_alone(backend, restored_threads):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outcome(300, 301, 33, torch.float32, backend)
        assert torch.get_num_threads() == threads


def test_random_state_is_left_alone(backend):
    state = torch.get_rng_state()
    outcome(30, 31, 8, torch.float32, backend)
    assert torch.equal(torch.get_rng_state(), state)
