"""Who leaves out whom: by index, and by the id of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.exclusions import Exclusions
from .corpus import check_range, read_index


def exclusions(
    n: int,
    m: int | None,
    positive: Tensor | None,
    exclude: Any,
    query_ids: Tensor | None,
    corpus_ids: Tensor | None,
    like: Tensor,
) -> Exclusions | None:
    """What each of N queries leaves out: positives, indices (N, E), and candidates with its id.

    Memory is proportional to the number of excluded pairs. ``m``: the rows of the corpus, if known.
    """
    if (query_ids is None) != (corpus_ids is None):
        names = ("query_ids", "corpus_ids")
        given, other = names if corpus_ids is None else names[::-1]
        raise ValueError(f"{other}: got none besides {given}, expected both or neither")
    parts = [] if positive is None else [Exclusions.of(positive)]
    if exclude is not None:
        index = read_index("exclude", exclude, n, like)
        if m is not None:
            check_range("exclude", index, m)
        if index.shape[1]:
            parts.append(Exclusions.of(index))
    if query_ids is not None and corpus_ids is not None:
        query_ids = check.integers("query_ids", query_ids, ((n,),), like)
        shape = (len(corpus_ids) if m is None else m,)
        corpus_ids = check.integers("corpus_ids", corpus_ids, (shape,), like)
        parts.append(Exclusions.equal(query_ids, corpus_ids))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else union(parts)


def contains(whole: Exclusions, rows: Tensor, index: Tensor) -> Tensor:
    """Whether row ``rows[...]`` leaves out ``index[...]``, elementwise."""
    known_rows, known = whole.pairs()
    stride = 1 + max(
        int(known.max()) if len(known) else 0, int(index.max()) if index.numel() else 0
    )
    keys = known_rows * stride + known
    wanted = rows * stride + index
    if not len(keys):
        return torch.zeros_like(wanted, dtype=torch.bool)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return keys[at] == wanted


def union(parts: list[Exclusions]) -> Exclusions:
    """What any of them leaves out."""
    rows, index = (torch.cat(each) for each in zip(*(part.pairs() for part in parts), strict=True))
    order = index.argsort()
    order = order[rows[order].argsort(stable=True)]
    rows, index = rows[order], index[order]
    keep = torch.ones_like(rows, dtype=torch.bool)
    keep[1:] = (rows[1:] != rows[:-1]) | (index[1:] != index[:-1])
    n = len(parts[0].begin) - 1
    begin = torch.zeros(n + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows[keep], minlength=n), 0, out=begin[1:])
    return Exclusions(begin, index[keep])
