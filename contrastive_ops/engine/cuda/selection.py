"""``row_select`` by CUDA C++ kernels: the order of launches, and the memory between them.

csrc/cuda/problem.h says what each kernel does. Queries go in stripes and candidates in chunks, both
as large as the workspace allows; a stripe ends with scoring the groups that its lists kept.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..exclusions import Exclusions
from ..scores import score_dtype
from ..select_torch import Block
from .library import Arguments, Library, load

GROUP, PANEL, DEPTH, CHUNK_UNIT = 32, 128, 64, 256  # csrc/cuda/problem.h
ENTRY_BYTES = 16
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.uint8,
)


@dataclass(frozen=True)
class Plan:
    """Sizes of stripes, chunks and lists."""

    rows: int
    chunk: int
    capacity: int
    pairs: int

    @staticmethod
    def of(n: int, m: int, slices: int, k: int, score_bytes: int, budget: int) -> Plan:
        """Three eighths of the budget for queries and their lists, as much for candidates and
        maxima, the rest for scoring; never less than a tile of each."""
        row_bytes = 2 * DEPTH * slices
        # Room for k groups, for those that the bound cannot tell from them, and for a step more.
        capacity = _up(k + k // 2 + 80, 32)
        rows = budget * 3 // 8 // (row_bytes + ENTRY_BYTES * capacity + 64)
        rows = _even(n, max(rows, 1), PANEL)
        chunk = budget * 3 // 8 // (row_bytes + 16 + 5 * rows // GROUP)
        chunk = _even(m, max(chunk, 1), CHUNK_UNIT)
        pairs = budget // 4 // (GROUP * score_bytes + 40)
        return Plan(rows, chunk, capacity, max(pairs, GROUP))


def select(
    block: Block, scores: Tensor, indices: Tensor, above: Tensor | None, budget: int
) -> dict[str, Any]:
    """Merges the block into scores and indices (N, k); see :func:`..select.row_select`."""
    library, reason = load()
    if library is None:
        raise ValueError(f"backend 'cuda' cannot be used here: {reason}")
    if block.labels is not None:  # any integers, as the kernels have them
        _, numbers = torch.cat(block.labels).unique(return_inverse=True)
        rows, columns = numbers.int().split([len(block.query), len(block.corpus)])
        block = block._replace(labels=(rows, columns))
    query, corpus = _rows(block.query), _rows(block.corpus)
    scores, indices = scores.clone(), indices.clone()
    above = None if above is None else above.clone()
    n, m, k = len(query), len(corpus), scores.shape[1]
    dim = query.shape[1] * (8 if query.dtype == torch.uint8 else 1)
    slices = _up(dim, DEPTH) // DEPTH
    plan = Plan.of(n, m, slices, k, scores.element_size(), budget)
    device = query.device
    a = Arguments()
    exclude = block.exclude if len(block.exclude.index) else None
    a.put(
        dtype=DTYPES.index(query.dtype),
        normalize=block.normalize,
        l2=block.metric == "l2",
        dim=dim,
        slices=slices,
        x_stride=query.stride(0),
        y=corpus,
        y_stride=corpus.stride(0),
        count=m,
        first=block.first,
        k=k,
        capacity=plan.capacity,
        exclude=None if exclude is None else exclude.index.contiguous(),
        column_label=block.labels and block.labels[1],
        y_factor=torch.empty(m, dtype=torch.float64, device=device),
    )
    _put_chunk(a, plan, slices, block.upper is not None, device)
    scored = 0
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        for begin in range(0, n, plan.rows):
            part = slice(begin, min(n, begin + plan.rows))
            stripe = _Stripe(library, a, block, plan, query[part], part, exclude)
            stripe.list_groups(scores[part], indices[part], above, m)
            scored += stripe.score(scores[part], indices[part], m)
    nan_rows = int(a.tensor("y_factor").isnan().sum())
    return {
        "scores": scores,
        "indices": indices,
        "above": above,
        "scored": scored,
        "nan_rows": nan_rows,
    }


class _Stripe:
    """Some queries against all candidates."""

    def __init__(
        self,
        library: Library,
        a: Arguments,
        block: Block,
        plan: Plan,
        query: Tensor,
        part: slice,
        exclude: Exclusions | None,
    ) -> None:
        self.library, self.a, self.block, self.plan = library, a, block, plan
        self.query, self.part, self.device = query, part, query.device
        padded = _up(len(query), PANEL)
        self._new(
            padded,
            x_slices=(torch.uint8, 2 * DEPTH * int(a.slices)),
            x_factor=torch.float64,
            x_norm=torch.float64,
            x_residual=torch.float32,
            x_scale=torch.float32,
        )
        a.put(
            x=query,
            rows=len(query),
            padded_rows=padded,
            exclude_begin=None
            if exclude is None
            else exclude.begin[part.start : part.stop + 1].contiguous(),
            row_label=block.labels and block.labels[0][part],
            limit=None
            if block.upper is None
            else block.upper[part].to(score_dtype(query)).contiguous(),
        )

    def list_groups(
        self, scores: Tensor, indices: Tensor, above: Tensor | None, candidates: int
    ) -> None:
        """Scans everything; leaves the groups that could hold a winner in the rows' lists."""
        a, rows = self.a, len(self.query)
        self._run("prepare_queries")
        norm, scale = a.tensor("x_norm")[:rows], a.tensor("x_scale")[:rows].double()

        def in_row_units(score: Tensor) -> Tensor:
            score = score.double()
            return ((score + norm * norm) / 2 if self.block.metric == "l2" else score) / scale

        least = in_row_units(scores[:, -1])
        least = (least - least.abs() * 2.0**-20).float()
        known = (indices[:, -1] >= 0) & least.isfinite()
        zeros = torch.zeros(rows, dtype=torch.int64, device=self.device)
        a.put(
            threshold=torch.where(known, least, -torch.inf),
            list_size=zeros.to(torch.int32),
            dense=zeros.to(torch.uint8),
            lost_total=zeros,
            above=None if above is None else above[self.part],
            cap=None
            if self.block.upper is None
            else in_row_units(self.block.upper[self.part]).clamp(-1e37, 1e37).float(),
        )
        self._new(rows, list=(torch.int32, ENTRY_BYTES // 4 * self.plan.capacity))
        for begin in range(0, candidates, self.plan.chunk):
            chunk = min(self.plan.chunk, _up(candidates - begin, CHUNK_UNIT))
            a.put(chunk_begin=begin, chunk=chunk)
            for kernel in ("prepare_chunk", "scan", "fold"):
                self._run(kernel)
        self._run("finish")

    def score(self, scores: Tensor, indices: Tensor, candidates: int) -> int:
        """Scores what is listed and merges it; returns the number of pairs scored."""
        a = self.a
        a.put(scores=scores, indices=indices)
        sizes = a.tensor("list_size").long()
        dense = a.tensor("dense") != 0
        sizes[dense] = 0
        entries = a.tensor("list").view(len(sizes), self.plan.capacity, ENTRY_BYTES // 4)
        scored = 0
        for rows in _batches(sizes.tolist(), self.plan.pairs):
            here = sizes[rows]
            listed = torch.arange(int(here.max()), device=self.device) < here[:, None]
            group = entries[rows, : listed.shape[1], 2][listed]
            row = torch.arange(rows.start, rows.stop, device=self.device)
            scored += self._score(row.repeat_interleave(here).int(), group.contiguous())
        # Where ties or a wide bound left too much open, everything is scored.
        crowded = dense.nonzero()[:, 0]
        groups = _up(candidates, GROUP) // GROUP
        across = min(groups, self.plan.pairs)
        for some in crowded.split(max(1, self.plan.pairs // across)):
            for begin in range(0, groups, across):
                group = torch.arange(begin, min(groups, begin + across), device=self.device)
                row = some.repeat_interleave(len(group)).int()
                scored += self._score(row, group.int().repeat(len(some)))
        return scored

    def _score(self, row: Tensor, group: Tensor) -> int:
        """Pairs of a row and a group, by row, then group."""
        pairs = len(row)
        if pairs == 0:
            return 0
        count = torch.bincount(row, minlength=len(self.query))
        self.a.put(
            pairs=pairs,
            pair_row=row,
            pair_group=group,
            pair_order=group.argsort(stable=True),
            row_begin=torch.nn.functional.pad(count.cumsum(0), (1, 0)),
        )
        self._new(pairs, pair_scores=(score_dtype(self.query), GROUP))
        self._run("score")
        self._run("merge")
        return pairs * GROUP

    def _new(self, count: int, **wanted: Any) -> None:
        for name, kind in wanted.items():
            dtype, width = kind if isinstance(kind, tuple) else (kind, 1)
            self.a.put(**{name: torch.empty(count * width, dtype=dtype, device=self.device)})

    def _run(self, kernel: str) -> None:
        self.library.run(kernel, self.a, self.device)


def _put_chunk(a: Arguments, plan: Plan, slices: int, limited: bool, device: torch.device) -> None:
    groups = plan.chunk // GROUP

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    a.put(
        y_slices=empty(plan.chunk, 2 * DEPTH * slices, dtype=torch.uint8),
        y_scale=empty(plan.chunk),
        y_bias=empty(plan.chunk),
        y_norm=empty(groups),
        y_residual=empty(groups),
        maxima=empty(groups, plan.rows),
        lost=empty(groups, plan.rows, dtype=torch.uint8) if limited else None,
    )


def _batches(sizes: list[int], most: int) -> list[slice]:
    """Consecutive rows of `most` pairs together, or one row of more."""
    batches, begin, total = [], 0, 0
    for row, size in enumerate(sizes):
        if total and total + size > most:
            batches.append(slice(begin, row))
            begin, total = row, 0
        total += size
    if total:
        batches.append(slice(begin, len(sizes)))
    return batches


def _rows(x: Tensor) -> Tensor:
    """Unit stride in the last dimension."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _even(total: int, most: int, unit: int) -> int:
    """The parts that `total` falls into, as even as units allow, `most` each or one unit."""
    most = max(unit, most // unit * unit)
    parts = -(-total // most)
    return _up(-(-total // parts), unit)
