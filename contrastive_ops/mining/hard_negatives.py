"""``mine_hard_negatives``: candidates that look like positives and are none."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..engine import check
from ..engine.exclusions import Exclusions
from ..engine.scores import pair_scores, prepared_rows, score_dtype
from .corpus import Blocks, Corpus, Rows, as_rows, check_range, read_index, scoring
from .exclusions import exclusions, union
from .sampling import draw, draw_from_all
from .statistics import FILTERS, MiningStatistics
from .topk import select_from


@dataclass(frozen=True)
class HardNegatives:
    """Mined negatives; unpacks as ``indices, scores``.

    Attributes:
        indices: int64 (N, num_negatives), best first; -1 where too few passed.
        scores: (N, num_negatives); -inf there.
        positive_scores: (N,) of the weakest positive, which the margins refer to; NaN without one.
        statistics: what each filter dropped.
    """

    indices: Tensor
    scores: Tensor
    positive_scores: Tensor
    statistics: MiningStatistics

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.indices, self.scores))


@dataclass(frozen=True)
class Rules:
    """Which candidates pass, and how many of them are taken; see :func:`mine_hard_negatives`."""

    num_negatives: int
    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    sampling: str = "top"
    seed: int = 0
    normalize: bool = True

    def __post_init__(self) -> None:
        for name, least in {"num_negatives": 1, "range_min": 0, "seed": 0}.items():
            self._set(name, _count(name, getattr(self, name), least))
        if self.range_max is not None:
            least = self.range_min + self.num_negatives
            self._set("range_max", _count("range_max", self.range_max, least))
        for name in ("absolute_margin", "relative_margin", "max_score", "min_score"):
            if getattr(self, name) is not None:
                low = 0.0 if name == "relative_margin" else -math.inf
                self._set(name, check.number(name, getattr(self, name), low))
        check.choice("sampling", self.sampling, ("top", "random"))
        check.flag("normalize", self.normalize)

    def _set(self, name: str, value: float) -> None:
        """Plain numbers in the place of numpy's, which JSON does not know."""
        object.__setattr__(self, name, value)

    def limits(self, positive: Tensor) -> list[Tensor]:
        """Per filter of FILTERS[:3], (N,) float64 scores above which it drops; inf where it is off.

        ``positive`` is NaN for queries without one, whom margins leave alone.
        """
        p = positive.double()
        off = torch.full_like(p, math.inf)
        absolute = off if self.absolute_margin is None else p - self.absolute_margin
        relative = off if self.relative_margin is None else p - p.abs() * self.relative_margin
        most = off if self.max_score is None else torch.full_like(p, self.max_score)
        return [torch.where(limit.isnan(), math.inf, limit) for limit in (absolute, relative, most)]


def mine_hard_negatives(
    queries: Rows,
    corpus: Blocks,
    positives: Tensor,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    sampling: Literal["top", "random"] = "top",
    seed: int = 0,
    normalize: bool = True,
    exclude: Tensor | None = None,
    query_ids: Tensor | None = None,
    corpus_ids: Tensor | None = None,
    backend: str | None = None,
    output: str | os.PathLike[str] | None = None,
    shard_rows: int = 16384,
    progress: bool | None = None,
) -> HardNegatives:
    """Hard negatives of every query: the best-scoring candidates that pass all filters.

    Scores are those of :func:`topk_similarity`, exact to the bit. Ranks are counted among the
    candidates that are neither positive nor excluded, before any score filter.

    Args:
        queries: (N, D) embeddings, as for :func:`topk_similarity`.
        corpus: (M, D), likewise: a tensor, an array, a memory map or an iterable of blocks.
        positives: int64 (N,) or (N, P) indices into the corpus, -1 pads. The weakest positive is
            the one that margins refer to; where there is none they do not apply.
        num_negatives: how many to mine for each query.
        range_min: leave out the best so many.
        range_max: look no deeper than this rank; None: as deep as it takes.
        absolute_margin: drops candidates that score above positive - absolute_margin.
        relative_margin: drops those above positive - |positive| * relative_margin.
        max_score, min_score: drop what scores above or below.
        sampling: ``"top"`` takes the best, ``"random"`` draws uniformly from all that pass.
        seed: of the draw, which depends on nothing else: not on blocks, threads or backends.
        normalize: cosine similarity if True, dot products if False.
        exclude: int64 (N,) or (N, E) further indices to leave out, -1 pads.
        query_ids, corpus_ids: int64 (N,) and (M,), e.g. numbers of texts: candidates with the
            query's id are left out.
        backend: see :func:`contrastive_ops.backends`.
        output: a ``.npz`` file to write, whole or not at all. The run goes in shards, kept beside
            it until the file is there: the same call, after it was killed, goes on behind the last
            finished one.
        shard_rows: queries of a shard.
        progress: a progress bar over shards; None: where standard error is a terminal.

    Returns:
        :class:`HardNegatives`: ``indices`` and ``scores`` (N, num_negatives), best first, padded
        with -1 and -inf.

    Raises:
        ValueError: an argument that contradicts the above; the message names it. An iterable needs
            ``range_max``, because all else takes several looks at the corpus; ``output`` needs one
            that gives its blocks anew each time.

    Source: the rules of sentence-transformers' `mine_hard_negatives`; positive-aware margins as in
    Moreira et al. 2024, "NV-Retriever" (arXiv 2407.15831).
    """
    rules = Rules(
        num_negatives,
        range_min,
        range_max,
        absolute_margin,
        relative_margin,
        max_score,
        min_score,
        sampling,
        seed,
        normalize,
    )
    shard_rows = _count("shard_rows", shard_rows, 1)
    query = as_rows("queries", queries)
    n = len(query)
    if n == 0:
        raise ValueError("queries: got no rows, expected at least one")
    candidates = Corpus(corpus, query)
    positive = read_index("positives", positives, n, query)
    if positive.shape[1] == 0:
        positive = positive.new_full((n, 1), -1)
    m = None
    if candidates.is_whole:
        m = len(candidates)
        check_range("positives", positive, m)
    elif range_max is None:
        raise ValueError("range_max: got None with an iterable corpus, expected a depth")
    out = exclusions(n, m, positive, exclude, query_ids, corpus_ids, query)
    assert out is not None

    def mine(start: int, stop: int) -> HardNegatives:
        part = Corpus(candidates.value, query[start:stop])
        return _mine(part, positive[start:stop], out.rows(start, stop), start, rules, backend)

    if not candidates.is_repeatable:
        if output is not None:
            raise ValueError(
                "corpus: got an iterator, expected an iterable that can begin anew, for every "
                "shard of output reads it"
            )
        return mine(0, n)
    from .shards import run_in_shards

    facts = {"rules": vars(rules), "shard_rows": shard_rows}
    identity = (query, positive, out.begin, out.index, candidates)
    return run_in_shards(mine, n, shard_rows, output, facts, identity, progress)


def _mine(
    corpus: Corpus,
    positive: Tensor,
    out: Exclusions,
    first_row: int,
    rules: Rules,
    backend: str | None,
) -> HardNegatives:
    """Of some queries, the first of which is ``first_row``."""
    scores_of_positives = _PositiveScores(corpus, positive, rules.normalize)
    if rules.range_max is not None:
        watched = _Watched(corpus, scores_of_positives)
        found, _ = select_from(
            watched, rules.range_max, rules.normalize, "dot", out, backend=backend
        )
        weakest = scores_of_positives.weakest()
        limits = rules.limits(weakest)
        scored, pairs = found.scored, found.pairs
        window = found.scores[:, rules.range_min :], found.indices[:, rules.range_min :]
        passed, dropped = _filter(*window, limits, rules)
        statistics = MiningStatistics.of(window[1] >= 0, dropped)
        chosen = _take(*window, passed, first_row, rules)
    else:
        scores_of_positives.look_up()
        weakest = scores_of_positives.weakest()
        limits = rules.limits(weakest)
        m = len(corpus)
        skipped = min(rules.range_min, m)
        scored = pairs = 0
        if skipped:
            best, _ = select_from(corpus, skipped, rules.normalize, "dot", out, backend=backend)
            out = union([out, Exclusions.of(best.indices)])
            scored, pairs = best.scored, best.pairs
        tightest = torch.stack(limits).amin(0)
        upper = None if bool(tightest.isinf().all()) else _rounded_down(tightest, weakest.dtype)
        k = min(rules.num_negatives, m)
        found, _ = select_from(corpus, k, rules.normalize, "dot", out, upper=upper, backend=backend)
        scored, pairs = scored + found.scored, pairs + found.pairs
        passed, dropped = _filter(found.scores, found.indices, limits, rules)
        if found.above is not None:
            dropped[:3] += _by_tightest(found.above, limits)
        examined = (found.indices >= 0).sum() + (0 if found.above is None else found.above.sum())
        statistics = MiningStatistics.of(examined, dropped)
        if rules.sampling == "random":
            low = -math.inf if rules.min_score is None else rules.min_score
            chosen = draw_from_all(
                corpus, rules.num_negatives, out, tightest, low, first_row, rules
            )
        else:
            chosen = _take(found.scores, found.indices, passed, first_row, rules)
    scores, indices = chosen
    statistics = statistics.finish(indices, found.nan_rows, scored, pairs)
    return HardNegatives(indices, scores, weakest, statistics)


def choose(scores: Tensor, indices: Tensor, positive: Tensor, rules: Rules) -> HardNegatives:
    """Negatives among given candidates by given scores: all rules but the rank window.

    Args:
        scores, indices: (N, W) in any order; index -1 is a pad.
        positive: (N,) scores of the weakest positives, NaN for none.
        rules: see :func:`mine_hard_negatives`.
    """
    scores = scores.masked_fill(indices < 0, -math.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    passed, dropped = _filter(scores, indices, rules.limits(positive), rules)
    taken, index = _take(scores, indices, passed, 0, rules)
    statistics = MiningStatistics.of(indices >= 0, dropped).finish(index, 0, 0, 0)
    return HardNegatives(index, taken, positive, statistics)


class _PositiveScores:
    """(N, P) scores of the positives, as their rows come by."""

    def __init__(self, corpus: Corpus, positive: Tensor, normalize: bool) -> None:
        self.corpus, self.positive = corpus, positive
        self.normalize, self.metric = scoring(corpus.query, normalize)
        self.x = prepared_rows(corpus.query, self.normalize)[0]
        self.scores = torch.full(
            positive.shape, math.nan, dtype=score_dtype(corpus.query), device=positive.device
        )

    def look_up(self) -> None:
        """All of them, from a corpus that is whole."""
        for column in range(self.positive.shape[1]):
            given = (self.positive[:, column] >= 0).nonzero()[:, 0]
            for rows in given.split(4096):
                self._score(rows, column, self.corpus.rows(self.positive[rows, column]))

    def see(self, first: int, block: Tensor) -> None:
        """Those in a block."""
        inside = (self.positive >= first) & (self.positive < first + len(block))
        for column in range(self.positive.shape[1]):
            for rows in inside[:, column].nonzero()[:, 0].split(4096):
                self._score(rows, column, block[self.positive[rows, column] - first])

    def weakest(self) -> Tensor:
        """(N,); NaN where there is none."""
        unknown = self.scores.isnan()
        least = self.scores.masked_fill(unknown, math.inf).amin(1)
        return least.masked_fill(unknown.all(1), math.nan)

    def _score(self, rows: Tensor, column: int, y: Tensor) -> None:
        prepared = prepared_rows(y, self.normalize)[0]
        self.scores[rows, column] = pair_scores(self.x[rows], prepared, self.metric)


class _Watched(Corpus):
    """A corpus whose blocks the positives see on their way."""

    def __init__(self, corpus: Corpus, watcher: _PositiveScores) -> None:
        super().__init__(corpus.value, corpus.query)
        self.watcher = watcher

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        count = 0
        for first, block in super().blocks():
            self.watcher.see(first, block)
            count = first + len(block)
            yield first, block
        check_range("positives", self.watcher.positive, count)


def _filter(
    scores: Tensor, indices: Tensor, limits: list[Tensor], rules: Rules
) -> tuple[Tensor, Tensor]:
    """(N, W) bool of what passes, and int64 (4,) of what each of FILTERS dropped.

    A candidate above several limits counts for the tightest.
    """
    here, value = indices >= 0, scores.double()
    over = here & (value > torch.stack(limits).amin(0)[:, None])
    under = here & ~over & (value < (-math.inf if rules.min_score is None else rules.min_score))
    dropped = torch.zeros(len(FILTERS), dtype=torch.int64)
    dropped[:3] += _by_tightest(over.sum(1), limits)
    dropped[3] = under.sum()
    return here & ~over & ~under, dropped


def _by_tightest(count: Tensor, limits: list[Tensor]) -> Tensor:
    """int64 (3,): each row's count given to its lowest limit."""
    lowest = torch.stack(limits).argmin(0)
    return torch.zeros(3, dtype=torch.int64).index_add_(0, lowest.cpu(), count.cpu())


def _take(
    scores: Tensor, indices: Tensor, passed: Tensor, first_row: int, rules: Rules
) -> tuple[Tensor, Tensor]:
    """num_negatives of those that passed, best first, padded."""
    if rules.sampling == "random":
        passed = draw(indices, passed, rules.num_negatives, first_row, rules.seed)
    order = (~passed).to(torch.int8).argsort(dim=1, stable=True)[:, : rules.num_negatives]
    keep = passed.gather(1, order)
    scores = scores.gather(1, order).masked_fill(~keep, -math.inf)
    indices = indices.gather(1, order).masked_fill(~keep, -1)
    short = rules.num_negatives - scores.shape[1]
    if short > 0:
        scores = torch.nn.functional.pad(scores, (0, short), value=-math.inf)
        indices = torch.nn.functional.pad(indices, (0, short), value=-1)
    return scores, indices


def _rounded_down(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of the scores' type that is not above the limit."""
    near = limit.to(dtype)
    below = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.double() > limit, below, near)


def _count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: got {value!r}, expected an integer >= {least}")
    return int(value)
