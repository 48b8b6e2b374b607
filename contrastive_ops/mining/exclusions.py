"""Who leaves out whom: by index, and by the id of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import check
from ..engine.exclusions import Exclusions


def exclusions(
    n: int,
    indices: list[Tensor],
    query_ids: Tensor | None,
    corpus_ids: Tensor | None,
    like: Tensor,
) -> Exclusions | None:
    """What each of N queries leaves out: its (N, E) indices, and candidates with its id.

    Memory is proportional to the number of excluded pairs.
    """
    if (query_ids is None) != (corpus_ids is None):
        given, other = (
            ("query_ids", "corpus_ids")
            if corpus_ids is None
            else (
                "corpus_ids",
                "query_ids",
            )
        )
        raise ValueError(f"{other}: got none besides {given}, expected both or neither")
    parts = [Exclusions.of(index) for index in indices if index.shape[1]]
    if query_ids is not None and corpus_ids is not None:
        query_ids = check.integers("query_ids", query_ids, ((n,),), like)
        corpus_ids = check.integers("corpus_ids", corpus_ids, ((len(corpus_ids),),), like)
        parts.append(Exclusions.equal(query_ids, corpus_ids))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else union(parts)


equal_ids = Exclusions.equal


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
    stride = 1 + (int(index.max()) if len(index) else 0)
    keys = (rows * stride + index).unique()
    n = len(parts[0].begin) - 1
    begin = torch.zeros(n + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(torch.bincount(keys // stride, minlength=n), 0, out=begin[1:])
    return Exclusions(begin, keys % stride)
