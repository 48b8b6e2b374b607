"""One set against itself (NT-Xent, 2G) and sums over pairs (SigLIP, 3G) for the GPU tools."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_ops import nt_xent, sigmoid_loss
from contrastive_ops.engine.problem import Operands, SimilarityProblem

from .gpu_cases import Case, Loss, Planned, empty
from .gpu_softmax import DENSE_ROWS, ERROR_ROWS, pair_rows, step

TEMPERATURE = 0.1
BIAS = -10.0


def one_set_plans(dtype: torch.dtype, precision: str) -> Iterator[Planned]:
    n, width = 65536, 768
    plain = Operands(
        empty(n, width, of=dtype),
        empty(0, width, of=dtype),
        positives=empty(n, 1, of=torch.int64),
    )
    learnt = plain._replace(temperature=empty(of=torch.float32))
    problem = SimilarityProblem(scale=10.0, one_set=True, precision=precision)
    many = problem._replace(label_smoothing=0.1, false_negative_margin=0.1)
    for title, p, o in (
        ("T a number", problem, plain),
        ("T a tensor", problem, learnt),
        ("small", problem, _first(learnt, 4096)),
        ("statistics", problem, learnt),
        ("margin, smoothing", many, learnt),
    ):
        rows = o.query.shape[0]
        flops = 2 * 2.0 * rows * rows * width
        yield Planned(
            title,
            [rows, width],
            flops,
            partial(step, p, o, title == "statistics"),
            quick=title == "T a number",
        )


def _first(operands: Operands, n: int) -> Operands:
    assert operands.positives is not None
    return operands._replace(query=operands.query[:n], positives=operands.positives[:n])


def pair_sum_plans(dtype: torch.dtype, precision: str) -> Iterator[Planned]:
    n, width = 65536, 768
    plain = Operands(
        empty(n, width, of=dtype),
        empty(n, width, of=dtype),
        temperature=empty(of=torch.float32),
        bias=empty(of=torch.float32),
    )
    ids = {"query_ids": empty(1, n, of=torch.int64), "key_ids": empty(1, n, of=torch.int64)}
    problem = SimilarityProblem(tile_map="softplus", precision=precision)
    flops = 3 * 2.0 * n * n * width
    for title, operands in (("T and bias tensors", plain), ("ids", plain._replace(**ids))):
        yield Planned(
            title, [n, width], flops, partial(step, problem, operands), quick=title != "ids"
        )


def one_set_cases(shrink: int = 1) -> Iterator[Case]:
    """n rows: two views of n / 2 samples."""
    for n, width in ((65536, 768), (16384, 768), (4096, 256), (1024, 256)):
        variants: dict[str, Loss] = {
            "ours": partial(nt_xent, temperature=TEMPERATURE, backend="triton"),
            "dense": _dense_nt_xent,
        }
        yield _case("two views", n, n // 2, width, variants, _dense_nt_xent, 2, shrink)


def pair_sum_cases(shrink: int = 1) -> Iterator[Case]:
    for n, width in ((65536, 768), (16384, 768), (4096, 768)):
        variants: dict[str, Loss] = {
            "ours": partial(sigmoid_loss, temperature=TEMPERATURE, bias=BIAS, backend="triton"),
            "dense": _dense_sigmoid,
        }
        try:
            theirs = importlib.import_module("siglip_kernel").fused_siglip_loss
        except Exception:
            pass
        else:
            variants["siglip-kernel"] = partial(_siglip_kernel, theirs)
        yield _case("pairs", n, n, width, variants, _dense_sigmoid, 3, shrink)


def _case(
    title: str,
    n: int,
    rows: int,
    width: int,
    variants: dict[str, Loss],
    exact: Loss,
    products: int,
    shrink: int,
) -> Case:
    rehearsed = shrink > 1
    here = (max(rows // shrink, 33), 24) if rehearsed else (rows, width)
    if n > DENSE_ROWS:
        variants = {name: loss for name, loss in variants.items() if name.startswith("ours")}
    return Case(
        f"{title}, {n} x {width}, bfloat16",
        {"n": n, "width": width, "dtype": "bfloat16", "inputs": "gaussian"},
        products * 2.0 * n * n * width,
        partial(pair_rows, *here, "bfloat16", "gaussian"),
        lambda: variants,
        exact if n <= ERROR_ROWS else None,
        rounds=1 if rehearsed else 4 if n >= 65536 else 12,
        by_wall_clock=n <= 1024,
    )


def _dense_nt_xent(a: Tensor, b: Tensor) -> Tensor:
    rows = F.normalize(torch.cat([a, b]), dim=1)
    logits = rows @ rows.T / TEMPERATURE
    logits = logits.masked_fill(_diagonal(len(rows), rows.device), float("-inf"))
    place = torch.arange(len(rows), device=rows.device)
    return F.cross_entropy(logits, (place + len(a)) % len(rows))


@functools.lru_cache(1)
def _diagonal(n: int, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=torch.bool, device=device)


def _dense_sigmoid(query: Tensor, key: Tensor) -> Tensor:
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / TEMPERATURE + BIAS
    return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(query)


def _siglip_kernel(theirs: Loss, query: Tensor, key: Tensor) -> Tensor:
    """Theirs takes unit rows and log(1 / T)."""
    log_scale, bias = _scalars(query.device)
    return theirs(F.normalize(query, dim=1), F.normalize(key, dim=1), log_scale, bias)


@functools.cache
def _scalars(device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.tensor([1 / TEMPERATURE], device=device).log()[0], BIAS
    return values[0], torch.tensor(values[1], device=device)
