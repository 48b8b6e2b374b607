"""Checks of the `triton` backend on any device, as plain functions: pytest runs them in Triton's
interpreter, `make gpu` on a GPU, where pytest may be missing.

`all_checks` names each of them. Expected values come from the oracle, or from the error rule.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest import mock

import dense
import numpy as np
import torch
from cases import CASES, N, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from contrastive_ops import info_nce
from contrastive_ops.engine import backends, gpu

Check = tuple[str, Callable[[], None]]
SINGLE = [torch.float32, torch.bfloat16, torch.float16]
HALF = SINGLE[1:]


if backends.interpreting():
    # On a GPU a maximum of two numbers drops a NaN; the interpreter's keeps it.
    interpreter.InterpreterBuilder.create_maxnumf = lambda b, x, y: b.binary_op(x, y, np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = lambda b, x, y: b.binary_op(x, y, np.fmin)

FAMILIES: tuple[str, ...] = ("pairs", "summaries", "selection", "cuda_selection", "tokens")
"""Modules beside this one, one a kernel family, each with `all_checks`."""


def all_checks(device: str) -> Iterator[Check]:
    """Every check that runs on the device."""
    yield from info_nce_checks(device)
    for family in FAMILIES:
        yield from importlib.import_module(family).all_checks(device)


def sanitized_checks(device: str) -> Iterator[Check]:
    """Few, since compute-sanitizer makes each of them many times slower; every kernel is there."""
    names = ("everything", "symmetric, ids", "smoothing", "guide", "own negatives")
    for name in CASES:
        if name.startswith(names):
            yield f"option: {name}", partial(check_option, name, device)
    for dtype in HALF:
        for symmetric in (False, True):
            yield (
                f"chunks: {_short(dtype)}, {symmetric}",
                partial(check_chunks, dtype, symmetric, device),
            )
    for family in FAMILIES:
        yield from importlib.import_module(family).sanitized_checks(device)


def info_nce_checks(device: str) -> Iterator[Check]:
    for name in CASES:
        yield f"option: {name}", partial(check_option, name, device)
    for name in sorted(
        n for n in CASES if n.startswith(("everything", "several", "symmetric, ids"))
    ):
        for dtype in HALF:
            yield f"option in {_short(dtype)}: {name}", partial(check_half, name, dtype, device)
    for dtype in SINGLE:
        for symmetric in (False, True):
            way = "two-way" if symmetric else "one-way"
            for temperature in (0.005, 0.05, 10.0):
                yield (
                    f"error rule: {_short(dtype)}, {way}, T = {temperature}",
                    partial(check_error, dtype, symmetric, temperature, device),
                )
            for check in (
                check_dot_products,
                check_trained_rows,
                check_repeatable,
                check_chunks,
                check_layouts,
                check_guards,
                check_zero_rows,
                check_opposed,
                check_norms,
                check_alone,
                check_frozen,
            ):
                name = check.__name__.removeprefix("check_").replace("_", " ")
                yield f"{name}: {_short(dtype)}, {way}", partial(check, dtype, symmetric, device)
    for symmetric in (False, True):
        if device == "cpu":  # on a GPU the configuration says which way tiles are loaded
            yield f"bulk copies, {symmetric}", partial(check_bulk, symmetric)
        yield f"torch.compile, {symmetric}", partial(check_compiled, symmetric, device)
        yield f"temperature kinds, {symmetric}", partial(check_number, symmetric, device)
        yield f"float64, {symmetric}", partial(check_double, symmetric, device)
        yield f"positives apart, {symmetric}", partial(check_positives_apart, symmetric, device)
        yield f"many columns, {symmetric}", partial(check_many, symmetric, device)
        for kind in NOT_FINITE:
            yield f"not finite, {kind}, {symmetric}", partial(check_nan, kind, symmetric, device)
    for log_weight in (20.0, 100.0):
        yield f"own log-weight {log_weight}", partial(check_own_weight, log_weight, device)
    yield "margin without negatives", partial(check_margin_alone, device)
    yield "strided row weights", partial(check_strided_weights, device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def loss_of(*rows: Tensor, backend: str = "triton", **options: Any) -> Tensor:
    return info_nce(*rows, backend=backend, **options)


def gradients(rows: list[Tensor], **options: Any) -> list[Tensor]:
    """Loss and all gradients, the temperature's last if it is a tensor."""
    leaves = [x.detach().requires_grad_() for x in rows]
    temperature = options.pop("temperature", 0.1)
    if isinstance(temperature, Tensor):
        temperature = temperature.detach().clone().requires_grad_()
    loss = loss_of(*leaves, temperature=temperature, **options)
    loss.sum().backward()
    result = [loss.detach(), *(x.grad for x in leaves)]
    return [*result, temperature.grad] if isinstance(temperature, Tensor) else result


def related(n: int, m: int, width: int, dtype: torch.dtype, device: str, seed: int = 0):
    """Every key resembles its query somewhat."""
    query, key = normal(n, width, seed=60 + 2 * seed), normal(m, width, seed=61 + 2 * seed)
    key[:n] += query
    return [query.to(device, dtype), key.to(device, dtype)]


def on(device: str, value: Any, dtype: torch.dtype | None = None) -> Any:
    """A case's argument on the device; float64 tensors in another dtype."""
    if isinstance(value, tuple):
        return tuple(on(device, part) for part in value)
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if dtype and value.dtype == torch.float64 else value.dtype)


@cache
def expected(name: str):
    """The oracle's row losses, and derivatives along one direction per leaf, of float32 inputs."""
    call = CASES[name]().fresh(torch.float32)
    directions = {
        leaf: normal(*tensor.shape, seed=20 + i)
        for i, (leaf, tensor) in enumerate(call.leaves.items())
    }
    slopes = {leaf: call.derivative({leaf: v}) for leaf, v in directions.items()}
    return call.oracle(reduction="none"), call.oracle(), directions, slopes


def moved(name: str, dtype: torch.dtype, device: str):
    """A case with its leaves in the dtype (temperatures in float32), all of it on the device."""
    call = CASES[name]()
    options = {k: on(device, v, torch.float32) for k, v in call.options.items()}
    rows = {k: on(device, getattr(call, k), dtype) for k in ("query", "key", "negatives")}
    return replace(call, **rows, options=options)


def check_option(name: str, device: str) -> None:
    rows, loss, directions, slopes = expected(name)
    call = moved(name, torch.float32, device)
    actual, grads = call.gradients(backend="triton")
    assert abs(actual.item() - loss) <= 2e-6 * abs(loss) + 1e-7, (actual.item(), loss)
    for leaf, direction in directions.items():
        along = grads[leaf].double().cpu() * direction
        error = abs(along.sum().item() - slopes[leaf])
        assert error <= 5e-6 * along.abs().sum().item() + 1e-7, (leaf, error)
    # The same with rows apart, in the smallest chunks, statistics and gradients in two calls.
    options = {"backend": "triton", "reduction": "none", "workspace_bytes": 1}
    fresh = call.fresh()
    actual_rows = fresh.loss(**options)
    found = actual_rows.double().cpu()
    torch.testing.assert_close(found, torch.tensor(rows).double(), rtol=4e-6, atol=2e-7)
    whole = call.options.get("reduction", "mean") == "sum"
    weight = call.options.get("row_weight")
    denominator = 1.0 if whole else N if weight is None else weight.sum()
    (actual_rows.sum() / denominator).backward()
    for leaf, tensor in fresh.leaves.items():
        torch.testing.assert_close(tensor.grad, grads[leaf], rtol=2e-5, atol=2e-6, msg=leaf)


def check_half(name: str, dtype: torch.dtype, device: str) -> None:
    """Against the reference in float64 on the same rows."""
    call = moved(name, dtype, device)
    wide = replace(call, **{k: on(device, getattr(call, k)) for k in ("query", "key")})
    wide = wide.with_leaves({k: t.double() for k, t in call.leaves.items()})
    loss, grads = wide.gradients(backend="reference")
    for more in ({}, {"workspace_bytes": 1}):
        actual, found = call.gradients(backend="triton", **more)
        assert abs(actual.item() - loss.item()) <= 4e-6 * abs(loss.item())
        for leaf, grad in grads.items():
            error = (found[leaf].double() - grad.double()).abs().max().item()
            rounding = torch.finfo(found[leaf].dtype).eps + torch.finfo(dtype).eps
            assert error <= 2 * rounding * grad.abs().max().item() + 1e-7, (leaf, error)


def check_error(dtype, symmetric, temperature, device) -> None:
    draw = partial(_drawn, 37, 45, 33, dtype, device)
    dense.check_error_rule(draw, temperature, "triton", symmetric=symmetric)


def _drawn(n, m, width, dtype, device, seed):
    return related(n, m, width, dtype, device, seed)


def check_dot_products(dtype, symmetric, device) -> None:
    """Logits far beyond what exp can take."""
    dense.check_error_rule(
        lambda seed: [
            3 * normal(21, 40, seed=50 + 2 * seed + i).to(device, dtype) for i in range(2)
        ],
        0.5,
        "triton",
        symmetric=symmetric,
        normalize=False,
    )


def check_trained_rows(dtype, symmetric, device) -> None:
    """Clusters, with near-duplicates within."""

    def draw(seed):
        centres, *noise = (normal(40, 24, seed=70 + 3 * seed + i) for i in range(3))
        query = centres[torch.arange(40) % 5] + 0.1 * noise[0]
        return [query.to(device, dtype), (query + 0.05 * noise[1]).to(device, dtype)]

    dense.check_error_rule(draw, 0.02, "triton", symmetric=symmetric)


def check_repeatable(dtype, symmetric, device) -> None:
    rows = related(37, 43, 33, dtype, device)
    for options in ({"label_smoothing": 0.1}, {"workspace_bytes": 2048}, {"reduction": "none"}):
        first, second = (gradients(rows, symmetric=symmetric, **options) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


def check_chunks(dtype, symmetric, device) -> None:
    """Chunk edges in every place."""
    rows = [*related(35, 37, 20, dtype, device), normal(11, 20, seed=3).to(device, dtype)]
    temperature = torch.tensor(0.1, device=device)
    for kind in (0.1, temperature):
        whole = gradients(rows, symmetric=symmetric, temperature=kind)
        for workspace in (400, 2000):
            cut = gradients(rows, symmetric=symmetric, temperature=kind, workspace_bytes=workspace)
            close = 2 * torch.finfo(dtype).eps
            for a, b in zip(cut, whole, strict=True):
                # Sums in another order, rounded to the dtype at last.
                scale = b.float().abs().max().item()
                torch.testing.assert_close(a, b, rtol=close, atol=scale * max(close / 4, 1e-6))


def check_layouts(dtype, symmetric, device) -> None:
    plain = related(19, 23, 17, dtype, device)
    expected_values = gradients(plain, symmetric=symmetric)
    for kind in ("transposed", "strided", "offset"):
        views = []
        for x in plain:
            if kind == "transposed":
                view = x.T.contiguous().T
            else:
                wide = x.new_full((x.shape[0] + 2, 2 * x.shape[1] + 1), math.nan)
                view = wide[1:-1, 1::2] if kind == "strided" else wide[1:-1, 3 : 3 + x.shape[1]]
                view.copy_(x)
            assert not view.is_contiguous()
            views.append(view)
        for a, b in zip(gradients(views, symmetric=symmetric), expected_values, strict=True):
            assert torch.equal(a, b)


def check_guards(dtype, symmetric, device) -> None:
    """NaN around the operands, and in and around every buffer that the backend makes, changes
    nothing; nothing around them is written."""
    plain = related(33, 35, 17, dtype, device)
    buffers = []
    for x in plain:
        buffer = x.new_full((x.shape[0] + 8, x.shape[1]), math.nan)
        buffer[4:-4] = x
        buffers.append(buffer)
    copies = [b.clone() for b in buffers]
    options = {"symmetric": symmetric, "workspace_bytes": 2048}
    actual = gradients([b[4:-4] for b in buffers], **options)
    for a, b in zip(actual, gradients(plain, **options), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    for buffer, copy in zip(buffers, copies, strict=True):
        assert torch.equal(buffer.nan_to_num(nan=7.0), copy.nan_to_num(nan=7.0))
    guarded = Guarded()
    with mock.patch.object(gpu, "_on", return_value=guarded):  # entered around all it does
        found = gradients(plain, **options)
    assert len(guarded.buffers) > 10
    for a, b in zip(found, actual, strict=True):
        assert torch.equal(a, b)
    for buffer in guarded.buffers:
        assert (buffer[:ROOM] == 255).all()
        assert (buffer[-ROOM:] == 255).all()


ROOM = 256
"""Bytes before and after a buffer."""


class Guarded(TorchDispatchMode):
    """Puts every new buffer between bytes of 255, and fills it with them: NaN, or -1."""

    made = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.empty_like.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = function(*args, **(kwargs or {}))
        if function not in self.made:
            return found
        size = found.numel() * found.element_size()
        buffer = torch.full((size + 2 * ROOM,), 255, dtype=torch.uint8, device=found.device)
        self.buffers.append(buffer)
        return buffer[ROOM : ROOM + size].view(found.dtype).view(found.shape)


def check_zero_rows(dtype, symmetric, device) -> None:
    rows = [*related(9, 11, 5, dtype, device), normal(4, 5).to(device, dtype)]
    zeros = [2], [4, 10], [0]
    for x, at in zip(rows, zeros, strict=True):
        x[at] = 0.0
    rows[1][10] = -0.0
    loss, *grads = gradients(rows, symmetric=symmetric, temperature=0.5)
    wide = [x.double() for x in rows]
    exact = info_nce(*wide, symmetric=symmetric, temperature=0.5, backend="reference").item()
    assert abs(loss.item() - exact) <= 2e-6 * exact
    for grad, at in zip(grads, zeros, strict=True):
        assert (grad[at] == 0).all()
        assert grad.isfinite().all()


def check_opposed(dtype, symmetric, device) -> None:
    """All cosines near -1 at T = 0.01: a padded column that counts as 0 would drown the rest."""

    def draw(seed):
        query = normal(1, 16, seed=90 + seed) + 0.05 * normal(19, 16, seed=100 + seed)
        key = 0.05 * normal(19, 16, seed=110 + seed) - query.flip(0)
        return [query.to(device, dtype), key.to(device, dtype)]

    dense.check_error_rule(draw, 0.01, "triton", symmetric=symmetric, draws=6)
    assert loss_of(*draw(0), temperature=0.01, symmetric=symmetric).isfinite()


def check_norms(dtype, symmetric, device) -> None:
    """Cosines do not depend on the size of the entries: powers of two leave every bit."""
    plain = related(13, 17, 19, dtype, device)
    powers = (-12, 9) if dtype == torch.float16 else (-60, 60)
    expected_values = gradients(plain, symmetric=symmetric)
    if dtype == torch.float16:
        plain = [x.clamp(-6, 6).where(x.abs() > 2**-2, 0) for x in plain]
        expected_values = gradients(plain, symmetric=symmetric)
    for power in powers:
        loss, *grads = gradients([x * 2.0**power for x in plain], symmetric=symmetric)
        assert torch.equal(loss, expected_values[0])
        for a, b in zip(grads, expected_values[1:], strict=True):
            scaled = b.double() * 2.0**-power
            if dtype == torch.float16:  # gradients leave its range
                continue
            assert torch.equal(a.double(), scaled)


def check_alone(dtype, symmetric, device) -> None:
    rows = related(1, 1, 7, dtype, device)
    for options in ({"margin": 0.3}, {"label_smoothing": 0.3}):
        loss, *grads = gradients(rows, symmetric=symmetric, **options)
        assert loss.item() == 0
        assert all((g == 0).all() for g in grads)


def check_frozen(dtype, symmetric, device) -> None:
    """Gradients that somebody wants do not depend on whether others are wanted."""
    rows = [*related(21, 25, 9, dtype, device), normal(5, 9).to(device, dtype)]
    for workspace in (None, 512):
        options = {"symmetric": symmetric, "temperature": 0.1, "workspace_bytes": workspace}
        _, *full = gradients(rows, **options)
        for wanted in range(3):
            leaves = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(rows)]
            loss_of(*leaves, **options).backward()
            assert torch.equal(leaves[wanted].grad, full[wanted])
            assert all(x.grad is None for i, x in enumerate(leaves) if i != wanted)


def check_bulk(symmetric) -> None:
    """Tensor descriptors load and store the same tiles as pointers do."""
    from contrastive_ops.engine.gpu import passes

    for dtype in SINGLE:
        rows = related(37, 41, 35, dtype, "cpu")
        for options in ({}, {"temperature": torch.tensor(0.05)}, {"workspace_bytes": 2000}):
            plain = gradients(rows, symmetric=symmetric, **options)
            passes.BULK_IN_THE_INTERPRETER = True
            try:
                bulk = gradients(rows, symmetric=symmetric, **options)
            finally:
                passes.BULK_IN_THE_INTERPRETER = False
            for a, b in zip(bulk, plain, strict=True):
                assert torch.equal(a, b)


def check_compiled(symmetric, device) -> None:
    """One graph, and the eager call's numbers; float16 gradients, too."""
    for dtype in (torch.float32, torch.float16):
        rows = related(9, 11, 8, dtype, device)

        def step(*leaves):
            return loss_of(*leaves, temperature=0.1, symmetric=symmetric)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        results = []
        for loss_function in (step, compiled):
            leaves = [x.detach().clone().requires_grad_() for x in rows]
            loss = loss_function(*leaves)
            loss.backward()
            results.append([loss.detach(), *(x.grad for x in leaves)])
        # The graph keeps 1 / N out of the coefficients: they are rounded at another size.
        rounding = 1e-7 if dtype == torch.float32 else torch.finfo(dtype).eps
        for a, b in zip(results[1], results[0], strict=True):
            scale = b.abs().max().item()
            torch.testing.assert_close(a, b, rtol=1e-6, atol=2 * rounding * scale)


def check_number(symmetric, device) -> None:
    """A number and a tensor take different ways to the same result."""
    rows = related(40, 41, 12, torch.float32, device)
    for value in (0.01, 0.07, 3.0):
        number = gradients(rows, temperature=value, symmetric=symmetric)
        tensor = gradients(
            rows, temperature=torch.tensor(value, device=device), symmetric=symmetric
        )
        torch.testing.assert_close(number, tensor[:-1], rtol=1e-4, atol=1e-7)


def check_double(symmetric, device) -> None:
    """float64 is served by the `torch` backend."""
    rows = related(9, 10, 6, torch.float64, device)
    actual = gradients(rows, symmetric=symmetric)
    leaves = [x.requires_grad_() for x in rows]
    loss = info_nce(*leaves, temperature=0.1, symmetric=symmetric, backend="reference")
    loss.backward()
    exact = [loss.detach(), *(x.grad for x in leaves)]
    torch.testing.assert_close(actual, exact, rtol=1e-11, atol=1e-13)


def check_positives_apart(symmetric, device) -> None:
    """Losses of 1e-27 are right to their own digits: log-sum-exp minus the positive would be 0."""
    rows = [
        (torch.eye(16, dtype=torch.float64) + 0.001 * normal(16, 16, seed=s)).to(
            device, torch.float32
        )
        for s in (1, 2)
    ]
    scalar = torch.tensor(0.016, device=device)
    wide = [x.double().requires_grad_() for x in rows]
    options = {"temperature": scalar.double(), "symmetric": symmetric, "backend": "reference"}
    exact = info_nce(*wide, **options)
    exact.backward()
    loss, *grads = gradients(rows, temperature=scalar, symmetric=symmetric)
    assert 0 < exact.item() < 1e-20
    assert abs(loss.item() - exact.item()) < 1e-4 * exact.item()
    for grad, x in zip(grads, wide, strict=False):
        error = (grad.double() - x.grad).abs().max()
        assert error < 1e-4 * x.grad.abs().max()


def check_many(symmetric, device) -> None:
    """Long sums in 16 bits: probabilities near 1 / N each carry the whole gradient."""

    def draw(seed):
        return [
            normal(k, 16, seed=80 + seed + i).to(device, torch.bfloat16)
            for i, k in enumerate((66, 500))
        ]

    dense.check_error_rule(draw, 1.0, "triton", symmetric=symmetric, draws=1)


NOT_FINITE = ("nothing left out", "ids", "guide", "margin")


def check_nan(kind, symmetric, device) -> None:
    """Rows that see a bad key are NaN, those that leave it out are not; as in the dense loss."""
    n, m, width = 37, 37 if symmetric else 45, 20
    rows = [normal(k, width, seed=120 + i).float() for i, k in enumerate((n, m))]
    mine = torch.where(torch.arange(n) < 5, -torch.arange(n) - 1, 7)
    for bad in (m - 1, 7):  # one at an edge of every tile and chunk
        for value in (math.nan, math.inf):
            options: dict[str, Any] = {"symmetric": symmetric, "temperature": 0.1}
            if kind == "ids":
                theirs = torch.where(torch.arange(m) == bad, 7, 100 + torch.arange(m))
                options |= {"query_ids": on(device, mine), "key_ids": on(device, theirs)}
            elif kind == "guide":
                guides = [normal(k, 6, seed=130 + i).float() for i, k in enumerate((n, m))]
                guides[1][bad] = guides[0][5:].mean(0)
                options["guide"] = tuple(on(device, g) for g in guides)
            elif kind == "margin":
                options["false_negative_margin"] = -0.2
            key = rows[1].clone()
            key[bad, 3] = value
            leaves = [on(device, x) for x in (rows[0], key)]
            for normalize in (True, False):
                options["normalize"] = normalize
                losses = [
                    loss_of(*leaves, backend=b, reduction="none", **options)
                    for b in ("reference", "triton")
                ]
                assert torch.equal(*(x.isfinite() for x in losses)), (bad, value, normalize)
                torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5, equal_nan=True)
                if normalize:
                    expected, found = (
                        gradients(leaves, backend=b, **options) for b in ("reference", "triton")
                    )
                    for a, b in zip(expected, found, strict=True):
                        assert torch.equal(a.isnan(), b.isnan()), (bad, value)


def check_own_weight(log_weight, device) -> None:
    """Own negatives whose logits are far above all cosines."""
    rows = [normal(9, 16, seed=1), normal(11, 16, seed=2), normal(9, 3, 16, seed=3)]
    options = {"negatives_scope": "own", "own_negative_log_weight": log_weight}
    for temperature in (0.02, 0.05):
        options["temperature"] = temperature
        wide = gradients([x.double().to(device) for x in rows], backend="reference", **options)
        found = gradients([x.float().to(device) for x in rows], **options)
        for mine, theirs in zip(found, wide, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def check_margin_alone(device) -> None:
    """A positive far below the range, and nothing beside it: loss and gradient are 0."""
    rows = [normal(1, 16, seed=1).float().to(device), normal(1, 16, seed=2).float().to(device)]
    for margin in (2.0, 5.0):
        for symmetric in (False, True):
            options = {"margin": margin, "temperature": 0.02, "symmetric": symmetric}
            for value in gradients(rows, **options):
                assert torch.equal(value, torch.zeros_like(value))


def check_strided_weights(device) -> None:
    rows = [normal(7, 16, seed=1).float().to(device), normal(8, 16, seed=2).float().to(device)]
    weights = normal(14, seed=3).abs().float().to(device)
    for weight in (weights[::2], weights[:1].expand(7)):
        found = gradients(rows, row_weight=weight, reduction="sum")
        other = gradients(rows, row_weight=weight.clone().contiguous(), reduction="sum")
        for mine, theirs in zip(found, other, strict=True):
            assert torch.equal(mine, theirs)
