"""Finds the fastest tile of each role on this GPU, on request, and keeps them in a file.

    python benchmarks/run_gpu.py --tune tiles.json
    CONTRASTIVE_OPS_TUNED=tiles.json python train.py

Nothing tunes itself: without that variable the table in `kernels.config` holds. Tiles that do not
compile, or that lose, are printed with their times.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from contrastive_ops import info_nce
from contrastive_ops.engine.gpu.prepared import architecture
from contrastive_ops.kernels import config

N, WIDTH, ROUNDS = 16384, 768, 5

# What a problem has to have for its tiles to play the role.
PROBLEMS: dict[str, dict[str, object]] = {
    "plain": {"symmetric": True, "temperature": 0.05},
    "maxima": {"symmetric": True, "temperature": 0.01},
    "levered": {"symmetric": True, "temperature": None},
    "screened": {"symmetric": True, "temperature": 0.05, "label_smoothing": 0.1},
}


def run(path: Path, say: Callable[[str], None]) -> dict[tuple[str, ...], config.Tile]:
    """Times every candidate and writes the winners after each role."""
    chip = architecture(torch.device("cuda"))
    best: dict[tuple[str, ...], config.Tile] = {}
    os.environ[config.TUNED_VARIABLE] = str(path)
    for role, options in PROBLEMS.items():
        key = (chip.name, "16", role)
        timed: list[tuple[float, config.Tile]] = []
        for tile in config.candidates(chip, 2):
            config.write_tuned(path, best | {key: tile})
            config.tuned.cache_clear()
            try:
                spent = _time(options)
            except Exception as error:
                say(f"{role}: {tile}: {type(error).__name__}")
                continue
            timed.append((spent, tile))
            say(f"{role}: {tile}: {spent * 1e3:.3f} ms")
        if timed:
            best[key] = min(timed, key=lambda pair: pair[0])[1]
        config.write_tuned(path, best)
        config.tuned.cache_clear()
    return best


def _time(options: dict[str, object]) -> float:
    """Median seconds of loss and gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn((2, N, WIDTH), generator=generator, device="cuda").to(torch.bfloat16)
    leaves = [x.requires_grad_() for x in rows.unbind()]
    given = dict(options)
    if given["temperature"] is None:
        given["temperature"] = torch.tensor(0.05, device="cuda", requires_grad=True)
    samples: list[float] = []
    for turn in range(ROUNDS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loss: Tensor = info_nce(*leaves, backend="triton", **given)  # type: ignore[arg-type]
        loss.backward()
        end.record()
        torch.cuda.synchronize()
        if turn:
            samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)
