"""``row_select`` with Triton: a 16-bit scan that bounds the scores, and exact scores of the rest.

Every row has a scanned copy in float16: the row times a power of two, rounded. How far that is from
the row is measured, so that a group's maximum bounds the scores of its candidates rigorously. Of a
span of candidates

    scan      the maximum of every group of columns, for every row;
    rank      a threshold: the k-th largest maximum less its bound is a score that the row has;
    values    of the k best groups, all columns, which raise the threshold;
    score     in float64 what reaches it, and, once its own k-th score is known, the other groups.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import config
from ...kernels import select as kernels
from ..scores import row_measures, unpacked
from ..select_torch import Block, merge
from . import passes, prepared
from .passes import descriptor
from .prepared import cdiv, interpreted, row_programs

EXACT_PAIRS = 64
NORM_BITS = 9
"""Scanned rows have norms of [2**8, 2**9): float16 has few small numbers."""
LARGE = 1e18
"""Norms from here on: products might overflow."""
MANY = 8
"""Candidates a row, in units of k, beyond which a float32 product goes between scan and score,
where its operands fit the workspace."""


def select(
    block: Block, scores: Tensor, indices: Tensor, above: Tensor | None, budget: int
) -> dict[str, Any]:
    """Merges the block into scores and indices (N, k); see :func:`..select.row_select`."""
    with _on(block.query):
        return _select(block, scores.clone(), indices.clone(), above, budget)


def _select(
    block: Block, scores: Tensor, indices: Tensor, above: Tensor | None, budget: int
) -> dict[str, Any]:
    above = None if above is None else above.clone()
    n, m = len(block.query), len(block.corpus)
    bits = block.query.dtype == torch.uint8
    # A scanned row, and what packed bits unpack to.
    row_bytes = block.query.shape[1] * (24 if bits else 2) + 64
    columns_at_once = max(1, min(m, budget // 2 // row_bytes))
    width = _width(columns_at_once, scores.shape[1])
    # Maxima, their bounds, and what is known of the groups.
    groups = cdiv(columns_at_once, width)
    rows_at_once = max(1, min(n, budget // 3 // (32 * groups + row_bytes)))
    scored = nan_rows = 0
    for column in range(0, m, columns_at_once):
        y = Side.of(block.corpus[column : column + columns_at_once], block.normalize)
        nan_rows += int(y.norm.isnan().sum())
        for row in range(0, n, rows_at_once):
            part = slice(row, min(n, row + rows_at_once))
            x = Side.of(block.query[part], block.normalize)
            span = Span(block, x, y, part, column, width, budget)
            limit = None if block.upper is None else block.upper[part]
            over, count = span.run(scores[part], indices[part], limit)
            scored += count
            if above is not None and over is not None:
                above[part] += over
    return {
        "scores": scores,
        "indices": indices,
        "above": above,
        "scored": scored,
        "nan_rows": nan_rows,
    }


@dataclass(frozen=True)
class Side:
    """Rows, and what is known of them."""

    rows: Tensor
    unit: Tensor
    """float64 (n,): what a row is multiplied by; 0 where it cannot be selected."""
    norm: Tensor
    """float64 (n,): of the row so multiplied; NaN where it cannot be selected."""

    @staticmethod
    def of(rows: Tensor, normalize: bool) -> Side:
        if rows.dtype == torch.uint8:
            rows = unpacked(rows, torch.int8)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        square = rows.new_empty(len(rows), dtype=torch.float64)
        kernels.squared_norms[(cdiv(len(rows), EXACT_PAIRS),)](
            rows, rows.stride(0), square, len(rows), rows.shape[1], ROWS=EXACT_PAIRS
        )
        factor, norm = row_measures(square, normalize)
        return Side(rows, factor.nan_to_num(nan=0.0), norm)

    def scanned(self, dtype: torch.dtype) -> Scanned:
        """The rows as the scan multiplies them."""
        n, width = self.rows.shape
        unit = config.depth_block(dtype.itemsize, interpreted())
        padded = cdiv(width, unit) * unit
        scale = torch.where(self.unit > 0, self.norm / self.unit, 0.0)  # of the rows as given
        usable = (scale > 0) & (self.norm < LARGE)
        exponent = torch.frexp(torch.where(usable, scale, 1.0)).exponent
        shift = torch.where(usable, torch.exp2((NORM_BITS - exponent).double()), 0.0)
        factor = torch.where(usable, self.unit / shift, 0.0).float()
        data = self.rows.new_empty((n, padded), dtype=dtype)
        residual = torch.empty_like(self.norm)
        grid, shape = row_programs(n, padded)
        kernels.scanned_rows[grid](
            self.rows, self.rows.stride(0), self.unit, shift, factor, data, residual, n, width,
            padded, enable_fp_fusion=False, **shape,
        )  # fmt: skip
        # 1.001: the sum's own roundings. Of rows that large nothing is known.
        residual = torch.where(self.norm < LARGE, residual.sqrt() * 1.001, torch.inf)
        return Scanned(data, factor, residual.masked_fill(self.norm.isnan(), 0.0))


@dataclass(frozen=True)
class Scanned:
    data: Tensor
    factor: Tensor
    """float32 (n,)"""
    residual: Tensor
    """float64 (n,): the norm of row - factor * data."""


class Products:
    """The scan's products of some rows and columns in one dtype, and how far off they may be."""

    def __init__(self, span: Span, dtype: torch.dtype) -> None:
        self.span, self.x, self.y = span, span.x.scanned(dtype), span.y.scanned(dtype)
        self.tile = config.tile_for(
            prepared.architecture(self.x.data.device),
            "plain",
            dtype.itemsize,
            "ieee",
            interpreted(),
        )
        self.values_tile = (
            config.VALUES_INTERPRETED if interpreted() else config.VALUES[dtype.itemsize]
        )
        possible = ~span.y.norm.isnan()
        half_square = -0.5 * span.y.norm.square() if span.l2 else torch.zeros_like(span.y.norm)
        self.bias = half_square.clamp(min=-1e38).masked_fill(~possible, -torch.inf).float()
        left, right = self._error_factors()
        error = (left @ right).float() * 1.00001 + 1e-30
        self.error = torch.where(error < 1e37, error, torch.inf)

    def _error_factors(self) -> tuple[Tensor, ...]:
        """(rows, r) and (r, groups) whose product bounds |value - score|, in values' units.

        |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'|; besides the roundings of the product, and
        those of factors, bias and score.
        """
        span, width = self.span, self.span.width
        groups = span.groups

        def by_group(value: Tensor) -> Tensor:
            value = torch.nn.functional.pad(
                value.nan_to_num(nan=0.0), (0, groups * width - len(value))
            )
            return value.view(groups, width).amax(1) * 1.000001

        big_y, rough_y = by_group(span.y.norm), by_group(self.y.residual)
        big_x, rough_x = span.x.norm.nan_to_num(nan=0.0) * 1.000001, self.x.residual
        # A tensor core cuts off more than once a term; float32 is multiplied and added by itself.
        ulp = 2.0**-22 if self.x.data.dtype == torch.float16 else 1.01 * 2.0**-24
        unit = (self.x.data.shape[1] + 32) * ulp
        columns = [rough_x, big_x + rough_x, unit * (big_x + rough_x) + 2.0**-20 * big_x]
        rows = [big_y, rough_y, big_y + rough_y]
        if span.l2:  # (x + y)**2
            columns += [2.0**-20 * big_x.square(), 2.0**-19 * big_x, 2.0**-20 + 0 * big_x]
            rows += [torch.ones_like(big_y), big_y, big_y.square()]
        left, right = torch.stack(columns, 1), torch.stack(rows)
        # No 0 * inf: what is not finite makes everything of its row or group unknown.
        return tuple(
            side.nan_to_num(nan=1e200, posinf=1e200).clamp(1e-100, 1e200) for side in (left, right)
        )

    def _common(self, cap: Tensor | None) -> dict[str, Any]:
        span = self.span
        return {
            "factor_x": self.x.factor, "factor_y": self.y.factor, "bias": self.bias, "cap": cap,
            "out_begin": span.out_begin, "out_index": span.out_index, "first": span.first,
            "columns": len(self.y.data), "depth": self.x.data.shape[1], "steps": span.steps,
            "PRECISION": "interpreted" if interpreted() else "ieee", "WIDTH": span.width,
        }  # fmt: skip

    def maxima(self, cap: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(rows, groups): the largest value of each, and how many are above the cap."""
        tile, x, y = self.tile, self.x.data, self.y.data
        bulk = tile.bulk or (interpreted() and passes.BULK_IN_THE_INTERPRETER)
        most = torch.empty((len(x), self.span.groups), device=x.device)
        lost = None if cap is None else torch.empty_like(most, dtype=torch.int32)
        grid = (cdiv(len(x), tile.block_m) * cdiv(len(y), tile.block_n),)
        kernels.group_maxima[grid](
            descriptor(x, tile.block_m, tile.block_k) if bulk else x,
            descriptor(y, tile.block_n, tile.block_k) if bulk else y,
            most=most, lost=lost, rows=len(x), groups=self.span.groups, BULK=bulk,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP=tile.group,
            num_warps=tile.warps, num_stages=tile.stages, **self._common(cap),
        )  # fmt: skip
        return most, lost

    def values(
        self, row: Tensor, group: Tensor, cap: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(pairs, width) values of listed pairs, and how many of each are above the cap."""
        span, device = self.span, row.device
        order = group.argsort(stable=True)
        block_m = self.values_tile.block_m
        count = torch.bincount(group, minlength=span.groups)
        tiles = (count + block_m - 1) // block_m
        of_tile = torch.arange(span.groups, device=device).repeat_interleave(tiles)
        start, last = count.cumsum(0) - count, count.cumsum(0)
        place = torch.arange(len(of_tile), device=device) - (tiles.cumsum(0) - tiles)[of_tile]
        begin = start[of_tile] + place * block_m
        values, lost = self.values_by_tile(row[order], of_tile, begin, last[of_tile], cap)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=device)
        return values[back], None if lost is None else lost[back]

    def values_by_tile(
        self, row: Tensor, group: Tensor, begin: Tensor, end: Tensor, cap: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The same of pairs in order of groups: tile t has [begin[t], end[t]), of group[t]."""
        tile = self.values_tile
        values = torch.empty((len(row), self.span.width), device=row.device)
        lost = None if cap is None else row.new_empty(len(row), dtype=torch.int32)
        kernels.group_values[(len(group),)](
            self.x.data, self.y.data, pair_row=row, tile_group=group, tile_begin=begin,
            tile_end=end, values=values, lost=lost, BLOCK_M=tile.block_m, BLOCK_K=tile.block_k,
            num_warps=tile.warps, num_stages=tile.stages, **self._common(cap),
        )  # fmt: skip
        return values, lost


class Span:
    """Some rows against some columns."""

    def __init__(
        self,
        block: Block,
        x: Side,
        y: Side,
        rows: slice,
        column: int,
        width: int,
        budget: int,
    ) -> None:
        self.budget = budget
        self.x, self.y, self.l2, self.width = x, y, block.metric == "l2", width
        self.first = block.first + column
        self.groups = cdiv(len(y.rows), width)
        self.out_begin = self.out_index = None
        self.steps = 0
        out = block.exclude.rows(rows.start, rows.stop)
        if len(out.index):
            self.out_begin, self.out_index = out.begin, out.index.contiguous()
            self.steps = int(out.begin.diff().max()).bit_length()

    def run(
        self, scores: Tensor, indices: Tensor, upper: Tensor | None
    ) -> tuple[Tensor | None, int]:
        """Merges into scores and indices, in place; what is above the limit, and pairs scored."""
        self.scores, self.indices, self.upper = scores, indices, upper
        k, n = scores.shape[1], len(scores)
        self.products = products = Products(self, torch.float16)
        self.fine: Products | None = None
        cap = None
        if upper is not None:
            cap = self._limits(upper) + products.error.amax(1)
            cap = (cap + cap.abs() * 2.0**-22).masked_fill(self.x.norm.isnan(), torch.inf)
        most, lost = products.maxima(cap)
        self.over = None if lost is None else torch.zeros(n, dtype=torch.int64, device=most.device)
        # The k best groups of rows that they may concern.
        tau = self._raised(self._known(), most, products.error, cap)
        count = min(k, self.groups)
        reach = torch.where(most > -torch.inf, most + products.error, -torch.inf)
        best = reach.topk(count, 1)
        matters = (best.values >= tau[:, None]) & (best.values > -torch.inf)
        at = matters.nonzero(as_tuple=True)
        visited = torch.zeros(most.shape, dtype=torch.bool, device=most.device)
        self.scored = 0
        self._visit_all(at[0], best.indices[at], tau, visited, cap)
        # And the other groups that still matter.
        tau = torch.maximum(tau, self._known())
        matters = (reach >= tau[:, None]) & (reach > -torch.inf) & ~visited
        at = matters.nonzero(as_tuple=True)
        self._visit_all(at[0], at[1], tau, visited, cap)
        if self.over is not None and lost is not None:
            self.over += lost.masked_fill(visited, 0).sum(1)
        return self.over, self.scored

    def _limits(self, score: Tensor) -> Tensor:
        """Scores in units of values."""
        value = score.double()
        if self.l2:
            value = (value + self.x.norm.square()) / 2
        return value.clamp(-1e37, 1e37).float()

    def _known(self) -> Tensor:
        """(rows,): what a candidate's value must reach; +inf for rows that select nothing."""
        full = self.indices[:, -1] >= 0
        least = self._limits(self.scores[:, -1])
        least = torch.where(full, least - least.abs() * 2.0**-22, -torch.inf)
        return torch.where(self.x.norm.isnan(), torch.inf, least)

    def _raised(self, tau: Tensor, value: Tensor, error: Tensor, cap: Tensor | None) -> Tensor:
        """The threshold by what a row certainly has: the k-th largest value less its error."""
        k = self.scores.shape[1]
        if value.shape[1] < k:
            return tau
        sure = value - error
        if cap is not None and self.upper is not None:
            limit = self._limits(self.upper)
            limit = (limit - limit.abs() * 2.0**-22)[:, None]
            sure = sure.masked_fill(value + error > limit, -torch.inf)
        sure = sure.masked_fill(~sure.isfinite(), -torch.inf)
        return torch.maximum(tau, sure.topk(k, 1).values[:, -1])

    def _visit_all(
        self, row: Tensor, group: Tensor, tau: Tensor, visited: Tensor, cap: Tensor | None
    ) -> None:
        """As many pairs at once as there is room for."""
        visited[row, group] = True
        at_once = max(1, self.budget // 3 // (48 * self.width))
        for some_rows, some in zip(row.split(at_once), group.split(at_once), strict=True):
            if len(some):
                self._visit(some_rows, some, torch.maximum(tau, self._known()), cap)

    def _visit(self, row: Tensor, group: Tensor, tau: Tensor, cap: Tensor | None) -> None:
        """Scores what may be among the best in listed pairs of rows (ascending) and groups."""
        k = self.scores.shape[1]
        error = self.products.error[row, group]
        value, lost = self.products.values(row, group, cap)
        if self.over is not None and lost is not None:
            self.over.index_add_(0, row, lost.long())
        tau = self._raised_by(row, value, error, tau, cap)
        reaches = (value + error[:, None] >= tau[row][:, None]) & (value > -torch.inf)
        fits = 4 * self.x.rows.shape[1] * self.width * self.groups <= self.budget // 4
        if fits and int(reaches.sum()) > MANY * k * len(tau):
            if self.fine is None:
                self.fine = Products(self, torch.float32)
            error = self.fine.error[row, group]
            value = self.fine.values(row, group, None)[0].masked_fill(~reaches, -torch.inf)
            tau = self._raised_by(row, value, error, tau, cap)
            reaches &= value + error[:, None] >= tau[row][:, None]
        pair, place = reaches.nonzero(as_tuple=True)
        column = group[pair] * self.width + place
        at_once = max(1, self.budget // 3 // 160)
        for rows, columns in zip(row[pair].split(at_once), column.split(at_once), strict=True):
            self._score(rows, columns)

    def _raised_by(
        self, row: Tensor, value: Tensor, error: Tensor, tau: Tensor, cap: Tensor | None
    ) -> Tensor:
        """The threshold by what rows certainly have among listed pairs (rows ascending)."""
        count = torch.bincount(row, minlength=len(tau))
        across = int(count.max())
        if across * len(tau) > 4 * len(row):  # too few rows for a table of them all
            return tau
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        shape = (len(tau), across, self.width)
        table = value.new_full(shape, -torch.inf)
        table[row, place] = value
        doubt = value.new_zeros(shape[:2])
        doubt[row, place] = error
        doubt = doubt[:, :, None].expand(shape).flatten(1)
        return self._raised(tau, table.flatten(1), doubt, cap)

    def _score(self, row: Tensor, column: Tensor) -> None:
        if not len(row):
            return
        score = self.exact(row, column)
        self.scored += len(row)
        over = merge(row, column + self.first, score, self.scores, self.indices, self.upper)
        if self.over is not None and over is not None:
            self.over += over

    def exact(self, row: Tensor, column: Tensor) -> Tensor:
        """Scores of listed pairs."""
        x, y = self.x, self.y
        score = torch.empty(len(row), dtype=torch.float32, device=row.device)
        kernels.pair_scores[(cdiv(len(row), EXACT_PAIRS),)](
            x.rows, x.rows.stride(0), x.unit, y.rows, y.rows.stride(0), y.unit, row, column, score,
            len(row), x.rows.shape[1], L2=self.l2, ROWS=EXACT_PAIRS, enable_fp_fusion=False,
        )  # fmt: skip
        return score


def _width(columns: int, k: int) -> int:
    """Columns of a group: so few that k groups are a small share, so many that maxima are few."""
    if interpreted():
        return config.VALUES_INTERPRETED.block_n
    return 32 if 64 * k * 8 > columns else 64


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
