"""Checks of one set against itself and of sums over pairs, for any device (see `checks`)."""

import math
from collections.abc import Iterator
from functools import partial

import dense
import torch
from cases import normal
from checks import Check, on

from contrastive_ops import info_nce, nt_xent, sigmoid_loss
from contrastive_ops.engine.gpu import prepared

N, WIDTH = 23, 20
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Of gradients, relative to the largest: two roundings to the dtype, or float32's."""
ONE_SET = {
    "plain": {},
    "rows apart": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "margin": {"false_negative_margin": -0.1},
    "dot product": {"normalize": False},
}
PAIRS = {
    "plain": {},
    "rows apart": {"reduction": "none"},
    "ids": {"query_ids": torch.arange(N) % 7, "key_ids": torch.arange(N + 8) % 7},
    "dot product": {"normalize": False, "bias": -1.0},
}


def all_checks(device: str) -> Iterator[Check]:
    for name in ONE_SET:
        # No workspace to speak of, and all that is wanted; some is enough for 16-bit rows below.
        for workspace in (400, None):
            title = f"one set, {name}, {workspace} bytes"
            yield title, partial(check_one_set, name, torch.float32, 2, workspace, device)
    for dtype in (torch.bfloat16, torch.float16):
        yield f"one set, {dtype}", partial(check_one_set, "plain", dtype, 3, 2500, device)
    for name in PAIRS:
        yield f"pairs, {name}", partial(check_pairs, name, torch.float32, None, device)
    for dtype in LIMITS:
        yield f"pairs, {dtype}", partial(check_pairs, "plain", dtype, 900, device)
    yield "pairs, far from zero", partial(check_far, device)
    for kind in ("one-way", "two-way", "one set"):
        yield f"the device chooses, {kind}", partial(check_chosen_on_device, kind, device)


def sanitized_checks(device: str) -> Iterator[Check]:
    yield "one set", partial(check_one_set, "smoothing", torch.bfloat16, 2, 2500, device)
    yield "pairs", partial(check_pairs, "ids", torch.bfloat16, 900, device)


def check_one_set(name, dtype, views, workspace, device) -> None:
    rows = [normal(N, WIDTH, seed=140 + i).to(device, dtype) for i in range(views)]
    for learnt in (False, True):
        results = [
            _gradients(nt_xent, rows, {"temperature": 0.2}, learnt, workspace, b, ONE_SET[name])
            for b in ("reference", "triton")
        ]
        _compare(*results, dtype, 0.2, _ulp(rows, 0.2, ONE_SET[name].get("normalize", True)))


def check_pairs(name, dtype, workspace, device) -> None:
    query, key = normal(N, WIDTH, seed=150), normal(N + 8, WIDTH, seed=151)
    key[:N] += query
    rows = [x.to(device, dtype) for x in (query, key)]
    for learnt in (False, True):
        scalars = {"temperature": 0.1, "bias": -3.0}
        more = {k: on(device, v) for k, v in PAIRS[name].items()}
        results = [
            _gradients(sigmoid_loss, rows, scalars, learnt, workspace, b, more)
            for b in ("reference", "triton")
        ]
        _compare(*results, dtype, 0.1)


def check_chosen_on_device(kind, device) -> None:
    """Both variants are launched, one of them runs: with a static offset, and without."""
    query, key = normal(N, WIDTH, seed=170).float(), normal(N, WIDTH, seed=171).float()
    rows = [query.to(device), (key + query).to(device)]
    loss = nt_xent if kind == "one set" else partial(info_nce, symmetric=kind == "two-way")
    before = prepared.SMALL_PAIRS
    prepared.SMALL_PAIRS = 0
    try:
        for temperature in (0.1, 0.005):
            for smoothing, workspace in ((0.0, None), (0.1, 1500)):
                scalars, more = {"temperature": temperature}, {"label_smoothing": smoothing}
                exact, found = (
                    _gradients(loss, rows, scalars, True, workspace, b, more)
                    for b in ("reference", "triton")
                )
                _compare(exact, found, torch.float32, temperature, _ulp(rows, temperature))
    finally:
        prepared.SMALL_PAIRS = before


def check_far(device) -> None:
    """Losses of e^-30 a pair keep their digits; logits of +300 do not overflow."""
    rows = [normal(N, WIDTH, seed=160 + i).to(device, torch.float32) for i in range(2)]
    for bias in (-60.0, 300.0):
        scalars = {"temperature": 0.05, "bias": bias}
        results = [
            _gradients(sigmoid_loss, rows, scalars, False, None, b, {"reduction": "sum"})
            for b in ("reference", "triton")
        ]
        _compare(*results, torch.float32, 0.05)


def _gradients(loss_function, rows, scalars, learnt, workspace, backend, more):
    """Loss and all gradients, of rows' losses weighted differently where they are apart."""
    wide = backend == "reference"
    leaves = [(x.double() if wide else x.detach().clone()).requires_grad_() for x in rows]
    scalars = {k: v for k, v in scalars.items() if k not in more}
    if learnt:
        device = rows[0].device
        scalars = {
            k: torch.tensor(v, device=device, requires_grad=True) for k, v in scalars.items()
        }
    options = {**scalars, **more, "backend": backend, "workspace_bytes": workspace}
    loss = loss_function(*leaves, **options)
    weight = torch.linspace(1, 2, loss.numel(), device=loss.device).view(loss.shape)
    (loss * weight).sum().backward()
    found = [loss.detach(), *(x.grad for x in leaves)]
    return [*found, *(s.grad for s in scalars.values())] if learnt else found


def _ulp(rows, temperature, normalize=True) -> float:
    """A float32 one of the largest logit, which the error rule allows."""
    every = torch.cat(rows).double()
    return math.ulp(dense.largest_logit([every, every], temperature, normalize)) * 2**29


def _compare(exact, found, dtype, temperature, ulp=0.0) -> None:
    """One ulp of a logit: that much in the loss, that fraction of a row's gradient, that much over
    the temperature in a number's."""
    for place, (a, b) in enumerate(zip(exact, found, strict=True)):
        error, size = (a.double() - b.double()).abs().max().item(), a.abs().max().item()
        limit = LIMITS[torch.float32 if place == 0 else dtype] * size
        limit += ulp * (size if a.dim() == 2 else 1 / temperature if place else 1)
        assert error <= limit, (place, temperature, error, size)
