"""topk_similarity and row_select: every backend and scan against brute force, to the bit."""

import math
import subprocess
import sys

import brute
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import contrastive_ops
from contrastive_ops import topk_similarity
from contrastive_ops.engine import extension
from contrastive_ops.engine.exclusions import Exclusions
from contrastive_ops.engine.select import SCANS, row_select

WORKING = [name for name, status in contrastive_ops.backends().items() if status == "ok"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KINDS = ["gaussian", "duplicates", "equal", "nan", "infinite", "clustered", "zeros", "subnormal"]


@st.composite
def problems(draw):
    """(queries, corpus, k, options)."""
    n = draw(st.sampled_from([1, 2, 11, 12, 13, 40]))
    m = draw(st.sampled_from([1, 2, 15, 31, 33, 100, 257, 700]))
    dim = draw(st.sampled_from([1, 2, 7, 8, 9, 31, 64, 100]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(n, dim, generator=generator)
    y = torch.randn(m, dim, generator=generator)
    kind = draw(st.sampled_from(KINDS))
    pick = torch.rand(m, generator=generator)
    if kind == "duplicates":
        y = y[(pick * max(1, m // 4)).long()]
    elif kind == "equal":
        y = y[:1].expand(m, dim)
    elif kind == "clustered":
        y = 0.01 * y + x[(pick * n).long()]
    elif kind == "zeros":
        y, x = y.masked_fill(pick[:, None] < 0.4, 0), x.clone()
        x[0] = 0
    elif kind == "subnormal" and dtype is torch.float32:
        x, y = x * 1e-30, y * 1e-10
    x, y = x.to(dtype), y.to(dtype).clone()
    if kind == "nan":
        y[pick < 0.3, -1], x[-1, 0] = math.nan, math.nan
    elif kind == "infinite":
        y[pick < 0.3, -1] = math.inf
    options = {
        "normalize": draw(st.booleans()),
        "metric": draw(st.sampled_from(["dot", "l2"])),
    }
    excluded = draw(st.sampled_from([0, 0, 1, 4, m]))
    if excluded:
        index = torch.randint(-1, m, (n, excluded), generator=generator)
        options["exclude"] = Exclusions.of(index)
    return x, y, draw(st.sampled_from(sorted({1, min(m, 3), min(m, 32), m}))), options


def assert_equal(found, expected):
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores)
    assert (found.above is None) == (expected.above is None)
    assert found.above is None or torch.equal(found.above, expected.above)
    assert found.nan_rows == expected.nan_rows


@given(problems(), st.data())
def test_every_backend_scan_and_block_gives_the_same_bits(problem, data):
    x, y, k, options = problem
    reference = row_select(x, y, k, backend="reference", **options)
    if data.draw(st.booleans()):
        limit = reference.scores[:, data.draw(st.integers(0, k - 1))]
        options["upper"] = torch.where(limit.isfinite(), limit, torch.full_like(limit, 0.1))
        reference = row_select(x, y, k, backend="reference", **options)
    for backend in WORKING:
        for scan in SCANS if backend == "cpu" else SCANS[:1]:
            for budget in (None, 1 << 20):
                found = row_select(
                    x, y, k, backend=backend, scan=scan, workspace_bytes=budget, **options
                )
                assert_equal(found, reference)
        cut = data.draw(st.integers(0, len(y)))
        found = row_select(x, y[:cut], k, backend=backend, **options)
        found = row_select(x, y[cut:], k, backend=backend, first=cut, into=found, **options)
        assert_equal(found, reference)


@given(problems())
def test_against_brute_force_in_float64(problem):
    x, y, k, options = problem
    exclude = options.pop("exclude", None)
    pairs = []
    if exclude is not None:
        pairs = list(zip(*(part.tolist() for part in exclude.pairs()), strict=True))
    expected = brute.scores(x, y, **options)
    if np.isinf(expected).any():
        return
    tolerance = 1e-6 if x.dtype is not torch.float64 else 1e-13
    scale = max(1.0, float(np.nanmax(np.abs(expected), initial=0)))
    for backend in WORKING:
        found = row_select(x, y, k, exclude=exclude, backend=backend, **options)
        brute.check(found.scores, found.indices, expected, pairs, tolerance=tolerance * scale)


def test_every_instruction_set_gives_the_same_bits(isas):
    x, y = brute.clustered(50, 3000, 48)
    expected = row_select(x, y, 20, backend="reference")

    def run(name):
        for scan in SCANS:
            assert_equal(row_select(x, y, 20, backend="cpu", scan=scan), expected)

    isas(run)


@pytest.mark.usefixtures("cpu_kernel", "restored_threads")
def test_threads_and_budgets_change_nothing():
    x, y = brute.clustered(700, 9000, 40, seed=3)
    expected = row_select(x, y, 64, backend="torch")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for budget in (1 << 20, 8 << 20, None):
            found = row_select(x, y, 64, backend="cpu", workspace_bytes=budget)
            assert_equal(found, expected)


@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.parametrize("scan", SCANS[1:])
def test_the_scan_leaves_few_pairs_to_score(scan):
    x, y = brute.clustered(64, 20000, 128)
    found = row_select(x, y, 10, backend="cpu", scan=scan)
    assert found.pairs == 64 * 20000
    assert 64 * 10 <= found.scored < 0.1 * found.pairs


@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_many_near_equal_are_scanned_anew(metric):
    """Candidates that the first scan's bound leaves together; pieces change nothing."""
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(10, 64, generator=generator)
    y, x = (
        base[torch.randint(0, 10, (rows,), generator=generator)]
        + 0.02 * torch.randn(rows, 64, generator=generator)
        for rows in (1500, 60)
    )
    expected = row_select(x, y, 3, metric=metric, backend="reference")
    found = row_select(x, y, 3, metric=metric, backend="cpu")
    assert_equal(found, expected)
    if row_select(x, y, 3, metric=metric, backend="cpu", scan="int8").scored > 0.3 * found.pairs:
        assert found.scored < 0.15 * found.pairs
    limit = expected.scores[:, 1] + 1e-6
    expected = row_select(x, y, 3, metric=metric, backend="reference", upper=limit)
    for budget in (1 << 20, None):
        found = row_select(
            x, y, 3, metric=metric, backend="cpu", upper=limit, workspace_bytes=budget
        )
        assert_equal(found, expected)
    first = row_select(x, y[:700], 3, metric=metric, backend="cpu", upper=limit)
    found = row_select(
        x, y[700:], 3, metric=metric, backend="cpu", upper=limit, first=700, into=first
    )
    assert_equal(found, expected)


@pytest.mark.usefixtures("cpu_kernel")
def test_bytes_are_scanned_as_they_are():
    """No bytes are rounded to other bytes: the scan leaves what a scan in float32 leaves."""
    generator = torch.Generator().manual_seed(5)
    y, x = (
        torch.randint(-45, 46, (rows, 96), dtype=torch.int8, generator=generator)
        for rows in (6000, 24)
    )
    for normalize in (False, True):
        expected = row_select(x, y, 5, normalize=normalize, backend="reference")
        scored = []
        for scan in ("float32", "int8"):
            found = row_select(x, y, 5, normalize=normalize, backend="cpu", scan=scan)
            assert_equal(found, expected)
            scored.append(found.scored)
        assert scored[1] <= 1.05 * scored[0]


@pytest.mark.usefixtures("cpu_kernel")
def test_k_beyond_a_thousand_and_all_of_it():
    x, y = brute.clustered(9, 5000, 32)
    for k in (1024, 1500, 5000):
        found = row_select(x, y, k, backend="cpu")
        assert_equal(found, row_select(x, y, k, backend="reference"))
        assert found.indices.sort(1).values[:, 0].min() >= 0


@pytest.mark.parametrize("normalize", [True, False])
def test_int8_is_exact(backend, normalize):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-128, 128, (13, 70), dtype=torch.int8, generator=generator)
    y = torch.randint(-128, 128, (900, 70), dtype=torch.int8, generator=generator)
    found = topk_similarity(x, y, 25, normalize=normalize, backend=backend)
    if normalize:
        brute.check(found.scores, found.indices, brute.scores(x, y))
        return
    exact = x.long() @ y.long().T
    best = exact.argsort(dim=1, descending=True, stable=True)[:, :25]
    assert torch.equal(found.indices, best)
    assert torch.equal(found.scores.long(), exact.gather(1, best))


def test_packed_bits_score_minus_their_hamming_distance(backend):
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (7, 12), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 256, (500, 12), dtype=torch.uint8, generator=generator)
    bits = [torch.from_numpy(np.unpackbits(rows.numpy(), axis=1)).long() for rows in (x, y)]
    distance = (bits[0][:, None] != bits[1][None]).sum(2)
    best = distance.argsort(dim=1, stable=True)[:, :30]  # ties to the lower index
    found = topk_similarity(x, y, 30, backend=backend)
    assert torch.equal(found.indices, best)
    assert torch.equal(-found.scores.long(), distance.gather(1, best))


def test_everything_excluded_is_padding(backend):
    x, y = brute.clustered(3, 20, 8)
    everything = torch.arange(20).expand(3, 20)
    scores, indices = topk_similarity(x, y, 5, exclude=everything, backend=backend)
    assert (indices == -1).all()
    assert (scores == -math.inf).all()


def test_ids_leave_out_equal_texts(backend):
    x, y = brute.clustered(20, 300, 16)
    query_ids = torch.arange(20) % 7
    corpus_ids = torch.arange(300) % 10
    found = topk_similarity(x, y, 40, query_ids=query_ids, corpus_ids=corpus_ids, backend=backend)
    pairs = [(i, j) for i in range(20) for j in range(300) if query_ids[i] == corpus_ids[j]]
    brute.check(found.scores, found.indices, brute.scores(x, y), pairs)
    assert (corpus_ids[found.indices] != query_ids[:, None]).all()


def test_memory_maps_and_iterables_are_the_same_corpus(tmp_path, monkeypatch, backend):
    monkeypatch.setattr("contrastive_ops.mining.corpus.BLOCK_BYTES", 5000)
    x, y = brute.clustered(9, 400, 16)
    whole = topk_similarity(x, y, 12, backend=backend)
    np.save(tmp_path / "y.npy", y.numpy())
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    for corpus in (y.numpy(), mapped, y.split(37), iter(y.split(150))):
        found = topk_similarity(x.numpy(), corpus, 12, backend=backend)
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.scores, whole.scores)


def test_rows_without_direction_are_counted_in_a_warning(backend):
    x, y = brute.clustered(4, 30, 8)
    y[3, 2], y[7, 0] = math.nan, math.inf
    with pytest.warns(RuntimeWarning, match="2 of 30 rows"):
        indices = topk_similarity(x, y, 30, backend=backend).indices
    assert not {3, 7} & set(indices.flatten().tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 31}, "k: got 31, expected at most 30"),
        ({"k": 2.0}, "k: got 2.0"),
        ({"metric": "cosine"}, "metric: got 'cosine'"),
        ({"corpus": torch.ones(30, 9)}, "corpus: got width 9, expected 8"),
        ({"corpus": torch.ones(30, 8).double()}, "corpus: got torch.float64"),
        ({"corpus": torch.ones(30, 8).long()}, "corpus: got torch.int64"),
        ({"queries": torch.ones(8)}, "queries: got shape"),
        ({"queries": torch.ones(0, 8)}, "queries: got no rows"),
        ({"exclude": torch.zeros(5, dtype=torch.long)}, "exclude: got shape"),
        ({"exclude": torch.full((4,), -2)}, "exclude: got index -2"),
        ({"exclude": torch.full((4,), 30)}, "exclude: got index 30, expected less than 30"),
        ({"exclude": [[1], [2, 3], [4], [5]]}, "exclude: got no matrix"),
        ({"query_ids": torch.arange(4)}, "corpus_ids: got none"),
        ({"query_ids": torch.arange(4), "corpus_ids": torch.arange(9)}, "corpus_ids: got shape"),
        ({"normalize": "no"}, "normalize: got 'no'"),
        ({"workspace_bytes": 1e6}, "workspace_bytes: got 1000000.0"),
        ({"workspace_bytes": -1}, "workspace_bytes: got -1"),
        ({"queries": np.full((4, 8), "a")}, "queries: got an array of <U1"),
        ({"corpus": iter([torch.ones(2, 8)]), "k": 3}, "k: got 3, expected at most 2"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    arguments = {"queries": torch.ones(4, 8), "corpus": torch.ones(30, 8), "k": 3, **change}
    with pytest.raises(ValueError, match=message):
        topk_similarity(**arguments)


def test_arrays_of_any_order_are_read():
    x, y = brute.clustered(5, 30, 8)
    expected = topk_similarity(x, y, 4)
    array = y.numpy()
    backwards = array[::-1].copy()[::-1]
    for corpus in (np.asfortranarray(array), array.astype(">f4"), backwards):
        for found in (topk_similarity(x, corpus, 4), topk_similarity(x, [corpus], 4)):
            assert torch.equal(found.indices, expected.indices)
            assert torch.equal(found.scores, expected.scores)


@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded():
    """In a process of its own: peak beyond inputs and results."""
    code = """
import resource, torch
from contrastive_ops import topk_similarity
x, y = torch.randn(2048, 64), torch.randn(150_000, 64)
topk_similarity(x[:64], y[:64], 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
topk_similarity(x, y, 32)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dense = 2048 * 150_000 * 4 / 2**20
    assert float(done.stdout) < 64 < dense


def test_the_kernel_refuses_what_would_break_memory():
    kernel, reason = extension.load()
    if kernel is None:
        pytest.skip(reason)
    x, y = torch.randn(3, 8), torch.randn(9, 8)
    scores, indices = torch.full((3, 2), -math.inf), torch.full((3, 2), -1)
    begin = torch.tensor([0, 2, 2, 2])

    index = torch.tensor([1, 3])

    def call(exclude=index, begin=begin, scores=scores, indices=indices):
        kernel.row_select(
            x, y, True, False, 0, 0, begin, exclude, None, None, 1 << 20, scores, indices
        )

    call()
    for bad in (
        {"exclude": torch.tensor([3, 1])},
        {"begin": torch.tensor([0, 2, 2, 3])},
        {"scores": scores.double()},
        {"indices": indices[:, :1]},
    ):
        with pytest.raises(ValueError, match=r"exclusions|results"):
            call(**bad)
