"""Plain products of the vendor's library, with float32 results and a stated precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
    """out (float32) = a @ b, plus what was there if ``accumulate``.

    16-bit factors are multiplied as they are and summed in float32. Float32 factors follow
    ``precision``: "ieee", "tf32", or "tf32x3", which splits each factor in two.
    """
    if a.dtype != torch.float32 and a.is_cuda and not torch.version.hip:
        if accumulate:
            torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, out=out)
        else:
            torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
        return
    if a.dtype != torch.float32:
        # Elsewhere no product has a wider result than its factors.
        a, b = a.float(), b.float()
        precision = "ieee"
    with _float32_precision(a.device, "ieee" if precision == "ieee" else "tf32"):
        if precision != "tf32x3":
            _add(a, b, out, accumulate)
            return
        (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
        _add(a_low, b_high, out, accumulate)
        _add(a_high, b_low, out, True)
        _add(a_high, b_high, out, True)


def _add(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    if accumulate:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The part that tf32's 10 bits hold exactly, and the rest."""
    high = (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32).view(x.shape)
    return high, x - high


@contextlib.contextmanager
def _float32_precision(device: torch.device, precision: str) -> Iterator[None]:
    """The library's float32 precision for these products, whatever the process has set."""
    if device.type != "cuda":
        yield
        return
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        setting.fp32_precision = before
