"""From statistics, or from kept exponentials, to the gradients of the operands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import config, rows
from ..problem import Gradients, Wanted, Weight
from . import passes, products
from .passes import Kept, Settled
from .prepared import NORM_TARGET, Block, Job, Rows, power_of_two, row_programs, row_warps

STRIPES = 16
"""Of one set against itself, exponentials are kept in about this many stripes, each of which wastes
what lies below its part of the diagonal."""
KEPT_LEAST = 4
"""Fewer rows than one in this many are not kept: chunks of the others would be smaller for it."""
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
    kept: Sequence[Kept] = (),
) -> tuple[Tensor | None, Gradients]:
    """Weighted losses and gradients: 2G beyond the statistics for rows whose exponentials were
    kept, 3G for the others, whose logits are recomputed; of one set against itself half as much."""
    settled = passes.settle(job, row_state, column_state, weight, gradients=True)
    factor, undo = scaling_of(job, weight, passes.carried(job))
    out = Outputs(job, settled, wanted, wide)
    own = out.own()
    done = 0
    for part in kept:
        block, rows_here = job.blocks[0], (part.begin, part.end)
        columns = part.left, block.rows.count
        passes.rescale(job, block, settled, part, None, 0)
        if job.bounded is None:
            passes.write_coefficients(
                job, block, settled, rows_here, columns, part.values, factor, only_unbounded=True
            )
        product = out.query_rows(*rows_here)
        out.take(block, part.values, rows_here, columns, product, True)
        out.finish_query(product, rows_here, own, None, undo)
        done = part.end
    chunks = Chunks(job, done, bool(kept))
    for rows_here in chunks.rows():
        product = out.query_rows(*rows_here)
        fresh = True
        for block, columns, z in chunks.of(rows_here):
            if wanted[0] or out.wants(block):
                passes.write_coefficients(job, block, settled, rows_here, columns, z, factor)
                out.take(block, z, rows_here, columns, product, fresh)
                fresh = False
        out.finish_query(None if fresh else product, rows_here, own, None, undo)
    out.finish_one_set(undo)
    out.finish_candidates(undo)
    return settled.weighted, out.gradients()


def keeping(job: Job) -> tuple[Job, list[Kept]]:
    """For two directions or one set: the rows whose exponentials the workspace holds.

    None where the directions leave out different pairs (a margin), where no static offset serves
    or in float16, which has too few exponents for one; or where it would be less than a quarter.
    """
    keeps = replace(job, keeps=True)
    if len(job.blocks) != 1 or job.limit is not None or keeps.bounded is False:
        return job, []
    unit = config.chunk_unit(passes.interpreted())
    n, m, elements = job.query.count, job.blocks[0].rows.count, _elements(job)
    step = _even(n, max(unit, n // STRIPES), unit) if job.one_set else n
    edges = [(begin, min(begin + step, n)) for begin in range(0, n, step)]
    areas = [(end - begin) * _aligned(m - begin * job.one_set) for begin, end in edges]
    # The rest is for partial sums, and for a chunk of what has to be recomputed.
    room = elements * 7 // 8 if sum(areas) <= elements * 7 // 8 else elements * 5 // 8
    kept: list[Kept] = []
    for begin, end in edges:
        left = begin if job.one_set else 0
        end = (
            min(end, begin + room // _aligned(m - left) // unit * unit)
            if end < n or ((end - begin) * _aligned(m - left) > room)
            else end
        )
        if end <= begin:
            break
        room -= (end - begin) * _aligned(m - left)
        kept.append(Kept(begin, end, left, _buffer(job, end - begin, m - left)))
    if not kept or kept[-1].end * KEPT_LEAST < n:
        return job, []
    return keeps, kept


def one_way(job: Job, weight: Weight, wanted: Wanted) -> tuple[Tensor | None, Gradients]:
    """Weighted losses and gradients at 3G: a stripe of rows closes its own sums, so that what
    scales its rows can wait until after dX's product, and be put on x before dY's."""
    job = replace(job, keeps=True)
    n = job.query.count
    half = job.query.data.dtype == torch.float16
    carried = NORM_TARGET[torch.float16] if half and job.problem.normalize else 0
    kept_factor = 2.0 ** (HALF_ROOM + carried) if half else 1.0
    # Times its amount a unit row has room to spare, one as given none: amounts are below 2 weights.
    factor, undo = scaling_of(job, weight, 0 if job.problem.normalize else -HALF_ROOM - 1)
    undo_y = undo / kept_factor
    state = passes.empty_state(job, n)
    settled = passes.unsettled(job, True, True)
    out = Outputs(job, settled, wanted, half)
    height = _kept_height(job)
    wants_any_y = any(out.wants(block) for block in job.blocks)
    buffers = [_buffer(job, height, block.rows.count) for block in job.blocks]
    for begin in range(0, n, height):
        end = min(begin + height, n)
        kept: list[Kept] = []
        tops = []
        for block, buffer in zip(job.blocks, buffers, strict=True):
            part = Kept(begin, end, 0, buffer[: end - begin])
            tops.append(
                passes.measure(
                    job, block, begin, end, state, None, add=bool(kept), kept=part,
                    kept_factor=kept_factor,
                )
            )  # fmt: skip
            kept.append(part)
        if job.operands.own_negatives is not None:
            passes.measure_own(job, state, add=bool(kept), begin=begin, end=end)
        elif not kept:
            passes.clear(job, state)
        passes.settle(job, state, None, weight, gradients=True, begin=begin, end=end, into=settled)
        assert settled.row is not None
        amount = settled.row[1]
        for block, part, top in zip(job.blocks, kept, tops, strict=True):
            passes.rescale(job, block, settled, part, *top, kept_factor)
        own = out.own(begin, end)
        if wanted[0]:
            product = out.product(end - begin) if kept else None
            for b, (block, part) in enumerate(zip(job.blocks, kept, strict=True)):
                e = part.values[:, : block.rows.count]
                y = block.rows.data[:, : out.width]
                assert product is not None
                products.multiply(e, y, product, b > 0, job.problem.precision)
            out.finish_query(product, (begin, end), own, amount, 1.0 / kept_factor)
        if wants_any_y:
            x = torch.empty_like(job.query.data[begin:end])
            grid, shape = row_programs(end - begin, job.query.padded)
            rows.weighted_rows[grid](
                job.query.data,
                x,
                job.query.inverse,
                amount,
                factor,
                job.query.padded,
                begin,
                end - begin,
                SCALING_IS_TENSOR=isinstance(factor, Tensor),
                **shape,
            )
            for block, part in zip(job.blocks, kept, strict=True):
                if out.wants(block):
                    e = part.values[:, : block.rows.count]
                    y_product = out.y_product(block)
                    products.multiply(
                        e.T, x[:, : out.width], y_product, begin > 0, job.problem.precision
                    )
    passes.finish_summary(job, state)
    out.finish_candidates(undo_y)
    return settled.weighted, out.gradients()


class Outputs:
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
        self.both: Tensor | None = None
        """One set: the gradient of all rows, as rows and as columns."""
        if job.one_set and wanted[0]:
            self.both = self.product(job.query.count).zero_()

    def wants(self, block: Block) -> bool:
        return self.wanted[1] if block.in_batch else self.wanted[2]

    def product(self, count: int) -> Tensor:
        return torch.empty((count, self.width), dtype=torch.float32, device=self.device)

    def y_product(self, block: Block) -> Tensor:
        place = int(not block.in_batch)
        if place not in self.products:
            self.products[place] = self.product(block.rows.count)
        return self.products[place]

    def query_rows(self, begin: int, end: int) -> Tensor | None:
        """Where the rows' products are added up."""
        if not self.wanted[0]:
            return None
        return self.product(end - begin) if self.both is None else self.both[begin:end]

    def take(
        self,
        block: Block,
        z: Tensor,
        rows_here: tuple[int, int],
        columns: tuple[int, int],
        product: Tensor | None,
        fresh: bool,
    ) -> None:
        """The two products of some coefficients; `fresh`: the first that come to `product`."""
        job = self.job
        z = z[:, : columns[1] - columns[0]]
        if product is not None:
            y = block.rows.data[slice(*columns), : self.width]
            add = not fresh or self.both is not None
            products.multiply(z, y, product, add, job.problem.precision)
        if self.both is not None or self.wants(block):
            x = job.query.data[slice(*rows_here), : self.width]
            target = self.y_product(block) if self.both is None else self.both
            add = rows_here[0] > 0 or self.both is not None
            products.multiply(z.T, x, target[slice(*columns)], add, job.problem.precision)

    def own(self, begin: int = 0, end: int | None = None) -> Tensor | None:
        """Own negatives' gradient; returns what they add to the queries'."""
        job, own = self.job, self.job.operands.own_negatives
        if own is None or not (self.wanted[0] or self.wanted[3]):
            return None
        n, h, width = own.shape
        end = n if end is None else end
        if self.wanted[3] and self.own_grad is None:
            self.own_grad = torch.empty((n, h, width), dtype=self.dtype, device=self.device)
        added = None
        if self.wanted[0]:
            added = torch.empty((end - begin, width), dtype=torch.float32, device=self.device)
        assert self.settled.row is not None
        offset, amount, even = self.settled.row
        bias = job.operands.own_bias
        block = power_of_two(job.query.padded)
        rows.own_gradient[(end - begin,)](
            job.query.data,
            job.query.inverse,
            own.detach(),
            *own.stride(),
            None if bias is None else bias.contiguous(),
            offset=offset,
            amount=amount,
            even=even,
            x_grad=added,
            own_grad=self.own_grad,
            first_row=begin,
            count=h,
            width=width,
            padded=job.query.padded,
            NORMALIZE=job.problem.normalize,
            BLOCK=block,
            num_warps=row_warps(2 * block),
            **job.scaling,
        )
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
        if self.query is None or self.both is not None:
            return
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

    def finish_one_set(self, undo: Tensor | float) -> None:
        """Each positive pair's coefficient is the sum of both of its rows'."""
        if self.both is None or self.query is None:
            return
        job, grad = self.job, self.settled.positive_grad
        assert grad is not None
        if job.index is not None:
            n = job.query.count
            first = torch.arange(n, device=self.device).unsqueeze(1)
            given = job.index >= 0
            forth = torch.where(given, first * n + job.index, -1).view(-1)
            back = torch.where(given, job.index * n + first, -1).view(-1)
            # Positives are mutual: sorted, both lists of pairs are the same.
            places = torch.sort(forth, stable=True).indices
            turned = torch.sort(back, stable=True).indices
            sums = grad.view(-1)
            grad = torch.empty_like(sums)
            grad[turned] = sums[places]
            grad = torch.where(given, sums.view_as(given) + grad.view_as(given), 0.0)
        self.settled = replace(self.settled, positive_grad=grad)
        self._finish(
            job.query,
            self.both,
            self.query,
            0,
            undo=undo,
            partners=job.index,
            bound=job.positives if job.index is not None else -1,
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
        if self.wanted[4] and given is not None and self.settled.slope is not None:
            slope = self.settled.slope.sum()
            temperature = (-slope * self.job.scale**2).to(given.dtype)
        return Gradients(self.query, self.key, self.negatives, self.own_grad, temperature)


def scaling_of(job: Job, weight: Weight, carried: int) -> tuple[Tensor | float, Tensor | float]:
    """What scales 16-bit intermediates of float16 rows, a power of two, and its inverse.

    A row's weight bounds them, over the norms of 2**carried that they have besides.
    """
    if job.query.data.dtype != torch.float16:
        return 1.0, 1.0
    if isinstance(weight, Tensor):
        largest = weight.detach().abs().amax().to(torch.float32)
        largest = largest.clamp(min=2.0**-100)
        factor = torch.exp2(HALF_ROOM + carried - torch.ceil(torch.log2(largest)))
        return factor, factor.reciprocal()
    exponent = HALF_ROOM + carried - (math.ceil(math.log2(abs(weight))) if weight else 0)
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


class Chunks:
    """Coefficients some rows and columns at a time, in one buffer that the workspace holds."""

    def __init__(self, job: Job, done: int = 0, kept: bool = False) -> None:
        """Of rows from `done` on; ``kept``: most of the workspace is taken already."""
        self.job = job
        self.done = done
        count = job.query.count - done
        unit = config.chunk_unit(passes.interpreted())
        elements = _elements(job) // (4 if kept else 1)
        widest = max([block.rows.count for block in job.blocks], default=1)
        # Nearly square ones move the accumulators least; of one set against itself what lies below
        # the diagonal is wasted, and flat ones waste least.
        side = max(unit, math.isqrt(elements) // unit * unit)
        if widest < side or job.one_set:
            side = max(unit, elements // widest // unit * unit)
        self.height = _even(count, side, unit) if count else 1
        most = max(unit, elements // self.height // unit * unit)
        self.widths = [_even(block.rows.count, most, unit) for block in job.blocks]
        width = max(self.widths, default=1) if count else 0
        self.buffer = _buffer(job, self.height, width).view(-1)

    def rows(self) -> Iterator[tuple[int, int]]:
        n = self.job.query.count
        for begin in range(self.done, n, self.height):
            yield begin, min(begin + self.height, n)

    def of(self, rows_here: tuple[int, int]) -> Iterator[tuple[Block, tuple[int, int], Tensor]]:
        """(block, columns, coefficients) of some rows, one after another in the same memory."""
        begin, end = rows_here
        for block, step in zip(self.job.blocks, self.widths, strict=True):
            count = block.rows.count
            for first in range(begin if self.job.one_set else 0, count, step):
                columns = first, min(first + step, count)
                yield block, columns, _view(self.buffer, end - begin, columns[1] - first)


def _even(count: int, most: int, unit: int) -> int:
    """The length of equal pieces of at most that, in whole units."""
    pieces = -(-count // most)
    return min(count, -(-count // pieces // unit) * unit)


def _kept_height(job: Job) -> int:
    """Rows whose exponentials fit the workspace."""
    unit = config.chunk_unit(passes.interpreted())
    width = max(1, sum(_aligned(block.rows.count) for block in job.blocks))
    return _even(job.query.count, max(unit, _elements(job) // width // unit * unit), unit)
