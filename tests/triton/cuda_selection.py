"""Checks of the CUDA C++ selection on a GPU that has been given its library (gpu_cuda.build); none
elsewhere: tests/cuda runs the kernels' text on the CPU."""

from functools import partial

import brute
import selection
import torch

from contrastive_ops.engine import scores
from contrastive_ops.engine.cuda import library
from contrastive_ops.engine.cuda import selection as cuda_selection
from contrastive_ops.engine.exclusions import Exclusions
from contrastive_ops.engine.select import row_select

DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def scans(device):
    """The numbers of the scans that run here; none without the library."""
    kernels, _ = library.load()
    if kernels is None or kernels.on_gpu != (device == "cuda"):
        return []
    hopper = device == "cpu" or torch.cuda.get_device_capability()[0] == 9
    return [8, 9] if hopper else [8]


def all_checks(device):
    for scan in scans(device):
        for i, kind in enumerate(selection.KINDS):
            yield f"CUDA C++ {scan}, {kind}", partial(forced, scan, check_bits, kind, i, device)
        for dtype in DTYPES:
            yield (
                f"CUDA C++ {scan}, bound, {dtype}",
                partial(forced, scan, check_bound, dtype, device),
            )
            yield (
                f"CUDA C++ {scan}, stripes, {dtype}",
                partial(forced, scan, check_stripes, dtype, device),
            )
        yield f"CUDA C++ {scan}, repeated", partial(forced, scan, check_repeated, device)
        yield f"CUDA C++ {scan}, ties", partial(forced, scan, check_ties, device)


def sanitized_checks(device):
    for scan in scans(device):
        yield (
            f"CUDA C++ {scan}, clustered",
            partial(forced, scan, check_bits, "clustered", 1, device),
        )
        yield f"CUDA C++ {scan}, ties", partial(forced, scan, check_ties, device)


def forced(scan, check, *arguments):
    kernels = library.load()[0]._library
    kernels.co_force_scan(scan)
    try:
        check(*arguments)
    finally:
        kernels.co_force_scan(0)


def check_bits(kind, number, device):
    """Those of the reference, with and without exclusions and limits."""
    dtype = torch.float32 if kind == "subnormal" else DTYPES[number % 4]
    for n, m, width, k in ((1, 1, 1, 1), (33, 700, 100, 32), (130, 300, 300, 5)):
        x, y = selection.draw(kind, n, m, width, dtype, device)
        for metric in ("dot", "l2"):
            options = {"metric": metric, "normalize": k != 32}
            expected = row_select(x, y, k, backend="reference", **options)
            found = row_select(x, y, k, backend="cuda", **options)
            selection.assert_same(found, expected)
            limit = expected.scores[:, k // 2]
            options["upper"] = torch.where(limit.isfinite(), limit, torch.full_like(limit, 0.1))
            options["exclude"] = Exclusions.of(torch.randint(-1, m, (n, 6), device=device))
            expected = row_select(x, y, k, backend="reference", **options)
            selection.assert_same(row_select(x, y, k, backend="cuda", **options), expected)


def check_stripes(dtype, device):
    """Several stripes and chunks, and many tiles a block."""
    n, m = (3000, 120_000) if device == "cuda" else (140, 600)
    x, y = (rows.to(dtype).to(device) for rows in brute.clustered(n, m, 320))
    expected = row_select(x, y, 32, backend="torch")
    for budget in (4 << 20, None):
        found = row_select(x, y, 32, backend="cuda", workspace_bytes=budget)
        selection.assert_same(found, expected)


def check_repeated(device):
    """Ten times the same bits, and streams do not meet."""
    n, m = (2000, 60_000) if device == "cuda" else (20, 300)
    x, y = (rows.to(device) for rows in brute.clustered(n, m, 128))
    first = row_select(x, y, 20, backend="cuda")
    for _ in range(10 if device == "cuda" else 1):
        selection.assert_same(row_select(x, y, 20, backend="cuda"), first)


def check_ties(device):
    """Equal rows leave everything open."""
    x, y = (rows.to(device) for rows in brute.clustered(5, 3500, 40))
    y[:3400] = y[0]
    labels = torch.arange(5, device=device), torch.arange(3500, device=device) % 7
    for options in ({}, {"labels": labels}):
        expected = row_select(x, y, 3, backend="reference", **options)
        found = row_select(x, y, 3, backend="cuda", **options)
        selection.assert_same(found, expected)


def check_bound(dtype, device):
    """Entries hold their groups' best scores, though nothing cancels and sums are long."""
    n, m, width = (300, 512, 2048) if device == "cuda" else (20, 512, 200)
    x, y = (rows.abs().to(dtype).to(device) for rows in brute.clustered(n, m, width))
    seen = []
    score = cuda_selection._Stripe.score

    def watched(stripe, *arguments):
        entries = stripe.a.tensor("list").view(n, -1, 4)
        seen.append((entries.clone(), stripe.a.tensor("x_scale")[:n].clone()))
        return score(stripe, *arguments)

    cuda_selection._Stripe.score = watched
    try:
        row_select(x, y, m // 32, backend="cuda")  # as many as groups: all are listed
    finally:
        cuda_selection._Stripe.score = score
    ((entries, scale),) = seen
    x, y = (scores.prepared_rows(rows, True)[0].double() for rows in (x, y))
    best = (x @ y.T).unflatten(1, (m // 32, 32)).amax(2)
    low, high = (
        entries[:, : m // 32, i].contiguous().view(torch.float32).double() * scale[:, None]
        for i in (0, 1)
    )
    assert ((low <= best) & (best <= high)).all()
