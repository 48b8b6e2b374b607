"""Checks of the selection on the `triton` backend, for the interpreter and a GPU alike: the bits of
`reference`, which test_topk.py holds against brute force, and brute force itself."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from contrastive_ops import mining, topk_similarity
from contrastive_ops.engine.exclusions import Exclusions
from contrastive_ops.engine.gpu import passes
from contrastive_ops.engine.select import row_select

Check = tuple[str, Callable[[], None]]
KINDS = ("gaussian", "duplicates", "equal", "nan", "infinite", "clustered", "zeros", "subnormal")


def all_checks(device: str) -> Iterator[Check]:
    """Every check of the selection."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for i, kind in enumerate(KINDS):
        dtype = torch.float32 if kind == "subnormal" else dtypes[i % 3]
        yield f"selection, {kind}", partial(check_bits, kind, dtype, device)
    yield "selection in float64", partial(check_brute_force, device)
    yield "selection of integers", partial(check_integers, device)
    yield "selection in pieces", partial(check_pieces, device)
    if device == "cpu":  # on a GPU the configuration says which way tiles are loaded
        yield "selection, bulk copies", check_bulk
    yield "selection, all left out", partial(check_all_left_out, device)
    yield "selection of many near-equal", partial(check_near_equal, device)
    yield "in-batch miners", partial(check_miners, device)


def sanitized_checks(device: str) -> Iterator[Check]:
    """Few, with every kernel and option."""
    for kind in ("clustered", "infinite"):
        yield f"selection, {kind}", partial(check_bits, kind, torch.float32, device)
    yield "selection in pieces", partial(check_pieces, device)
    yield "selection of many near-equal", partial(check_near_equal, device)


def draw(kind: str, n: int, m: int, width: int, dtype: torch.dtype, device: str):
    generator = torch.Generator().manual_seed(n + m + width)
    x = torch.randn(n, width, generator=generator)
    y = torch.randn(m, width, generator=generator)
    pick = torch.rand(m, generator=generator)
    if kind == "duplicates":
        y = y[(pick * (m // 4)).long()]
    elif kind == "equal":
        y = y[:1].expand(m, width)
    elif kind == "clustered":
        y = 0.01 * y + x[(pick * n).long()]
    elif kind == "zeros":
        y = y.masked_fill(pick[:, None] < 0.4, 0)
        x[0] = 0
    elif kind == "subnormal":
        x, y = x * 1e-30, y * 1e-10
    x, y = x.to(dtype), y.to(dtype).clone()
    if kind == "nan":
        y[pick < 0.3, -1], x[-1, 0] = math.nan, math.nan
    elif kind == "infinite":
        y[pick < 0.3, -1] = math.inf
    return x.to(device), y.to(device)


def assert_same(found, expected) -> None:
    assert torch.equal(found.indices, expected.indices), (found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores), (found.scores, expected.scores)
    assert found.above is None or torch.equal(found.above, expected.above)
    assert found.nan_rows == expected.nan_rows


def check_bits(kind, dtype, device) -> None:
    """Every size odd, each k, with and without exclusions and limits."""
    for n, m, width, k, normalize, metric in (
        (1, 1, 1, 1, True, "dot"),
        (13, 101, 9, 7, True, "dot"),
        (5, 27, 20, 27, False, "dot"),
        (5, 35, 7, 4, KINDS.index(kind) % 2 == 0, "l2"),
    ):
        x, y = draw(kind, n, m, width, dtype, device)
        options = {"normalize": normalize, "metric": metric}
        for _ in range(2):
            expected = row_select(x, y, k, backend="reference", **options)
            found = row_select(x, y, k, backend="triton", **options)
            assert_same(found, expected)
            generator = torch.Generator().manual_seed(m)
            index = torch.randint(-1, m, (n, 6), generator=generator).to(device)
            options["exclude"] = Exclusions.of(index)
        limit = expected.scores[:, k // 2]
        limit = torch.where(limit.isfinite(), limit, torch.full_like(limit, 0.1))
        expected = row_select(x, y, k, backend="reference", upper=limit, **options)
        found = row_select(x, y, k, backend="triton", upper=limit, **options)
        assert expected.above is not None
        assert_same(found, expected)


def check_brute_force(device) -> None:
    x, y = draw("gaussian", 29, 211, 33, torch.float32, device)
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (x, y)]
    best = (unit[0] @ unit[1].T).topk(10, 1)
    found = row_select(x, y, 10, backend="triton")
    assert torch.equal(found.indices, best.indices)
    assert (found.scores - best.values).abs().max() < 1e-6
    assert 290 <= found.scored < 0.5 * found.pairs


def check_integers(device) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.randint(-128, 128, (rows, 35), dtype=torch.int8, generator=generator)
        for rows in (9, 120)
    )
    exact = x.long() @ y.long().T
    best = exact.argsort(dim=1, descending=True, stable=True)[:, :13]
    found = topk_similarity(x.to(device), y.to(device), 13, normalize=False, backend="triton")
    assert torch.equal(found.indices.cpu(), best)
    assert torch.equal(found.scores.cpu().long(), exact.gather(1, best))
    x, y = (
        torch.randint(0, 256, (rows, 5), dtype=torch.uint8, generator=generator)
        for rows in (9, 120)
    )
    bits = [(rows[:, :, None] >> torch.arange(8)) & 1 for rows in (x, y)]
    distance = (bits[0][:, None] != bits[1][None]).flatten(2).sum(2)
    best = distance.argsort(dim=1, stable=True)[:, :13]
    found = topk_similarity(x.to(device), y.to(device), 13, backend="triton")
    assert torch.equal(found.indices.cpu(), best)
    assert torch.equal(-found.scores.cpu().long(), distance.gather(1, best))


def check_pieces(device) -> None:
    """Neither spans, stripes, chunks nor blocks change anything."""
    x, y = draw("clustered", 21, 90, 17, torch.float32, device)
    expected = row_select(x, y, 12, backend="reference")
    for budget in (15_000, 100_000):
        assert_same(row_select(x, y, 12, backend="triton", workspace_bytes=budget), expected)
    found = row_select(x, y[:37], 12, backend="triton")
    found = row_select(x, y[37:], 12, backend="triton", first=37, into=found)
    assert_same(found, expected)
    strided = torch.cat([x, x], 1)[:, ::2], torch.cat([y, y], 1)[:, 3:20]
    expected = row_select(*strided, 12, backend="reference")
    assert_same(row_select(*strided, 12, backend="triton"), expected)


def check_bulk() -> None:
    x, y = draw("clustered", 37, 70, 17, torch.float32, "cpu")
    plain = row_select(x, y, 12, backend="triton")
    with mock.patch.object(passes, "BULK_IN_THE_INTERPRETER", True):
        assert_same(row_select(x, y, 12, backend="triton"), plain)


def check_all_left_out(device) -> None:
    x, y = draw("gaussian", 5, 30, 8, torch.float32, device)
    everything = torch.arange(30, device=device).expand(5, 30)
    found = topk_similarity(x, y, 4, exclude=everything, backend="triton")
    assert (found.indices == -1).all()
    assert (found.scores == -math.inf).all()


def check_near_equal(device) -> None:
    """Closer to each other than 16 bits tell apart: float32 products go between."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 24, generator=generator)
    y = (base + 1e-4 * torch.randn(300, 24, generator=generator)).to(device)
    x = (base + 0.5 * torch.randn(7, 24, generator=generator)).to(device)
    for metric in ("dot", "l2"):
        expected = row_select(x, y, 3, metric=metric, backend="reference")
        found = row_select(x, y, 3, metric=metric, backend="triton")
        assert_same(found, expected)
        assert found.scored < 0.6 * found.pairs, found.scored


def check_miners(device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 16, generator=generator).to(device)
    labels = torch.randint(0, 7, (60,), generator=generator).to(device)
    for kind in (mining.BatchHardMiner, mining.SemiHardMiner, mining.EasyPositiveMiner):
        found, expected = (kind(backend=backend)(x, labels) for backend in ("triton", "reference"))
        assert len(found[0]) > 30
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
