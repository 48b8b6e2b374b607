"""`row_select` for the GPU tools: its kernels offline, its time beside a product with `topk`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_ops.engine.cuda import library as cuda_library
from contrastive_ops.engine.exclusions import Exclusions
from contrastive_ops.engine.gpu.select import Products, Side, Span
from contrastive_ops.engine.select import row_select
from contrastive_ops.engine.select_torch import Block

from .gpu_cases import Case, Check, Loss, Planned, empty, generator

K = 32


def plans(dtype: torch.dtype, precision: str) -> Iterator[Planned]:
    """A span's kernels: of the 16-bit scan, and (float32) of the products of listed groups that may
    come after it."""
    if precision != "ieee" or dtype == torch.float16:  # the scan of bfloat16 rows is in float16
        return
    n, m, width = 4096, 65536, 768
    for title, exclude, l2 in (("plain", False, False), ("left out, limits, L2", True, True)):
        yield Planned(
            f"selection, {title}",
            [n, m, width],
            2.0 * n * m * width,
            partial(_launch, n, m, width, dtype, exclude, l2),
            quick=not exclude,
        )


def _launch(n: int, m: int, width: int, dtype: torch.dtype, exclude: bool, l2: bool) -> None:
    """Every kernel once, with listed groups as many as k best of each row."""
    x, y = (Side.of(empty(rows, width, of=dtype), True) for rows in (n, m))
    block = Block(
        x.rows, y.rows, True, "l2" if l2 else "dot",
        Exclusions(torch.zeros(n + 1, dtype=torch.int64), empty(0, of=torch.int64)), None, 0,
    )  # fmt: skip
    span = Span(block, x, y, slice(0, n), 0, 64, 192 << 20)
    if exclude:
        span.out_begin, span.out_index = empty(n + 1, of=torch.int64), empty(n, of=torch.int64)
        span.steps = 2
    cap = empty(n, of=torch.float32) if exclude else None
    listed = empty(n * K, of=torch.int64)
    scan = Products(span, torch.float16)
    scan.maxima(cap)
    fine = [Products(span, torch.float32)] if dtype == torch.float32 else []
    for products, limit in ((scan, cap), *((product, None) for product in fine)):
        tiles = n * K // products.values_tile.block_m
        each = [empty(tiles, of=torch.int64) for _ in range(3)]
        products.values_by_tile(listed, each[0], each[1], each[2], limit)
    span.exact(listed, listed)


def cases(shrink: int = 1) -> Iterator[Case]:
    """The most telling first."""
    yield _case(65536, 1 << 20, 768, "bfloat16", "gaussian", shrink)
    for m in (1_000_000, 100_000):
        for inputs in ("gaussian", "clustered"):
            for dtype in ("bfloat16", "float32"):
                yield _case(4096, m, 768, dtype, inputs, shrink)


def _case(n: int, m: int, width: int, dtype: str, inputs: str, shrink: int) -> Case:
    settings = {"n": n, "m": m, "width": width, "k": K, "dtype": dtype, "inputs": inputs}
    here = (n, m, width) if shrink == 1 else (33, max(100, m // shrink // 1000), 24)
    return Case(
        f"top-{K}, {n} x {m} x {width}, {dtype}, {inputs}",
        settings,
        2.0 * n * m * width,
        partial(_rows, *here, dtype, inputs),
        _variants,
        rounds=5 if shrink == 1 else 1,
    )


def _rows(n: int, m: int, width: int, dtype: str, inputs: str, device: str) -> list[Tensor]:
    source = generator(device, m)

    def normal(count: int) -> Tensor:
        return torch.randn((count, width), generator=source, device=device)

    y = normal(m)
    if inputs == "clustered":
        centres = normal(max(2, m // 100))
        y = 0.8 * y + centres[torch.arange(m, device=device) % len(centres)]
    x = normal(n) if inputs == "gaussian" else y[:n] + 0.5 * normal(min(n, m))
    return [F.normalize(rows, dim=1).to(getattr(torch, dtype)) for rows in (x, y)]


def _variants() -> dict[str, Loss]:
    def ours(x: Tensor, y: Tensor, workspace_bytes: int | None = None) -> Tensor:
        found = row_select(x, y, K, backend="triton", workspace_bytes=workspace_bytes)
        return found.scores.sum()

    def by_cuda(x: Tensor, y: Tensor) -> Tensor:
        return row_select(x, y, K, backend="cuda").scores.sum()

    def product(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(x @ part.T)[0, 0] for part in y.split(1 << 17)]).float().sum()

    def topk(x: Tensor, y: Tensor) -> Tensor:
        found = [(part @ y.T).topk(K, 1).values for part in x.split(512)]
        return torch.cat(found).float().sum()

    kernels, _ = cuda_library.load()
    return {
        "ours": ours,
        **({"ours, CUDA C++": by_cuda} if kernels is not None else {}),
        "ours, 4 GiB": partial(ours, workspace_bytes=4 << 30),
        "product alone": product,
        "product and topk": topk,
    }


def device_checks(device: str) -> Iterator[Check]:
    """What tests/triton is too small for."""
    rows = 3000 if device == "cuda" else 40
    for dtype in (torch.bfloat16, torch.float32):
        for inputs in ("gaussian", "clustered"):
            name = str(dtype).removeprefix("torch.")
            yield (
                f"selection at size, {name}, {inputs}",
                partial(check_at_size, rows, 40 * rows, str(dtype)[6:], inputs, device),
            )
        yield f"bound of the scan, {dtype}", partial(check_bound, rows, str(dtype)[6:], device)


def check_at_size(n: int, m: int, dtype: str, inputs: str, device: str) -> None:
    """The bits of the plain PyTorch backend, over several spans."""
    x, y = _rows(n, m, 768 if device == "cuda" else 24, dtype, inputs, device)
    expected = row_select(x, y, K, backend="torch")
    for budget in (None, 16 << 20):
        found = row_select(x, y, K, backend="triton", workspace_bytes=budget)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.scores, expected.scores)


def check_bound(n: int, dtype: str, device: str) -> None:
    """Maxima are as near the scores as is claimed, whatever the tensor cores round."""
    width = 1024 if device == "cuda" else 24
    x, y = _rows(n, 8 * n, width, dtype, "clustered", device)
    x, y = 3 * x.abs(), y.abs()  # nothing cancels: sums are as large as can be
    sides = Side.of(x, True), Side.of(y, True)
    nothing = Exclusions(
        torch.zeros(n + 1, dtype=torch.int64, device=device), x.new_empty(0).long()
    )
    block = Block(x, y, True, "dot", nothing, None, 0)
    span = Span(block, *sides, slice(0, n), 0, 8 if device == "cpu" else 64, 192 << 20)
    exact = F.normalize(x.double(), dim=1) @ F.normalize(y.double(), dim=1).T
    exact = F.pad(exact, (0, -len(y) % span.width), value=-torch.inf)
    most = exact.view(n, -1, span.width).amax(2)
    for scan in (torch.float16, torch.float32):
        products = Products(span, scan)
        away = (products.maxima(None)[0].double() - most).abs()
        assert (away <= products.error).all(), (away / products.error).max()
        assert away.max() > 0
