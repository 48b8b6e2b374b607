"""``row_select``: the k best candidates of every row, without the N x M matrix.

The answer is defined by :mod:`.scores` alone: descending scores, ties to the lower index. How a
backend finds it (in what precision, blocks or order it scans) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from . import backends, extension, select_torch
from .exclusions import Exclusions
from .scores import Metric, pair_scores, prepared_rows, score_dtype

Scan = Literal["automatic", "float32", "bfloat16", "int8"]
SCANS = ("automatic", "float32", "bfloat16", "int8")
MiB = 1 << 20
SELECT_WORKSPACE_BYTES = 56 * MiB
"""What a selection may keep besides inputs and results, unless told."""
GPU_WORKSPACE_BYTES = 1024 * MiB
"""The same on a GPU, where only a long span is more work than its launches."""


@dataclass(frozen=True)
class Selection:
    """The best of each row so far, best first.

    Attributes:
        scores: (N, k); -inf where fewer than k candidates were left.
        indices: int64 (N, k); -1 there.
        above: int64 (N,), how many candidates `upper` left out; None without one.
        scored: pairs that were scored in float64 after the scan.
        pairs: pairs in all.
        nan_rows: candidates that cannot be selected, for they hold NaN or have no direction.
    """

    scores: Tensor
    indices: Tensor
    above: Tensor | None = None
    scored: int = 0
    pairs: int = 0
    nan_rows: int = 0


def empty_selection(query: Tensor, k: int, *, count_above: bool = False) -> Selection:
    """What :func:`row_select` starts from."""
    n, device = query.shape[0], query.device
    return Selection(
        torch.full((n, k), -torch.inf, dtype=score_dtype(query), device=device),
        torch.full((n, k), -1, dtype=torch.int64, device=device),
        torch.zeros(n, dtype=torch.int64, device=device) if count_above else None,
    )


def row_select(
    query: Tensor,
    corpus: Tensor,
    k: int,
    *,
    normalize: bool = True,
    metric: Metric = "dot",
    exclude: Exclusions | None = None,
    labels: tuple[Tensor, Tensor] | None = None,
    upper: Tensor | None = None,
    first: int = 0,
    into: Selection | None = None,
    scan: Scan = "automatic",
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> Selection:
    """The k candidates of each row with the highest scores, ties to the lower index.

    Args:
        query: (N, D).
        corpus: (M, D), same dtype; any block of a larger one.
        k: how many.
        normalize: unit rows, which makes scores of ``"dot"`` cosines.
        metric: ``"dot"``, or ``"l2"``, where a score is minus the squared distance.
        exclude: candidates to leave out.
        labels: int64 (N,) and (M,), in place of `exclude`: those of a row's own label are left out.
        upper: (N,) in the scores' dtype: candidates with a higher score are left out, and counted.
        first: the index that corpus row 0 goes by; earlier blocks have lower ones.
        into: the selection from earlier blocks, to go on with.
        scan: what the scan multiplies; the answer does not depend on it.
        backend: as everywhere.
        workspace_bytes: besides inputs and results; 56 MiB by default, on a GPU 1 GiB.
    """
    name = backends.choose_selection(backend, query.device, query.dtype, k)
    start = into or empty_selection(query, k, count_above=upper is not None)
    if corpus.shape[0] == 0 or query.shape[0] == 0:
        return start
    default = SELECT_WORKSPACE_BYTES if query.device.type == "cpu" else GPU_WORKSPACE_BYTES
    budget = default if workspace_bytes is None else workspace_bytes
    query, corpus = query.detach(), corpus.detach()
    if labels is not None and name != "cuda":
        exclude, labels = Exclusions.equal(*labels), None
    if name == "cpu":
        found = _on_cpu(
            start, query, corpus, normalize, metric, exclude, upper, first, scan, budget
        )
    else:
        exclude = exclude or Exclusions.of(query.new_empty((query.shape[0], 0)))
        block = select_torch.Block(query, corpus, normalize, metric, exclude, upper, first, labels)
        select = _selector(name)
        found = replace(start, **select(block, start.scores, start.indices, start.above, budget))
    return replace(
        found,
        scored=start.scored + found.scored,
        pairs=start.pairs + query.shape[0] * corpus.shape[0],
        nan_rows=start.nan_rows + found.nan_rows,
    )


def _selector(name: str) -> Callable[..., dict[str, Any]]:
    """What merges a block into the best so far, by backend."""
    if name == "triton":
        from .gpu import select as gpu_select

        return gpu_select.select
    if name == "cuda":
        from .cuda import selection as cuda_selection

        return cuda_selection.select
    return _densely if name == "reference" else select_torch.select


def _on_cpu(
    start: Selection,
    query: Tensor,
    corpus: Tensor,
    normalize: bool,
    metric: Metric,
    exclude: Exclusions | None,
    upper: Tensor | None,
    first: int,
    scan: Scan,
    budget: int,
) -> Selection:
    kernel, reason = extension.load()
    if kernel is None:
        raise ValueError(f"backend 'cpu' cannot be used here: {reason}")
    scores, indices = start.scores.clone(), start.indices.clone()
    above = None if start.above is None else start.above.clone()
    scored, nan_rows = kernel.row_select(
        query,
        corpus,
        normalize,
        metric == "l2",
        SCANS.index(scan),
        first,
        None if exclude is None else exclude.begin,
        None if exclude is None else exclude.index,
        upper,
        above,
        budget,
        scores,
        indices,
    )
    return Selection(scores, indices, above, scored, 0, nan_rows)


def _densely(
    block: select_torch.Block,
    scores: Tensor,
    indices: Tensor,
    above: Tensor | None,
    budget: int,
) -> dict[str, Any]:
    """All scores, then a sort: the definition."""
    x = prepared_rows(block.query, block.normalize)[0]
    y, norms = prepared_rows(block.corpus, block.normalize)
    all_scores = torch.cat([pair_scores(row, y, block.metric).unsqueeze(0) for row in x])
    valid = ~all_scores.isnan()
    rows, columns = block.exclude.pairs()
    inside = (columns >= block.first) & (columns < block.first + len(y))
    valid[rows[inside], columns[inside] - block.first] = False
    if block.upper is not None and above is not None:
        over = valid & (all_scores > block.upper.unsqueeze(1))
        above = above + over.sum(1)
        valid &= ~over
    index = torch.arange(block.first, block.first + len(y), device=y.device).expand_as(all_scores)
    index = torch.cat([indices, index.masked_fill(~valid, -1)], 1)
    merged = torch.cat([scores, all_scores.masked_fill(~valid, -torch.inf)], 1)
    # Earlier blocks stand first, so that a stable sort sends ties to the lower index; what is not
    # there goes last, also behind scores of -inf.
    by_presence = (index < 0).to(torch.int8).argsort(dim=1, stable=True)
    merged, index = merged.gather(1, by_presence), index.gather(1, by_presence)
    order = merged.argsort(dim=1, descending=True, stable=True)[:, : scores.shape[1]]
    return {
        "scores": merged.gather(1, order),
        "indices": index.gather(1, order),
        "above": above,
        "scored": all_scores.numel(),
        "nan_rows": int(norms.isnan().sum()),
    }
