"""Checks of the statistics that come with a loss, for any device (see `checks`)."""

from collections.abc import Iterator
from functools import partial

import torch
from cases import normal
from checks import Check, on

from contrastive_ops import info_nce, nt_xent

N, M, WIDTH = 35, 41, 18
INDEX = torch.arange(N)
SHARED, OWN = normal(6, WIDTH, seed=180), normal(N, 3, WIDTH, seed=181)
CASES = {
    "cold": {"temperature": 0.005},
    "two ways, stripes": {"symmetric": True, "workspace_bytes": 2000},
    "learnt, smoothing": {"temperature": torch.tensor(0.05), "label_smoothing": 0.1},
    "negatives": {"negatives": SHARED, "negative_log_weight": -0.5},
    "own negatives": {"negatives": OWN, "negatives_scope": "own"},
    "several positives, margin": {"positives": torch.stack([INDEX, INDEX + 6], 1), "margin": 0.2},
    "left out": {"query_ids": INDEX // 3, "key_ids": torch.arange(M) // 3},
    "dot product": {"normalize": False, "false_negative_margin": 0.5, "temperature": 2.0},
}


def all_checks(device: str) -> Iterator[Check]:
    for name in CASES:
        yield f"statistics, {name}", partial(check, name, torch.float32, device)
    for dtype in (torch.bfloat16, torch.float16):
        yield f"statistics, {dtype}", partial(check, "two ways, stripes", dtype, device)
    for smoothing in (0.0, 0.1):
        yield f"statistics, one set, {smoothing}", partial(check_one_set, smoothing, device)


def sanitized_checks(device: str) -> Iterator[Check]:
    yield "statistics", partial(check, "learnt, smoothing", torch.bfloat16, device)


def check(name, dtype, device) -> None:
    """Of equals, none is above the other: key 33 is key 5."""
    query, key = normal(N, WIDTH, seed=182), normal(M, WIDTH, seed=183)
    key[:N] += query
    key[33] = key[5]
    rows = [x.to(device, dtype) for x in (query, key)]
    given = {k: on(device, v, dtype) for k, v in CASES[name].items()}
    _compare(info_nce, rows, {"temperature": 0.1, **given})


def check_one_set(smoothing, device) -> None:
    rows = [normal(N // 2, WIDTH, seed=184 + i).to(device, torch.float32) for i in range(2)]
    for temperature in (0.2, torch.tensor(0.2, device=device)):
        options = {"temperature": temperature, "label_smoothing": smoothing}
        _compare(nt_xent, rows, {**options, "workspace_bytes": 1500})


def _compare(loss_function, rows, options) -> None:
    """With the reference's on the same rows in float64; with gradients and without."""
    exact = []
    wide = {k: v.double() if _is_rows(v) else v for k, v in options.items()}
    loss_function(*[x.double() for x in rows], backend="reference", statistics=exact.append, **wide)
    scale = 1 / float(options["temperature"])
    for leaves in (rows, [x.detach().requires_grad_() for x in rows]):
        found = []
        loss_function(*leaves, backend="triton", statistics=found.append, **options)
        for field, a, b in zip(exact[0]._fields, exact[0], found[0], strict=True):
            limit = {"rank": 0.0, "accuracy": 1e-6, "left_out": 1e-6}.get(
                field, 1e-6 * scale + 2e-6
            )
            assert (a.double() - b.double()).abs().max() <= limit, field


def _is_rows(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 1 and value.is_floating_point()
