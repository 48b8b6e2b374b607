"""The suite `mining`: exact top-k, hard negatives and in-batch miners against the peers' own.

Rows have the same keys as those of the losses' suites, and besides: how much was scored after the
scan, and how many of the peer's answers are ours. A peer that is not installed is said so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .command import OtherSuite
from .timing import Times, interleave

Row = dict[str, Any]
Say = Callable[[str], None]
_OURS = "contrastive-ops"


def measure(quick: bool, say: Say) -> list[Row]:
    """All cases of the suite."""
    rows = []
    for inputs in ("gaussian", "clustered"):
        n, m = (256, 5000) if quick else (4096, 100_000)
        case = {"what": "top-k", "n": n, "m": m, "dim": 384, "k": 32, "inputs": inputs}
        rows += measure_topk(case, quick, say)
    pairs = 1000 if quick else 20_000
    rows += measure_hard_negatives({"what": "hard negatives", "n": pairs, "dim": 384}, quick, say)
    batch = 256 if quick else 4096
    rows += measure_miners({"what": "batch miners", "n": batch, "dim": 256}, quick, say)
    return rows


def summarize(row: Row) -> str:
    """A row in one line."""
    case = row["case"]
    size = f"N={case['n']}" + (f" M={case['m']} {case['inputs']}" if "m" in case else "")
    line = f"  {size:<26} {row['variant']:<44}"
    if "unavailable" in row:
        return f"{line} -- {row['unavailable']}"
    line += f" {row['seconds'] * 1e3:9.1f} ms {row['ratio_to_ours']:6.2f}x"
    if "share_scored" in row:
        line += f"  scored {row['share_scored']:.2%}"
    if "agreement" in row:
        line += f"  agrees {row['agreement']:.4%}"
    if "peak_memory_bytes" in row:
        line += f"  {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    return line


def make_rows(n: int, m: int, dim: int, inputs: str) -> tuple[Tensor, Tensor]:
    """Unit queries (n, dim) and candidates (m, dim), unrelated or as a trained encoder leaves them.

    Clustered ones share a mean and lie around centers, and every query near a candidate.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if inputs == "gaussian":
        return F.normalize(normal(n, dim), dim=1), F.normalize(normal(m, dim), dim=1)
    centers = normal(max(1, m // 100), dim) + 0.7 * normal(1, dim)
    y = centers[torch.randint(0, len(centers), (m,), generator=generator)] + 0.8 * normal(m, dim)
    x = y[torch.randint(0, m, (n,), generator=generator)] + 0.5 * normal(n, dim)
    return F.normalize(x, dim=1), F.normalize(y, dim=1)


# ---- top-k


def measure_topk(case: Row, quick: bool, say: Say) -> list[Row]:
    """Ours in every scan, FAISS flat, and a product with `topk` in blocks of 512 queries."""
    from contrastive_ops.engine.select import SCANS, Scan, Selection, row_select

    x, y = make_rows(case["n"], case["m"], case["dim"], case["inputs"])
    k = case["k"]
    calls: dict[str, Callable[[], Any]] = {}
    for scan in SCANS:
        name = _OURS if scan == "automatic" else f"{_OURS}, {scan} scan"

        def ours(scan: Scan = scan) -> Selection:  # type: ignore[assignment]
            return row_select(x, y, k, scan=scan)

        calls[name] = ours
    calls["PyTorch, product and topk"] = lambda: torch.cat(
        [(part @ y.T).topk(k, 1).indices for part in x.split(512)]
    )
    rows: list[Row] = []
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(case["dim"])
        index.add(y.numpy())
        calls["faiss.IndexFlatIP"] = lambda: torch.from_numpy(index.search(x.numpy(), k)[1])
    except ImportError as error:
        rows.append(_missing(case, "faiss.IndexFlatIP", "faiss-cpu", error))
    answers = {name: call() for name, call in calls.items()}
    best = answers[_OURS].indices
    times = _times(calls, quick, say)
    for name, answer in answers.items():
        row = _row(case, name, times)
        if isinstance(answer, Selection):
            row["share_scored"] = answer.scored / answer.pairs
            answer = answer.indices
        row["agreement"] = float((answer == best).double().mean())
        rows.append(row)
    rows[-len(answers)]["peak_memory_bytes"] = measure_memory(case)
    return rows


def measure_memory(case: Row) -> int:
    """Bytes that `topk_similarity` needs beyond inputs and results, in a fresh process."""
    order = json.dumps({"case": case, "threads": torch.get_num_threads()})
    done = subprocess.run(
        [sys.executable, "-m", "contrastive_ops.benchmarks.mining", order],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main() -> None:
    """Entry of that process."""
    from contrastive_ops import topk_similarity

    from .memory import _peak_rise, _trim

    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    case = order["case"]
    x, y = make_rows(case["n"], case["m"], case["dim"], case["inputs"])
    topk_similarity(x[:64], y[:64], 8)
    _trim()
    rise = _peak_rise(lambda: topk_similarity(x, y, case["k"]))
    print(max(0, rise - case["n"] * case["k"] * 12))


# ---- hard negatives


def measure_hard_negatives(case: Row, quick: bool, say: Say) -> list[Row]:
    """From embeddings to a dataset of triplets, with the same window and margin on both sides."""
    from contrastive_ops import mine_hard_negatives
    from contrastive_ops.mining.formats import rows_of
    from contrastive_ops.mining.texts import TextPairs

    n = case["n"]
    case |= {"m": n, "inputs": "clustered", "num_negatives": 5, "range_max": 50}
    y = make_rows(1, n, case["dim"], "clustered")[1]
    generator = torch.Generator().manual_seed(1)
    x = F.normalize(y + 0.08 * torch.randn(n, case["dim"], generator=generator), dim=1)
    queries, answers = [f"query {i}" for i in range(n)], [f"answer {i}" for i in range(n)]
    rules: dict[str, Any] = {"num_negatives": 5, "range_max": 50, "relative_margin": 0.05}

    def embeddings_only() -> Any:
        return mine_hard_negatives(x, y, torch.arange(n), progress=False, **rules)

    try:
        from datasets import Dataset
        from sentence_transformers import util
    except ImportError as error:
        return [_missing(case, "sentence-transformers", "sentence-transformers datasets", error)]

    def ours() -> Any:
        pairs = TextPairs.of(queries, answers)
        return Dataset.from_list(list(rows_of(pairs, embeddings_only(), "triplet")))

    model = SimpleNamespace(
        device=torch.device("cpu"),
        encode_query=lambda *_, **__: x.numpy(),
        encode_document=lambda *_, **__: y.numpy(),
        similarity=util.cos_sim,
        similarity_pairwise=util.pairwise_cos_sim,
    )
    pairs = Dataset.from_dict({"query": queries, "answer": answers})
    calls = {
        _OURS: ours,
        f"{_OURS}, without the dataset": embeddings_only,
        "sentence-transformers": lambda: util.mine_hard_negatives(
            pairs, model, verbose=False, **rules
        ),
    }
    mine, theirs = ours()["negative"], calls["sentence-transformers"]()["negative"]
    embeddings_only()
    same = sum(a == b for a, b in zip(mine, theirs, strict=False))
    times = _times(calls, quick, say)
    rows = [_row(case, name, times) for name in calls]
    rows[-1]["agreement"] = same / max(1, len(mine), len(theirs))
    return rows


# ---- in-batch miners


def measure_miners(case: Row, quick: bool, say: Say) -> list[Row]:
    """Each miner against pytorch-metric-learning's of the same rule; 16 rows of a class."""
    from contrastive_ops import mining

    case |= {"per_class": 16}
    n = case["n"]
    labels = torch.arange(n) // 16
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n // 16, case["dim"], generator=generator)
    x = centers[labels] + 1.5 * torch.randn(n, case["dim"], generator=generator)
    try:
        from pytorch_metric_learning import miners
    except ImportError as error:
        return [_missing(case, "pytorch-metric-learning", "pytorch-metric-learning", error)]
    pairs: dict[str, tuple[Any, Any]] = {
        "batch-hard": (mining.BatchHardMiner(), miners.BatchHardMiner()),
        "semi-hard": (mining.SemiHardMiner(), miners.BatchEasyHardMiner("easy", "semihard")),
        "easy-positive": (mining.EasyPositiveMiner(), miners.BatchEasyHardMiner("easy", "hard")),
        "multi-similarity": (mining.MultiSimilarityMiner(), miners.MultiSimilarityMiner()),
        "pair-margin": (mining.PairMarginMiner(), miners.PairMarginMiner()),
        "distance-weighted": (mining.DistanceWeightedMiner(), miners.DistanceWeightedMiner()),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        calls: dict[str, Callable[[], Any]] = {
            f"{_OURS}, {name}": partial(ours, x, labels),
            f"pytorch-metric-learning, {name}": partial(theirs, x, labels),
        }
        mine, other = (call() for call in calls.values())
        times = _times(calls, quick, say)
        rows += [_row(case, each, times, base=f"{_OURS}, {name}") for each in calls]
        if name != "distance-weighted":
            rows[-1]["agreement"] = _common(mine, other)
    # That library lists every triplet of the batch first, which a large one has no memory for.
    case, x, labels = case | {"n": min(n, 1024)}, x[:1024], labels[:1024]
    ours_any, theirs_any = mining.AnyViolatorMiner(0.0), miners.TripletMarginMiner(0.0)
    calls = {f"{_OURS}, any-violator": lambda: ours_any(x, labels)}
    calls["pytorch-metric-learning, any-violator"] = lambda: theirs_any(x, labels)
    mine, other = (call() for call in calls.values())
    times = _times(calls, True, say)
    rows += [_row(case, each, times, base=f"{_OURS}, any-violator") for each in calls]
    rows[-1]["agreement"] = _common(mine, other)
    return rows


def _common(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """The share of tuples that both have, of those that either has."""
    step = 2 if len(mine) == 4 else len(mine)
    shared = total = 0
    for at in range(0, len(mine), step):
        a, b = (torch.stack(each[at : at + step], 1) for each in (mine, other))
        _, counts = torch.cat([a, b]).unique(dim=0, return_counts=True)
        shared += int((counts == 2).sum())
        total += len(counts)
    return shared / total if total else 1.0


# ---- rows


def _times(calls: dict[str, Callable[[], Any]], quick: bool, say: Say) -> Times:
    budget, rounds = (1.0, 2) if quick else (10.0, 3)
    return interleave(calls, budget=budget, min_rounds=rounds, max_rounds=15, tick=say)


def _row(case: Row, name: str, times: Times, base: str = _OURS) -> Row:
    return {
        "case": dict(case),
        "variant": name,
        "ours": name.startswith(_OURS),
        "seconds": times.median(name),
        "spread": times.spread(name),
        "ratio_to_ours": times.ratio(name, base),
    }


def _missing(case: Row, name: str, packages: str, error: ImportError) -> Row:
    reason = f"not measured: {error}; pip install {packages}"
    return {"case": dict(case), "variant": name, "ours": False, "unavailable": reason}


OTHER = OtherSuite("Mining: top-k, hard negatives, in-batch miners", measure, summarize)

if __name__ == "__main__":
    main()
