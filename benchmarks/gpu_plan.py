"""What a step launches on a GPU, recorded without one, and how long a simple model says it takes.

The host side runs on tensors without data ("meta"); kernels are noted instead of launched. So the
plan is what would run: every kernel with its configuration and grid, every library product.

The model, per launch, over the architecture's data-sheet rates:

* tile kernels: a tile's product at the tensor cores' rate, or the L2 traffic it needs at 64 bytes
  a clock and multiprocessor, whichever is longer; its epilogue at 16 exponentials and 128 other
  operations a clock. With two or more resident tiles product and epilogue overlap, with one they
  add up. Whole waves of tiles. Never less than the bytes written at the memory's rate.
* library products: 75 % of the tensor cores' rate, or their bytes at the memory's rate.
* row-wise kernels: their bytes at 80 % of the memory's rate (in place: twice).
* 3 microseconds a launch at least.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from contrastive_ops.engine.gpu import prepared, products
from contrastive_ops.kernels import config

LIBRARY_EFFICIENCY = 0.75
STREAM_EFFICIENCY = 0.8
LAUNCH_SECONDS = 3e-6
L2_BYTES_A_CLOCK = 64
SURVEYED = 9
"""Operations an element that a summary costs."""
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its arguments by name, and its options."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    options: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def signature(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], Any]]:
        """Types, constants and alignments, as the launcher would specialise them."""
        types: dict[str, str] = {}
        constants: dict[str, Any] = {}
        aligned: dict[tuple[int, ...], Any] = {}
        for place, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            fixed = parameter.is_constexpr or value is None
            if isinstance(value, int) and not isinstance(value, bool) and value == 1 and not fixed:
                fixed = not parameter.do_not_specialize
            if fixed:
                types[parameter.name] = "constexpr"
                constants[parameter.name] = value
                continue
            types[parameter.name] = _type(value)
            whole = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
            if isinstance(value, Tensor) or whole:
                aligned[(place,)] = [["tt.divisibility", 16]]
        return types, constants, aligned

    def key(self) -> str:
        types, constants, aligned = self.signature()
        return repr((self.name, types, constants, sorted(aligned), sorted(self.options.items())))


@dataclass(frozen=True)
class Product:
    """One library product, (m, k) times (k, n)."""

    m: int
    n: int
    k: int
    itemsize: int


@dataclass(frozen=True)
class Plan:
    steps: list[Launch | Product]
    architecture: config.Architecture
    precision: str

    @property
    def launches(self) -> list[Launch]:
        return [step for step in self.steps if isinstance(step, Launch)]


_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
}


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    shape = ", ".join(str(side) for side in value.block_shape)
    return f"tensordesc<{_TYPES[value.base.dtype]}[{shape}]>"


def record(step: Callable[[], object], architecture: str, precision: str = "ieee") -> Plan:
    """What a step launches; its operands are on the device "meta"."""
    chip = config.ARCHITECTURES[architecture]
    steps: list[Launch | Product] = []
    with _recording(steps, chip):
        step()
    return Plan(steps, chip, precision)


@contextlib.contextmanager
def _recording(steps: list[Launch | Product], chip: config.Architecture) -> Iterator[None]:
    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        given = dict(zip(names, args, strict=False)) | kwargs
        options = {k: given.pop(k) for k in _OPTIONS if k in given}
        if set(given) != set(names):
            raise ValueError(f"{self.__name__}: arguments {set(given) ^ set(names)}")
        steps.append(Launch(self, given, tuple(grid), options))

    def multiply(a: Tensor, b: Tensor, out: Tensor, accumulate: bool, precision: str) -> None:
        steps.append(Product(a.shape[0], b.shape[1], a.shape[1], a.element_size()))

    changed = [
        (triton.runtime.JITFunction, "run", run),
        (products, "multiply", multiply),
        (prepared, "architecture", lambda device: chip),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def rate(chip: config.Architecture, itemsize: int, precision: str) -> float:
    """Flops a second of a product."""
    if itemsize == 2:
        return chip.tensor_flops
    return {
        "ieee": chip.vector_flops,
        "tf32": chip.tf32_flops,
        "tf32x3": chip.tf32_flops / 3,
    }[precision]


def resident(chip: config.Architecture, registers: int, shared: int, warps: int) -> int:
    """Blocks on a multiprocessor at once."""
    threads = chip.lanes * warps
    by_registers = 65536 // max(1, registers * threads)
    if chip.lanes == 64:  # 4 units with 512 vector registers a lane each
        by_registers = 4 * (512 // max(1, registers)) // warps
    by_shared = chip.shared_total // (shared + 1024) if shared else 32
    return max(1, min(by_registers, by_shared, 2048 // threads))


@dataclass(frozen=True)
class Work:
    """What one program of a tile kernel does, and what the whole launch writes."""

    flops: float
    l2_bytes: float
    elements: int
    exponentials: float  # an element
    operations: float  # an element: scaling, masks, sums, conversion
    written: float = 0.0


def _softmax_work(operations: float, target: str) -> Callable[[dict[str, Any]], Work]:
    def work(a: dict[str, Any]) -> Work:
        m, n, depth = a["BLOCK_M"], a["BLOCK_N"], a["depth"]
        return Work(
            flops=2.0 * m * n * depth,
            l2_bytes=float((m + n) * depth * itemsize(a["x"])),
            elements=m * n,
            exponentials=1 if a.get("BOUNDED", True) else 2,
            operations=operations + (SURVEYED if a.get("best") is not None else 0),
            written=_bytes(a.get(target)),
        )

    return work


def _selection_work(columns: str, target: str) -> Callable[[dict[str, Any]], Work]:
    def work(a: dict[str, Any]) -> Work:
        m, n, depth = a["BLOCK_M"], a[columns], a["depth"]
        l2_bytes = float((m + n) * depth * itemsize(a["x"]))
        return Work(2.0 * m * n * depth, l2_bytes, m * n, 0, 4, _bytes(a[target]))

    return work


def _token_work(a: dict[str, Any]) -> Work:
    """One program meets a whole document, tile after tile; an integer order and two maxima."""
    m, depth = a["BLOCK_M"], a["depth"]
    n = math.ceil(a["width"] / a["BLOCK_N"]) * a["BLOCK_N"]
    return Work(
        flops=2.0 * m * n * depth,
        l2_bytes=float((m * n / a["BLOCK_N"] + n) * depth * itemsize(a["x"])),
        elements=m * n,
        exponentials=0,
        operations=10,
        written=_bytes(a["best"]) + _bytes(a["where"]),
    )


TILE_KERNELS: dict[str, Callable[[dict[str, Any]], Work]] = {
    "statistics": _softmax_work(8, "kept"),
    "coefficients": _softmax_work(9, "z"),
    "pairwise": _softmax_work(28, "z"),
    "group_maxima": _selection_work("BLOCK_N", "most"),
    "group_values": _selection_work("WIDTH", "values"),
    "token_maxima": _token_work,
}
"""Kernels that have to use the tensor cores, by name: their work from a launch's arguments. Every
other kernel counts as row-wise."""


IN_PLACE = ("rescale",)


def itemsize(x: Any) -> int:
    """Of a tensor, or of a tensor descriptor's."""
    return int((x if isinstance(x, Tensor) else x.base).element_size())


def _bytes(x: Any) -> float:
    if x is None:
        return 0.0
    tensor = x if isinstance(x, Tensor) else x.base
    return float(tensor.numel() * tensor.element_size())


def seconds(plan: Plan, step: Launch | Product, resources: dict[str, Any] | None = None) -> float:
    """The model's time of one step; ``resources``: registers and shared memory once compiled."""
    chip = plan.architecture
    if isinstance(step, Product):
        flops = 2.0 * step.m * step.n * step.k
        moved = step.itemsize * (step.m * step.k + step.k * step.n) + 8 * step.m * step.n
        flat_out = flops / (LIBRARY_EFFICIENCY * rate(chip, step.itemsize, plan.precision))
        return max(LAUNCH_SECONDS, flat_out, moved / chip.memory_bytes)
    if step.name not in TILE_KERNELS:
        return max(LAUNCH_SECONDS, _row_bytes(step) / (STREAM_EFFICIENCY * chip.memory_bytes))
    work = TILE_KERNELS[step.name](step.arguments)
    size = itemsize(step.arguments["x"])
    product = work.flops * chip.multiprocessors / rate(chip, size, plan.precision)
    traffic = work.l2_bytes / (L2_BYTES_A_CLOCK * chip.clock)
    each = work.exponentials / chip.exponentials + work.operations / 128
    epilogue = work.elements * each / chip.clock
    blocks = 1
    if resources is not None:
        blocks = resident(
            chip, resources["registers"], resources["shared"], step.options["num_warps"]
        )
    main = max(product, traffic)
    tile = max(main, epilogue) if blocks > 1 else main + epilogue
    waves = math.ceil(math.prod(step.grid) / (chip.multiprocessors * blocks)) * blocks
    return max(LAUNCH_SECONDS, waves * tile, work.written / chip.memory_bytes)


def _row_bytes(step: Launch) -> float:
    """Every tensor once: rows that are gathered count as many as the grid has."""
    tensors = {
        id(v): v.numel() * v.element_size()
        for v in step.arguments.values()
        if isinstance(v, Tensor)
    }
    moved = float(sum(tensors.values()))
    return moved + tensors[id(step.arguments["kept"])] if step.name in IN_PLACE else moved
