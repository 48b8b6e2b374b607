"""What a mining run found, and what each filter dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FILTERS = ("absolute_margin", "relative_margin", "max_score", "min_score")


@dataclass(frozen=True)
class MiningStatistics:
    """Counts over all queries.

    Attributes:
        queries: N.
        examined: candidates that the filters looked at: those of the rank window, or without
            ``range_max`` all that score above a limit and the best ``num_negatives`` of the rest,
            whichever of these ``sampling`` takes.
        dropped: by filter; a candidate above several limits counts for the tightest.
        negatives: mined.
        missing: negatives that were asked for and not found.
        short: queries that got fewer than they asked for.
        nan_rows: candidates that cannot be selected, for they hold NaN or have no direction.
        scored: pairs scored in float64, of ``pairs`` in all.
        pairs: N * M for each look at the corpus.
    """

    queries: int = 0
    examined: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    negatives: int = 0
    missing: int = 0
    short: int = 0
    nan_rows: int = 0
    scored: int = 0
    pairs: int = 0

    @staticmethod
    def of(examined: Tensor, dropped: Tensor) -> MiningStatistics:
        """From what was examined and int64 (4,) of what each filter dropped."""
        counts = dict(zip(FILTERS, dropped.tolist(), strict=True))
        return MiningStatistics(examined=int(examined.sum()), dropped=counts)

    def finish(self, indices: Tensor, nan_rows: int, scored: int, pairs: int) -> MiningStatistics:
        """With what was taken, (N, num_negatives)."""
        taken = indices >= 0
        return dataclasses.replace(
            self,
            queries=len(indices),
            negatives=int(taken.sum()),
            missing=int((~taken).sum()),
            short=int((~taken).any(1).sum()),
            nan_rows=nan_rows,
            scored=scored,
            pairs=pairs,
        )

    @staticmethod
    def total(parts: Iterable[MiningStatistics]) -> MiningStatistics:
        """Of shards of queries over the same corpus."""
        parts = list(parts)
        sums: dict[str, Any] = {
            f.name: sum(getattr(part, f.name) for part in parts)
            for f in dataclasses.fields(MiningStatistics)
            if f.name not in ("dropped", "nan_rows")
        }
        dropped = {name: sum(part.dropped.get(name, 0) for part in parts) for name in FILTERS}
        nan_rows = max((part.nan_rows for part in parts), default=0)
        return MiningStatistics(dropped=dropped, nan_rows=nan_rows, **sums)


def table(statistics: MiningStatistics, positive: Tensor, negative: Tensor) -> str:
    """As text: scores of positives (N,) and negatives (N, n), and what was dropped."""
    pairs = (negative > -torch.inf) & ~positive.isnan()[:, None]
    columns = {
        "positive": positive[~positive.isnan()],
        "negative": negative[negative > -torch.inf],
        "difference": (positive[:, None] - negative)[pairs],
    }
    lines = [f"{'':<10}" + "".join(f"{name:>14}" for name in columns)]
    lines.append(f"{'count':<10}" + "".join(f"{len(v):>14,}" for v in columns.values()))
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.mean,
        "std": lambda v: v.std(correction=0),
        "min": torch.min,
        "25%": lambda v: _quantile(v, 0.25),
        "median": lambda v: _quantile(v, 0.5),
        "75%": lambda v: _quantile(v, 0.75),
        "max": torch.max,
    }
    for name, measure in measures.items():
        cells = (f"{float(measure(v.double())):>14.4f}" if len(v) else f"{'-':>14}"
                 for v in columns.values())  # fmt: skip
        lines.append(f"{name:<10}" + "".join(cells))
    for name, count in statistics.dropped.items():
        if count:
            share = count / max(1, statistics.examined)
            lines.append(
                f"{name} dropped {count:,} of {statistics.examined:,} candidates ({share:.2%})"
            )
    if statistics.short:
        lines.append(
            f"{statistics.short:,} of {statistics.queries:,} queries got fewer negatives than "
            f"asked for; {statistics.missing:,} are missing"
        )
    if statistics.nan_rows:
        lines.append(
            f"{statistics.nan_rows:,} rows of the corpus have no direction and were left out"
        )
    return "\n".join(lines)


def _quantile(values: Tensor, q: float) -> Tensor:
    """By sorting: `torch.quantile` takes no more than 2**24 values."""
    ordered = values.sort().values
    return ordered[round(q * (len(ordered) - 1))]
