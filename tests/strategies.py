"""Hypothesis strategies: whole calls of info_nce, options, dtypes and layouts drawn jointly."""

import math
from dataclasses import replace

import torch
from cases import Call, normal
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "transposed", "strided", "offset", "expanded"]
SMALL = [1, 2, 3, 5, 8, 11, 12, 13, 15, 16, 17]
# Around the sides of the tiles that kernels are made of.
TILED = [1, 31, 32, 33, 47, 63, 64, 65, 127, 129, 255, 256, 257, 300]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """`x` in another place and stride of memory that is NaN elsewhere ("expanded": one row)."""
    if layout == "contiguous":
        return x.clone()
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return x[:1].expand_as(x)
    *rows, width = x.shape
    if layout == "strided":
        view = x.new_full((*rows, 2 * width + 1), math.nan)[..., 1::2]
    else:
        view = x.new_full((rows[0] + 5, *rows[1:], width + 3), math.nan)[2:-3, ..., 1:-2]
    view.copy_(x)
    return view


@st.composite
def calls(draw, sizes=tuple(SMALL), widths=(2, 3, 8, 17, 33), dtypes=tuple(DTYPES)):
    """A call on leaves that require gradients."""
    n, width = draw(st.sampled_from(sizes)), draw(st.sampled_from(widths))
    seed = draw(st.integers(0, 999))
    several = draw(st.sampled_from([None, None, "index", "several"]))
    m = draw(st.sampled_from(sizes))
    if several is None:
        m += n - min(n, m)
    chance = st.booleans()
    options: dict = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    draw_index = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw_index)

    if several == "index":
        options["positives"] = integers(0, m, n)
    elif several == "several":
        options["positives"] = distinct_positives(n, m, draw_index)
    kind = draw(st.sampled_from([None, "shared", "all", "own"]))
    negatives, shape = None, ()
    if kind is not None:
        count = draw(st.sampled_from([1, 2, 7]))
        shape = (count,) if kind == "shared" else (n, count)
        negatives = normal(*shape, width, seed=seed + 3)
        if kind != "shared":
            options["negatives_scope"] = kind
    if draw(chance):
        options["symmetric"] = True
    elif draw(chance):
        options["in_batch"] = False
    if draw(chance):
        high = max(2, n // 2)
        options |= {"query_ids": integers(0, high, n), "key_ids": integers(0, high, m)}
        if kind is not None:
            options["negative_ids"] = integers(0, 2 * high, *shape)
    if draw(chance):
        options["false_negative_margin"] = draw(st.sampled_from([-0.2, 0.0, 0.15]))
    if draw(chance):
        parts = [(n,), (m,)] + ([shape] if kind is not None else [])
        rows = [normal(*part, 5, seed=seed + 5 + i).float() for i, part in enumerate(parts)]
        options |= {"guide": tuple(rows), "guide_margin": draw(st.sampled_from([0.0, -0.3, 0.2]))}
    if draw(chance):
        options["margin"] = draw(st.sampled_from([0.3, -0.1]))
    if kind is not None and draw(chance):
        weights = normal(*shape, seed=seed + 9)
        options["negative_log_weight"] = weights.masked_fill(weights > 1.2, -math.inf)
    if kind in ("all", "own") and draw(chance):
        options["own_negative_log_weight"] = draw(st.sampled_from([0.7, -2.0, -math.inf]))
    if draw(chance):
        options["label_smoothing"] = draw(st.sampled_from([0.1, 0.5]))
    if draw(chance):
        options["row_weight"] = normal(n, seed=seed + 10).abs() + 0.01
    if draw(st.integers(0, 3)) == 3:
        options |= {"matryoshka_dims": [max(1, width // 2), width], "matryoshka_weights": [0.5, 1]}
    temperatures = [0.05, 0.3, 1.0, 10.0]
    if draw(st.integers(0, 3)) == 3:
        options["normalize"] = False
        temperatures = temperatures[2:]
    options["temperature"] = torch.tensor(draw(st.sampled_from(temperatures)))
    dtype = draw(st.sampled_from(dtypes))
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    query, key = normal(n, width, seed=seed + 1), normal(m, width, seed=seed + 2)
    shift = min(n, m)
    key[:shift] += query[:shift]
    operands = {"query": query, "key": key, "negatives": negatives}
    for layout, (name, rows) in zip(layouts, operands.items(), strict=True):
        if rows is not None:
            operands[name] = laid_out(rows.to(dtype), layout).detach().requires_grad_()
    options["temperature"] = options["temperature"].requires_grad_()
    return replace(Call(query, key), **operands, options=options)


def distinct_positives(n: int, m: int, generator: torch.Generator) -> Tensor:
    """(N, P) indices, none twice in a row, with pads in any place but not everywhere."""
    width = min(3, m)
    rows = [torch.randperm(m, generator=generator)[:width] for _ in range(n)]
    index = torch.stack(rows)
    pads = torch.rand(index.shape, generator=generator) < 0.3
    pads[:, int(torch.randint(0, width, (), generator=generator))] = False
    return index.masked_fill(pads, -1)
