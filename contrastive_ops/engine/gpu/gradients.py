"""From statistics, or from kept exponentials, to the gradients of the operands."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ...kernels import config, rows
from ..problem import Gradients, Wanted, Weight
from . import passes, products
from .passes import Settled
from .prepared import NORM_TARGET, Block, Job, Rows, row_programs

HALF_ROOM = 13
"""float16 coefficients are scaled by a power of two so that the largest is at most 2**14."""


def from_statistics(
    job: Job,
    row_state: Tensor,
    column_state: Tensor | None,
    weight: Weight,
    wanted: Wanted,
    *,
    wide: bool = False,
) -> tuple[Tensor | None, Gradients]:
    """Weighted losses and gradients, recomputing the logits: 3G beyond the statistics."""
    settled = passes.settle(job, row_state, column_state, weight, gradients=True)
    factor, undo = _factor(job, weight)
    out = _Outputs(job, settled, wanted, wide)
    slope = wanted[4]
    own = out.own(slope)
    steps = [_width(job, block) for block in job.blocks]
    height = _height(job)
    buffer = _buffer(job, height, max(steps, default=1)).view(-1)
    for begin in range(0, job.query.count, height):
        rows_here = begin, min(begin + height, job.query.count)
        x_product: Tensor | None = None
        for b, block in enumerate(job.blocks):
            wants_y = out.wants(block)
            if not (wanted[0] or wants_y or slope):
                continue
            step = steps[b]
            for first in range(0, block.rows.count, step):
                columns = first, min(first + step, block.rows.count)
                shape = rows_here[1] - begin, columns[1] - first
                z = _view(buffer, *shape)
                parts = passes.write_coefficients(
                    job, block, settled, rows_here, columns, z, factor, slope
                )
                out.add_slope(parts)
                z = z[:, : shape[1]]
                if wanted[0]:
                    y = block.rows.data[columns[0] : columns[1], : out.width]
                    fresh = x_product is None
                    if x_product is None:
                        x_product = out.product(shape[0])
                    products.multiply(z, y, x_product, not fresh, job.problem.precision)
                if wants_y:
                    x = job.query.data[begin : rows_here[1], : out.width]
                    y_product = out.y_product(block)[columns[0] : columns[1]]
                    products.multiply(z.T, x, y_product, begin > 0, job.problem.precision)
        if wanted[0]:
            out.finish_query(x_product, rows_here, own, None, undo)
    out.finish_candidates(undo)
    return settled.weighted, out.gradients()


def can_keep(job: Job) -> bool:
    """Whether exponentials can be kept before their sums are known.

    Only where the host knows the temperature: then no gradient of it is wanted.
    """
    if job.two_way or job.problem.label_smoothing or not job.blocks:
        return False
    if job.query.data.dtype == torch.float16:
        return False
    return all(job.may_be_bounded(block, config.KEPT_RANGE) is True for block in job.blocks)


def with_kept_exponentials(
    job: Job, weight: Weight, wanted: Wanted
) -> tuple[Tensor | None, Gradients]:
    """Weighted losses and gradients at 3G: a stripe of rows closes its own sums, so 1 / sum can
    scale the rows of dX after, and those of X before, their products."""
    n = job.query.count
    state = passes.empty_state(job, n)
    settled = passes.unsettled(job, True, True)
    out = _Outputs(job, settled, wanted, False)
    height = _kept_height(job)
    wants_any_y = any(out.wants(block) for block in job.blocks)
    kept = [_buffer(job, height, block.rows.count) for block in job.blocks]
    for begin in range(0, n, height):
        end = min(begin + height, n)
        for b, block in enumerate(job.blocks):
            here = kept[b][: end - begin]
            passes.measure(job, block, begin, end, state, None, add=b > 0, kept=here)
        if job.operands.own_negatives is not None:
            passes.measure_own(job, state, add=True, begin=begin, end=end)
        passes.settle(
            job, state, None, weight, gradients=True, begin=begin, end=end, into=settled,
            static=True,
        )  # fmt: skip
        assert settled.row is not None
        own = out.own(False, begin, end)
        if wanted[0]:
            product = out.product(end - begin)
            for b, block in enumerate(job.blocks):
                e = kept[b][: end - begin, : block.rows.count]
                y = block.rows.data[:, : out.width]
                products.multiply(e, y, product, b > 0, job.problem.precision)
            out.finish_query(product, (begin, end), own, settled.row[1], 1.0)
        if wants_any_y:
            x = torch.empty_like(job.query.data[begin:end])
            grid, shape = row_programs(end - begin, job.query.padded)
            rows.weighted_rows[grid](
                job.query.data,
                x,
                job.query.inverse,
                settled.row[1],
                job.query.padded,
                begin,
                end - begin,
                **shape,
            )
            for b, block in enumerate(job.blocks):
                if out.wants(block):
                    e = kept[b][: end - begin, : block.rows.count]
                    y_product = out.y_product(block)
                    products.multiply(
                        e.T, x[:, : out.width], y_product, begin > 0, job.problem.precision
                    )
    out.finish_candidates(1.0)
    return settled.weighted, out.gradients()


class _Outputs:
    """The gradients under way, and how each is finished."""

    def __init__(self, job: Job, settled: Settled, wanted: Wanted, wide: bool) -> None:
        self.job = job
        self.settled = settled
        self.wanted = wanted
        self.width = min(-(-job.query.width // 8) * 8, job.query.padded)
        """Columns of the products: the width, up to 16 bytes."""
        given = job.query.given
        self.dtype = torch.float32 if wide else given.dtype
        self.device = given.device
        self.query = self._empty(job.query) if wanted[0] else None
        self.key: Tensor | None = None
        self.negatives: Tensor | None = None
        self.own_grad: Tensor | None = None
        self.products: dict[int, Tensor] = {}
        self.slopes: list[Tensor] = []

    def wants(self, block: Block) -> bool:
        return self.wanted[1] if block.in_batch else self.wanted[2]

    def product(self, count: int) -> Tensor:
        return torch.empty((count, self.width), dtype=torch.float32, device=self.device)

    def y_product(self, block: Block) -> Tensor:
        place = int(not block.in_batch)
        if place not in self.products:
            self.products[place] = self.product(block.rows.count)
        return self.products[place]

    def add_slope(self, parts: Tensor | None) -> None:
        if parts is not None:
            self.slopes.append(parts.sum(dtype=torch.float64))

    def own(self, slope: bool, begin: int = 0, end: int | None = None) -> Tensor | None:
        """Own negatives' gradient; returns what they add to the queries'."""
        job, own = self.job, self.job.operands.own_negatives
        if own is None or not (self.wanted[0] or self.wanted[3] or slope):
            return None
        n, h, width = own.shape
        end = n if end is None else end
        if self.wanted[3] and self.own_grad is None:
            self.own_grad = torch.empty((n, h, width), dtype=self.dtype, device=self.device)
        added = None
        if self.wanted[0]:
            added = torch.empty((end - begin, width), dtype=torch.float32, device=self.device)
        moments = torch.empty(end - begin, dtype=torch.float32, device=self.device)
        assert self.settled.row is not None
        offset, amount, even = self.settled.row
        bias = job.operands.own_bias
        rows.own_gradient[(end - begin,)](
            job.query.data,
            job.query.inverse,
            own.detach(),
            *own.stride(),
            None if bias is None else bias.contiguous(),
            reference=job.reference,
            offset=offset,
            amount=amount,
            even=even,
            x_grad=added,
            own_grad=self.own_grad,
            slope=moments,
            first_row=begin,
            count=h,
            width=width,
            padded=job.query.padded,
            NORMALIZE=job.problem.normalize,
            BLOCK=triton.next_power_of_2(job.query.padded),
            **job.scaling,
        )
        if slope:
            self.add_slope(moments)
        return added

    def finish_query(
        self,
        product: Tensor | None,
        rows_here: tuple[int, int],
        extra: Tensor | None,
        amount: Tensor | None,
        undo: Tensor | float,
    ) -> None:
        job = self.job
        assert self.query is not None
        begin, end = rows_here
        whole_extra = extra is not None and extra.shape[0] != end - begin
        self._finish(
            job.query,
            product,
            self.query[begin:end],
            begin,
            amount=amount,
            undo=undo,
            partners=job.index,
            extra=extra[begin:end] if whole_extra and extra is not None else extra,
            bound=job.positives if job.index is not None else job.query.count,
        )

    def finish_candidates(self, undo: Tensor | float) -> None:
        job = self.job
        for block in job.blocks:
            if not block.in_batch and self.wanted[2]:
                self.negatives = self._empty(block.rows)
                product = self.products.get(1)
                self._finish(block.rows, product, self.negatives, 0, undo=undo, bound=-1)
        if not self.wanted[1]:
            return
        self.key = self._empty(job.key)
        partners = starts = entries = None
        if job.index is not None:
            # Stable, so that each key's queries come in one order.
            ordered, entries = torch.sort(job.index.reshape(-1), stable=True)
            keys = torch.arange(job.key.count + 1, device=self.device)
            starts = torch.searchsorted(ordered, keys)
            partners = torch.div(entries, job.positives, rounding_mode="floor")
        self._finish(
            job.key,
            self.products.get(0),
            self.key,
            0,
            undo=undo,
            partners=partners,
            starts=starts,
            partner_rows=entries,
            bound=job.query.count if job.positives else -1,
        )

    def _finish(
        self,
        operand: Rows,
        product: Tensor | None,
        out: Tensor,
        begin: int,
        *,
        undo: Tensor | float,
        bound: int,
        amount: Tensor | None = None,
        partners: Tensor | None = None,
        starts: Tensor | None = None,
        partner_rows: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> None:
        """``bound`` < 0: this operand has no positives."""
        job = self.job
        other = job.key if operand is job.query else job.query
        grid, shape = row_programs(out.shape[0], operand.padded)
        rows.finish[grid](
            product,
            0 if product is None else product.stride(0),
            amount,
            undo,
            operand.data,
            operand.inverse,
            operand.rescale,
            other.data,
            other.inverse,
            partners,
            starts,
            None if bound < 0 or not job.positives else self.settled.positive_grad,
            bound,
            partner_rows,
            extra,
            out=out,
            first_row=begin,
            rows=out.shape[0],
            width=operand.width,
            padded=operand.padded,
            NORMALIZE=job.problem.normalize,
            UNDO_IS_TENSOR=isinstance(undo, Tensor),
            **shape,
            **job.scaling,
        )

    def _empty(self, operand: Rows) -> Tensor:
        return torch.empty(operand.given.shape, dtype=self.dtype, device=self.device)

    def gradients(self) -> Gradients:
        temperature = None
        given = self.job.operands.temperature
        if self.wanted[4] and given is not None:
            assert self.settled.slope is not None
            slope = self.settled.slope.sum()
            for part in self.slopes:
                slope = slope + part
            temperature = (-slope * self.job.scale**2).to(given.dtype)
        return Gradients(self.query, self.key, self.negatives, self.own_grad, temperature)


def _factor(job: Job, weight: Weight) -> tuple[Tensor | float, Tensor | float]:
    """What scales the coefficients, a power of two, and its inverse.

    Coefficients carry both inverse norms; a row's weight bounds the rest.
    """
    target = NORM_TARGET.get(job.query.data.dtype, 0) if job.problem.normalize else 0
    if job.query.data.dtype != torch.float16:
        return 1.0, 1.0
    if isinstance(weight, Tensor):
        largest = weight.detach().abs().amax().to(torch.float32)
        largest = largest.clamp(min=2.0**-100)
        factor = torch.exp2(HALF_ROOM + 2 * target - torch.ceil(torch.log2(largest)))
        return factor, factor.reciprocal()
    exponent = HALF_ROOM + 2 * target - (math.ceil(math.log2(abs(weight))) if weight else 0)
    return 2.0**exponent, 2.0**-exponent


def _buffer(job: Job, height: int, width: int) -> Tensor:
    """Rows aligned to 32 bytes at least, for the library and for wide stores."""
    data = job.query.data
    return torch.empty((height, _aligned(width)), dtype=data.dtype, device=data.device)


def _view(buffer: Tensor, height: int, width: int) -> Tensor:
    """The front of a flat buffer as such rows."""
    return buffer[: height * _aligned(width)].view(height, _aligned(width))


def _aligned(width: int) -> int:
    return -(-width // 16) * 16


def _elements(job: Job) -> int:
    return max(1, job.problem.workspace_bytes // job.query.data.element_size())


def _height(job: Job) -> int:
    """Rows of a chunk of coefficients. Nearly square chunks move the accumulators least."""
    unit = config.chunk_unit(passes.interpreted())
    side = max(unit, math.isqrt(_elements(job)) // unit * unit)
    widest = max([block.rows.count for block in job.blocks], default=1)
    if widest < side:
        side = max(unit, _elements(job) // widest // unit * unit)
    return _even(job.query.count, side, unit)


def _width(job: Job, block: Block) -> int:
    """Columns of a chunk."""
    unit = config.chunk_unit(passes.interpreted())
    most = max(unit, _elements(job) // _height(job) // unit * unit)
    return _even(block.rows.count, most, unit)


def _even(count: int, most: int, unit: int) -> int:
    """The length of equal pieces of at most that, in whole units."""
    pieces = -(-count // most)
    return min(count, -(-count // pieces // unit) * unit)


def _kept_height(job: Job) -> int:
    """Rows whose exponentials fit the workspace."""
    unit = config.chunk_unit(passes.interpreted())
    width = sum(-(-block.rows.count // 16) * 16 for block in job.blocks)
    return _even(job.query.count, max(unit, _elements(job) // width // unit * unit), unit)
