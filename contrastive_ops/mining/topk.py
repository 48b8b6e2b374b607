"""``topk_similarity``: the exact nearest neighbours of every query."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

from torch import Tensor

from ..engine import check
from ..engine.exclusions import Exclusions
from ..engine.scores import Metric
from ..engine.select import Selection, empty_selection, row_select
from .corpus import Blocks, Corpus, Rows, as_rows, scoring
from .exclusions import exclusions


class TopK(NamedTuple):
    """Scores and indices (N, k), best first."""

    scores: Tensor
    indices: Tensor


def topk_similarity(
    queries: Rows,
    corpus: Blocks,
    k: int,
    *,
    normalize: bool = True,
    metric: Literal["dot", "l2"] = "dot",
    exclude: Tensor | None = None,
    query_ids: Tensor | None = None,
    corpus_ids: Tensor | None = None,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> TopK:
    """The k most similar rows of a corpus for every query, exactly, without the N x M matrix.

    A score is the float64 dot product of the float32-normalised rows (float64 ones for float64
    input), rounded once to the result's dtype, so the answer is defined to the bit: the same for
    every backend, block size and number of threads. A scan in low precision bounds the scores; what
    its rigorous error bound leaves open is scored exactly.

    Args:
        queries: (N, D), float16, bfloat16, float32, float64, int8, or packed bits as uint8. A numpy
            array will do.
        corpus: (M, D) of the same dtype and width: a tensor, an array, a memory map (read 16 MiB at
            a time), or an iterable of blocks.
        k: 1 <= k <= M.
        normalize: cosine similarity if True, dot products of the rows as they are if False. int8
            rows with ``normalize=False`` have integer products, exact up to 2**24.
        metric: ``"dot"``, or ``"l2"``, for which a score is minus the squared Euclidean distance.
            Packed bits always score minus their Hamming distance.
        exclude: int64 (N,) or (N, E) indices into the corpus that a query leaves out, -1 pads.
        query_ids, corpus_ids: int64 (N,) and (M,), both or neither: candidates with the query's id
            are left out.
        backend: see :func:`contrastive_ops.backends`.
        workspace_bytes: besides inputs and results; 56 MiB by default, on a GPU 1 GiB.

    Returns:
        ``(scores, indices)``, (N, k): descending, ties to the lower index. Where exclusions leave
        fewer than k candidates, -1 with score -inf. Rows that hold NaN, and for cosines infinities,
        are never selected and select nothing; a ``RuntimeWarning`` counts them.

    Raises:
        ValueError: an argument that contradicts the above; the message names it.
        TypeError: something that is neither tensor nor array.
    """
    query = as_rows("queries", queries)
    if len(query) == 0:
        raise ValueError("queries: got no rows, expected at least one")
    check.choice("metric", metric, ("dot", "l2"))
    check.flag("normalize", normalize)
    if workspace_bytes is not None:
        check.byte_count("workspace_bytes", workspace_bytes)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: got {k!r}, expected an integer >= 1")
    candidates = Corpus(corpus, query)
    if candidates.is_whole and k > len(candidates):
        raise ValueError(f"k: got {k}, expected at most {len(candidates)}, the rows of corpus")
    m = len(candidates) if candidates.is_whole else None
    out = exclusions(len(query), m, None, exclude, query_ids, corpus_ids, query)
    found, count = select_from(
        candidates, k, normalize, metric, out, backend=backend, workspace_bytes=workspace_bytes
    )
    if k > count:
        raise ValueError(f"k: got {k}, expected at most {count}, the rows of corpus")
    if found.nan_rows:
        warnings.warn(
            f"corpus: {found.nan_rows} of {count} rows have no direction (NaN or infinity) and "
            "were left out",
            RuntimeWarning,
            stacklevel=2,
        )
    return TopK(found.scores, found.indices)


def select_from(
    corpus: Corpus,
    k: int,
    normalize: bool,
    metric: Metric,
    exclude: Exclusions | None,
    *,
    upper: Tensor | None = None,
    backend: str | None = None,
    workspace_bytes: int | None = None,
) -> tuple[Selection, int]:
    """The best k of all blocks, and how many candidates there were."""
    query = corpus.query
    normalize, metric = scoring(query, normalize, metric)
    found = empty_selection(query, k, count_above=upper is not None)
    count = 0
    for first, block in corpus.blocks():
        found = row_select(
            query,
            block,
            k,
            normalize=normalize,
            metric=metric,
            exclude=exclude,
            upper=upper,
            first=first,
            into=found,
            backend=backend,
            workspace_bytes=workspace_bytes,
        )
        count = first + len(block)
    return found, count
