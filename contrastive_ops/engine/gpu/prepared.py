"""A problem on the GPU: operands prepared once, blocks of candidates, the positives."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ...kernels import config, rows
from ..problem import SLACK_ULPS, Operands, SimilarityProblem, scale_of

NORM_TARGET = {torch.float16: 10}
"""Prepared rows have norms near 2**this. float16 has few small numbers, so there it is not 0."""


SMALL_PAIRS = 1 << 20


def cdiv(count: int, size: int) -> int:
    """How many of that size; Triton's own takes microseconds, which a small batch feels."""
    return -(-count // size)


def power_of_two(least: int) -> int:
    """The first that is at least that."""
    return 1 << (least - 1).bit_length()


@functools.cache
def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return not isinstance(rows.prepare, triton.runtime.JITFunction)


@functools.cache
def architecture(device: torch.device) -> config.Architecture:
    """That of a device; one that no table knows counts as what its vendor had first."""
    if interpreted():
        return config.ARCHITECTURES["sm_80"]
    if torch.version.hip:
        return config.ARCHITECTURES["gfx942"]
    properties = torch.cuda.get_device_properties(device)
    name = f"sm_{properties.major}0"
    known = config.ARCHITECTURES.get(name)
    # Of Ampere only A100 has that much shared memory; all of Hopper and of Blackwell's servers do.
    if known is not None and (properties.minor == 0 or properties.major == 10):
        return known
    least = properties.shared_memory_per_block
    shared = getattr(properties, "shared_memory_per_block_optin", least)
    return config.Architecture(
        f"sm_{properties.major}{properties.minor}",
        shared,
        properties.shared_memory_per_multiprocessor,
        bulk=properties.major >= 9,
        multiprocessors=properties.multi_processor_count,
    )


@dataclass(frozen=True)
class Rows:
    """A prepared operand, see `kernels.rows`."""

    given: Tensor  # (n, D)
    data: Tensor  # (n, padded)
    inverse: Tensor  # (n,) float32
    rescale: Tensor  # (n,) float32

    @property
    def count(self) -> int:
        return self.data.shape[0]

    @property
    def padded(self) -> int:
        return self.data.shape[1]

    @property
    def width(self) -> int:
        return self.given.shape[1]


@dataclass(frozen=True)
class Block:
    """Candidates that all queries share: the keys or the shared negatives."""

    rows: Rows
    in_batch: bool
    ids: Tensor | None
    guide: Tensor | None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Job:
    """Everything that the passes read."""

    problem: SimilarityProblem
    operands: Operands
    query: Rows
    key: Rows
    blocks: tuple[Block, ...]
    scale: Tensor | float
    positives: int  # a row
    index: Tensor | None  # (N, P)
    similarity: Tensor  # (N, P)
    reference: Tensor  # (N,)
    limit: Tensor | None  # (N,)
    guide: Tensor | None  # (N, padded)
    best: Tensor | None = None  # (N,)
    """The best positives' similarities, where there is a summary to fill."""
    summary: Tensor | None = None  # (6, N)
    """See `kernels.combine.close` and `passes.finish_summary`."""

    keeps: bool = False
    """Whether exponentials are kept and multiplied, which leaves a static offset less room."""

    @property
    def two_way(self) -> bool:
        return self.problem.symmetric

    @property
    def one_set(self) -> bool:
        return self.problem.one_set

    @property
    def levered(self) -> bool:
        """Whether sums for the temperature's gradient are taken."""
        return self.operands.temperature is not None

    @functools.cached_property
    def log2_count(self) -> float:
        """log2 of the longest sum."""
        return math.log2(max(self.query.count, *(block.rows.count for block in self.blocks), 1))

    @property
    def offset(self) -> float:
        """The static offset, centred: 2**(logit - offset) and its sums have the same room."""
        return math.ceil(self.log2_count / 2)

    @property
    def range(self) -> float:
        return config.KEPT_RANGE if self.keeps else config.RANGE

    @functools.cached_property
    def bounded(self) -> bool | None:
        """Whether the static offset serves; None where only the device knows the temperature."""
        biased = any(block.bias is not None for block in self.blocks)
        # A row's sum may lie beyond all cosines.
        biased |= self.operands.own_bias is not None or self.problem.group_log_weight != 0
        if not self.problem.normalize or biased:
            return False
        if self.keeps and self.query.data.dtype == torch.float16:  # has too few exponents
            return False
        if isinstance(self.scale, Tensor):
            # Small ones take the way that always works, with half as many launches.
            pairs = self.query.count * sum(block.rows.count for block in self.blocks)
            return False if pairs <= SMALL_PAIRS else None
        return 2 * math.log2(math.e) * self.scale + self.log2_count <= self.range

    @property
    def scaling(self) -> dict[str, Any]:
        return {"scale": self.scale, "SCALE_IS_TENSOR": isinstance(self.scale, Tensor)}


def prepare(problem: SimilarityProblem, operands: Operands, summary: Tensor | None = None) -> Job:
    """Norms and aligned copies of all operands, similarities of the positives."""
    query = _rows(operands.query, problem)
    key = query if problem.one_set else _rows(operands.key, problem)
    blocks = []
    size = query.data.element_size()
    guide = _guide(operands.guide_query, size)
    if problem.in_batch:
        theirs = _guide(operands.guide_key, size)
        ids = operands.query_ids if problem.one_set else operands.key_ids
        blocks.append(Block(key, True, _contiguous(ids), theirs))
    if operands.negatives is not None:
        theirs = _guide(operands.guide_negatives, size)
        blocks.append(
            Block(
                _rows(operands.negatives, problem),
                False,
                _contiguous(operands.negative_ids),
                theirs,
                _contiguous(operands.negative_bias),
            )
        )
    n = query.count
    index = _contiguous(operands.positives)
    positives = 1 if index is None else index.shape[1]
    # With a pad of one column, so that no positives at all are still a pointer.
    similarity = operands.query.new_empty((n, max(positives, 1)), dtype=torch.float32)
    reference = similarity.new_empty(n)
    limit = similarity.new_empty(n) if problem.false_negative_margin < math.inf else None
    best = None if summary is None else similarity.new_empty(n)
    grid, shape = row_programs(n, query.padded)
    rows.positive_similarity[grid](
        query.data,
        key.data,
        query.inverse,
        key.inverse,
        index if positives else None,
        similarity,
        reference,
        best,
        limit,
        problem.margin,
        problem.false_negative_margin if limit is not None else 0.0,
        SLACK_ULPS,
        n,
        positives,
        query.padded,
        NORMALIZE=problem.normalize,
        **shape,
    )
    return Job(
        problem,
        operands,
        query,
        key,
        tuple(blocks),
        scale_of(problem, operands),
        positives,
        index if positives else None,
        similarity,
        reference,
        limit,
        guide,
        best,
        summary,
    )


def row_programs(count: int, padded: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid, block shape and warps of a row-wise kernel: 8 KiB of float32 a program, at least one
    row."""
    block = power_of_two(padded)
    height = 16 if interpreted() else max(1, min(16, 2048 // block))
    shape = {"ROWS": height, "BLOCK": block, "num_warps": row_warps(block)}
    return (cdiv(count, height),), shape


def row_warps(block: int) -> int:
    """So many that rows of up to 8,192 entries, and most kernels' of 16,384, stay in registers."""
    return max(4, min(16, block // 1024))


def _rows(x: Tensor, problem: SimilarityProblem) -> Rows:
    x = x.detach()
    block = config.depth_block(x.element_size(), interpreted())
    padded = cdiv(x.shape[1], block) * block
    data = x.new_empty((x.shape[0], padded))
    # Apart, so that both are aligned whatever their length: kernels are compiled for alignments.
    inverse, rescale = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    grid, shape = row_programs(x.shape[0], padded)
    rows.prepare[grid](
        x,
        x.stride(0),
        x.stride(1),
        data,
        inverse,
        rescale,
        x.shape[0],
        x.shape[1],
        padded,
        NORMALIZE=problem.normalize,
        TARGET=NORM_TARGET.get(x.dtype, 0),
        **shape,
    )
    return Rows(x, data, inverse, rescale)


def _guide(x: Tensor | None, size: int) -> Tensor | None:
    """Padded to whole depth blocks, of its own and of rows of `size` bytes an entry: its product
    shares their tile."""
    if x is None:
        return None
    block = max(config.depth_block(width, interpreted()) for width in (x.element_size(), size))
    return torch.nn.functional.pad(x.detach(), (0, -x.shape[1] % block)).contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
