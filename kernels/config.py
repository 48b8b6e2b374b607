"""Tile sizes by architecture: one frozen table, its constraints stated once, and why each choice.

What a tile costs. An accumulator of block_m x block_n float32 numbers over 32 * warps threads; a
pipeline of `stages` slices (block_m + block_n) x block_k in shared memory. A thread has at most
255 registers, and the epilogue (exponential, masks, sums of rows and columns) needs about 40
besides the accumulator, twice as many where it holds two exponentials.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

TUNED_VARIABLE = "CONTRASTIVE_OPS_TUNED"
"""Names a file of tiles that tuning found for this machine; without it the table holds."""

ROLES = ("plain", "levered", "maxima", "screened", "surveyed", "guided", "crowded")
"""What the epilogue does, which decides how large a tile fits:

plain: one exponential an element, no maxima (also: one offset a row that is known before).
levered: besides, each exponential times its similarity, for the temperature's gradient.
maxima: the largest logit of each row, or of each row and column, comes first; or each direction
    has its own exponential.
screened: ids, margins, smoothing or a summary, or a sum over pairs; or maxima and levered together.
surveyed: a summary and levered together; as screened, but where that spills.
guided: a second product, of a guide's embeddings, in the same tile.
crowded: levered, and two of margins, smoothing and a summary; or a summary of one set.
"""

RANGE = 252.0
"""Bits between the smallest term 2**-126 and the largest sum 2**126 of the static offset."""

KEPT_RANGE = 200.0
"""The same where exponentials are kept and multiplied: 26 bits at the lower end remain for the
entries of the rows, so that no product of a kept exponential is denormal."""


@dataclass(frozen=True)
class Tile:
    """A kernel's tile and how it is run."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    bulk: bool = False
    """Bulk copies by tensor descriptor (Hopper and later); else asynchronous copies by thread."""
    group: int = 8
    """Tiles down before one across."""

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of the pipeline."""
        return self.stages * (self.block_m + self.block_n) * self.block_k * itemsize

    def accumulators(self, lanes: int = 32) -> int:
        """Accumulator registers a thread."""
        return self.block_m * self.block_n // (lanes * self.warps)


@dataclass(frozen=True)
class Architecture:
    """What the constraints and the time model need to know. Rates: one chip, dense."""

    name: str
    shared_bytes: int  # of one block
    shared_total: int  # of one multiprocessor
    lanes: int = 32
    accumulators: int = 64  # of a thread, which the plainest epilogue leaves without spilling
    bulk: bool = False
    multiprocessors: int = 108
    clock: float = 1.41e9  # 1/s
    tensor_flops: float = 312e12  # bfloat16, with float32 sums
    tf32_flops: float = 156e12
    vector_flops: float = 19.5e12  # float32 without tensor cores
    exponentials: int = 16  # a clock and multiprocessor
    memory_bytes: float = 2.0e12  # 1/s


ARCHITECTURES = {
    # Public data sheets: A100 SXM, H200 SXM, B200 SXM, MI300X.
    "sm_80": Architecture("sm_80", 163 << 10, 164 << 10),
    "sm_90": Architecture(
        "sm_90",
        227 << 10,
        228 << 10,
        bulk=True,
        multiprocessors=132,
        clock=1.76e9,
        tensor_flops=989e12,
        tf32_flops=494e12,
        vector_flops=67e12,
        memory_bytes=4.8e12,
    ),
    "sm_100": Architecture(
        "sm_100",
        227 << 10,
        228 << 10,
        accumulators=32,
        bulk=True,
        multiprocessors=148,
        clock=1.85e9,
        tensor_flops=2250e12,
        tf32_flops=1120e12,
        vector_flops=75e12,
        memory_bytes=8.0e12,
    ),
    "gfx942": Architecture(
        "gfx942",
        64 << 10,
        64 << 10,
        lanes=64,
        accumulators=32,
        multiprocessors=304,
        clock=2.1e9,
        tensor_flops=1307e12,
        tf32_flops=654e12,
        vector_flops=163e12,
        memory_bytes=5.3e12,
    ),
}

INTERPRETER = Tile(32, 16, 16, 4, 1, group=2)
"""Small and not square, so that small tests cross every edge."""

VALUES = {2: Tile(64, 64, 64, 4, 3), 4: Tile(32, 64, 32, 8, 2)}
"""Of the selection's listed groups, by bytes an entry: rows are gathered, block_n is a group."""
VALUES_INTERPRETED = Tile(16, 8, 16, 4, 1)

PRECISIONS = ("ieee", "tf32x3", "tf32")


def depth_block(itemsize: int, interpreted: bool) -> int:
    """What widths are padded to, and every block_k divides: 128 bytes, a whole swizzled row."""
    return INTERPRETER.block_k if interpreted else 128 // itemsize


def chunk_unit(interpreted: bool) -> int:
    """Chunks of coefficients have whole multiples of this many rows and columns."""
    return 4 if interpreted else 128


_TABLE: dict[tuple[str, str, str], Tile] = {
    # Ampere. Half the depth: a step of 64 holds twice the operands in registers and spills.
    ("sm_80", "16", "plain"): Tile(128, 128, 32, 8, 4),
    ("sm_80", "16", "levered"): Tile(128, 128, 32, 8, 4),
    ("sm_80", "16", "maxima"): Tile(128, 128, 32, 8, 4),
    ("sm_80", "16", "screened"): Tile(128, 64, 64, 8, 3),
    ("sm_80", "16", "guided"): Tile(64, 32, 64, 4, 2),
    # At 128 x 64 ptxas spills two registers of `coefficients` for a second block.
    ("sm_80", "ieee", "screened"): Tile(64, 64, 16, 8, 4),
    # CDNA 3: 64 KiB of shared memory, and 256 x 128 spills.
    ("gfx942", "16", "plain"): Tile(128, 128, 64, 8, 2),
    ("gfx942", "16", "levered"): Tile(128, 128, 64, 8, 2),
    ("gfx942", "16", "maxima"): Tile(128, 128, 64, 8, 2),
    ("gfx942", "16", "screened"): Tile(128, 128, 64, 8, 2),
    # The guide's product has a pipeline of its own: two stages fit.
    ("gfx942", "16", "guided"): Tile(128, 64, 64, 8, 2),
    ("gfx942", "ieee", "guided"): Tile(128, 64, 32, 8, 2),
    ("gfx942", "tf32x3", "guided"): Tile(128, 64, 32, 8, 2),
    ("gfx942", "tf32", "guided"): Tile(128, 64, 32, 8, 2),
    # Hopper and later, 16-bit. 32 K elements a tile move a quarter less through L2 than 16 K,
    # which otherwise starves the tensor cores at small widths. Tall, not wide: a thread holds few
    # of a tile's rows and all of a warp's columns, whose norms and offsets are registers, too
    # (128 x 256 spills 1.6 KB in `coefficients`, 256 x 128 nothing).
    ("sm_90", "16", "plain"): Tile(256, 128, 64, 8, 3, bulk=True),
    ("sm_90", "16", "levered"): Tile(128, 128, 64, 8, 4, bulk=True),
    # Maxima of rows and columns keep the logits alive while two exponentials are taken.
    ("sm_90", "16", "maxima"): Tile(128, 128, 64, 8, 4, bulk=True),
    ("sm_90", "16", "screened"): Tile(128, 64, 64, 8, 4, bulk=True),
    ("sm_90", "16", "guided"): Tile(64, 64, 64, 4, 3, bulk=True),
    # 128 x 128 spills 40 bytes with Triton 3.6, nothing with 3.7.
    ("sm_90", "tf32", "levered"): Tile(128, 64, 32, 8, 4),
    # Blackwell: nothing larger compiles without spills; not yet seen on a device.
    ("sm_100", "16", "plain"): Tile(128, 64, 64, 8, 4, bulk=True),
    ("sm_100", "16", "levered"): Tile(128, 64, 64, 8, 4, bulk=True),
    ("sm_100", "16", "maxima"): Tile(128, 64, 64, 8, 4, bulk=True),
    ("sm_100", "16", "screened"): Tile(128, 64, 64, 8, 4, bulk=True),
    ("sm_100", "16", "guided"): Tile(64, 64, 64, 8, 3, bulk=True),
    ("sm_100", "16", "crowded"): Tile(64, 32, 64, 8, 3, bulk=True),
    ("sm_100", "ieee", "guided"): Tile(64, 64, 16, 8, 4),
    ("sm_100", "tf32", "plain"): Tile(64, 128, 32, 8, 4),
    ("sm_100", "tf32x3", "surveyed"): Tile(64, 32, 32, 8, 4),
    ("sm_100", "tf32", "surveyed"): Tile(64, 32, 32, 8, 4),
}


def tile_for(
    architecture: Architecture, role: str, itemsize: int, precision: str, interpreted: bool = False
) -> Tile:
    """The table's tile, or for what it lacks the largest that keeps the constraints."""
    if interpreted:
        return INTERPRETER
    key = (architecture.name, "16" if itemsize == 2 else precision, role)
    found = tuned(os.environ.get(TUNED_VARIABLE)).get(key) or _TABLE.get(key)
    if found is None and role == "crowded":
        # Rare, and six tiles of registers: anything larger spills on one of the architectures.
        if itemsize == 4:
            return Tile(64, 32, 16, 8, 3)
        return Tile(64, 32, 64, 4, 3, bulk=architecture.bulk)
    if found is None and role == "surveyed":
        return tile_for(architecture, "screened", itemsize, precision)
    return found or analytic(architecture, role, itemsize, precision)


@functools.cache
def tuned(path: str | None) -> dict[tuple[str, ...], Tile]:
    """The tiles in a file that `write_tuned` wrote, by architecture, kind and role."""
    if not path:
        return {}
    entries = json.loads(Path(path).read_text())
    return {tuple(key.split("/")): Tile(**sides) for key, sides in entries.items()}


def write_tuned(path: Path, tiles: dict[tuple[str, ...], Tile]) -> None:
    """Atomically."""
    partial = path.with_suffix(".partial")
    entries = {"/".join(key): tile.__dict__ for key, tile in tiles.items()}
    partial.write_text(json.dumps(entries, indent=1) + "\n")
    os.replace(partial, path)


def candidates(architecture: Architecture, itemsize: int) -> list[Tile]:
    """Tiles that fit shared memory, for whoever chooses among them."""
    depth = 128 // itemsize
    shapes = (
        (256, 128),
        (128, 256),
        (128, 128),
        (128, 64),
        (64, 128),
        (64, 64),
        (32, 64),
        (32, 32),
    )
    tiles = [
        Tile(m, n, k, warps, stages, bulk=architecture.bulk and itemsize == 2)
        for m, n in shapes
        for k in (depth, depth // 2)
        for warps in (8, 4)
        for stages in (4, 3, 2)
    ]
    return [tile for tile in tiles if tile.shared_bytes(itemsize) <= architecture.shared_bytes]


@functools.cache
def analytic(architecture: Architecture, role: str, itemsize: int, precision: str) -> Tile:
    """The tile with the least traffic that fits registers and shared memory.

    Without tensor cores (ieee) a tile's product lives in registers with its operands, a whole
    slice of them: smaller, and half as deep.
    """
    most = architecture.accumulators // {"screened": 2, "guided": 4}.get(role, 1)
    if itemsize == 4 and precision != "tf32":
        most = min(most, 32)
    fitting = [
        tile
        for tile in candidates(architecture, 4 if role == "guided" else itemsize)  # the guide's
        if tile.accumulators(architecture.lanes) <= most
        and (tile.block_k <= 16 or itemsize == 2 or precision != "ieee")
    ]
    return min(
        fitting,
        key=lambda tile: (1 / tile.block_m + 1 / tile.block_n, -tile.block_k, -tile.stages),
    )
