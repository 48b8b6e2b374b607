"""Checks of MaxSim's GPU kernels; see `checks`."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from contrastive_ops import token_similarity

Check = tuple[str, Callable[[], None]]
# Scores, gradients: sums of float32, and what 16 bits leave of a gradient.
EXACT = {torch.float32: (3e-6, 1e-5), torch.bfloat16: (3e-6, 8e-3), torch.float16: (3e-6, 2e-3)}
# (N, M, Lq, Ld, D): off every edge of a tile, one of everything.
SHAPES = [(3, 4, 5, 7, 9), (3, 2, 33, 40, 130), (1, 2, 1, 1, 2)]


def all_checks(device: str) -> Iterator[Check]:
    for dtype in EXACT:
        for shape in SHAPES:
            yield f"tokens: {dtype}, {shape}", partial(check_formula, shape, dtype, device)
        yield f"tokens, the same bits: {dtype}", partial(check_repeatable, dtype, device)
    yield "tokens, masked and not finite", partial(check_not_finite, device)
    yield "tokens, the first of equals", partial(check_ties, device)
    yield "tokens, zero rows and extreme norms", partial(check_norms, device)


def sanitized_checks(device: str) -> Iterator[Check]:
    for dtype in EXACT:
        yield f"tokens: {dtype}", partial(check_formula, SHAPES[0], dtype, device)


def tokens(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    n, m, lq, ld, d = shape
    query_mask, key_mask = torch.rand(n, lq) > 0.3, torch.rand(m, ld) > 0.3
    query_mask[0], key_mask[0] = True, True
    query_mask[1:2], key_mask[1:2] = False, False
    rows = [torch.randn(n, lq, d).to(dtype), torch.randn(m, ld, d).to(dtype)]
    return [x.to(device) for x in (*rows, query_mask, key_mask)]


def solved(query: Tensor, key: Tensor, *masks: Tensor, **options: object) -> list[Tensor]:
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    given = {"backend": "triton", **options}
    scores = token_similarity(*leaves, *masks, **given)  # type: ignore[arg-type]
    seed = torch.linspace(-1, 2, scores.numel(), device=scores.device).view(scores.shape)
    return [scores.detach(), *torch.autograd.grad(scores, leaves, seed.to(scores.dtype))]


def check_formula(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    query, key, *masks = tokens(shape, dtype, device)
    for given in (masks, []):
        for options in (
            {"aggregate": "sum"},
            {"aggregate": "two_sided_mean", "normalize": False, "workspace_bytes": 1 << 12},
        ):
            exact = solved(query.double(), key.double(), *given, **{**options, "backend": "torch"})
            found = solved(query, key, *given, **options)
            for x, y, tolerance in zip(found, exact, (*EXACT[dtype], EXACT[dtype][1]), strict=True):
                scale = y.abs().max().clamp(min=1e-2)
                assert (x.double() - y).abs().max() < tolerance * scale, options


def check_repeatable(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(1)
    given = tokens((6, 5, 20, 30, 40), dtype, device)
    for x, y in zip(solved(*given), solved(*given), strict=True):
        assert torch.equal(x, y)


def check_not_finite(device: str) -> None:
    """Masked tokens may be anything; others make their own scores NaN and no more."""
    torch.manual_seed(2)
    query, key, *masks = tokens(SHAPES[0], torch.float32, device)
    expected = solved(query, key, *masks)
    query[~masks[0]], key[~masks[1]] = torch.nan, -torch.inf
    for x, y in zip(solved(query, key, *masks), expected, strict=True):
        assert torch.equal(x, y)
    query, key, *_ = tokens((5, 6, 4, 27, 40), torch.float32, device)
    # All products of one sign: whether they overflow does not depend on how they are summed.
    query[0], key[1, 3], key[2] = 1e30, 1e30, -1e25
    key[3, 2, 1], query[4, 1, 0] = torch.nan, torch.inf
    dense = torch.einsum("nid,mjd->nmij", query, key).amax(3).sum(2)
    found = token_similarity(query, key, normalize=False, backend="triton")
    assert dense[0, 1] == torch.inf
    assert dense[0, 2] == -torch.inf
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-3, equal_nan=True)


def check_ties(device: str) -> None:
    torch.manual_seed(3)
    query = torch.randint(-3, 4, (4, 5, 8), device=device).float()
    key = torch.randint(-3, 4, (3, 60, 8), device=device).float()
    key[:, 40:] = key[:, 5:25]
    grad = solved(query, key, normalize=False)[2]
    exact = solved(query, key, normalize=False, backend="torch")[2]
    torch.testing.assert_close(grad, exact)
    assert bool((grad[:, 40:] == 0).all())


def check_norms(device: str) -> None:
    torch.manual_seed(4)
    query, key, *_ = tokens(SHAPES[1], torch.float32, device)
    plain = solved(query, key)
    scale = torch.tensor([1e-18, 1e18, 1.0], device=device).repeat(11)[:, None]
    scaled = solved(query * scale, key)
    torch.testing.assert_close(scaled[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled[1] * scale, plain[1], rtol=1e-4, atol=1e-5)
    query[2, 4], key[0] = 0, 0
    found = solved(query, key)
    assert all(bool(x.isfinite().all()) for x in found)
    assert bool((found[0][:, 0] == 0).all())
    assert bool((found[1][2, 4] == 0).all())
    assert bool((found[2][0] == 0).all())
