"""mine_hard_negatives against its rules, written out in numpy."""

import math
import subprocess
import sys
import textwrap
from functools import partial

import brute
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_ops import mine_hard_negatives
from contrastive_ops.mining.sampling import permuted
from contrastive_ops.mining.shards import read_result
from contrastive_ops.mining.statistics import FILTERS, table

TOLERANCE = 1e-5


def rules_by_hand(x, y, positives, *, excluded=(), range_min=0, range_max=None, **rules):
    """Per query: [(score, index)] that pass, best first, the window's size, drops by filter."""
    bits = x.dtype == torch.uint8
    x, y = (unpacked(rows) if bits else rows for rows in (x, y))
    normalize = rules.pop("normalize", True) and not bits
    scores = brute.scores(x, y, normalize, "l2" if bits else "dot")
    result = []
    for i, row in enumerate(scores):
        own = [p for p in positives[i] if p >= 0]
        ranked = [j for j in np.argsort(-row, kind="stable") if j not in own]
        ranked = [j for j in ranked if (i, j) not in excluded and not np.isnan(row[j])]
        window = ranked[range_min:range_max]
        limits = dict.fromkeys(FILTERS[:3], math.inf)
        if own and rules.get("absolute_margin") is not None:
            limits["absolute_margin"] = min(row[own]) - rules["absolute_margin"]
        if own and rules.get("relative_margin") is not None:
            weakest = min(row[own])
            limits["relative_margin"] = weakest - abs(weakest) * rules["relative_margin"]
        if rules.get("max_score") is not None:
            limits["max_score"] = rules["max_score"]
        tightest = min(limits, key=limits.get)
        low = rules["min_score"] if rules.get("min_score") is not None else -math.inf
        passed = [(row[j], int(j)) for j in window if low <= row[j] <= limits[tightest]]
        dropped = dict.fromkeys(FILTERS, 0)
        dropped[tightest] = sum(row[j] > limits[tightest] for j in window)
        dropped["min_score"] = sum(row[j] < low and row[j] <= limits[tightest] for j in window)
        result.append((passed, len(window), dropped))
    return result


def unpacked(rows):
    return torch.from_numpy(np.unpackbits(rows.numpy(), axis=1))


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 99))
    n, m = draw(st.sampled_from([1, 5, 23])), draw(st.sampled_from([12, 60, 200]))
    x, y = brute.clustered(n, m, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    positives = torch.randint(0, m, (n, draw(st.sampled_from([1, 3]))), generator=generator)
    positives[torch.rand(positives.shape, generator=generator) < 0.2] = -1
    options = {"num_negatives": draw(st.sampled_from([1, 4])), "normalize": draw(st.booleans())}
    options["range_min"] = draw(st.sampled_from([0, 0, 3]))
    if draw(st.booleans()):
        options["range_max"] = options["range_min"] + draw(st.sampled_from([4, 30]))
    for name, values in {
        "absolute_margin": [0.1, 0.0, -0.2],
        "relative_margin": [0.05, 0.5],
        "max_score": [0.7],
        "min_score": [0.1, 0.5],
    }.items():
        if draw(st.integers(0, 2)) == 2:
            options[name] = draw(st.sampled_from(values))
    if options["normalize"] is False and draw(st.booleans()):
        x = -x  # negative scores of positives
    return x, y, positives, options


@given(problems())
def test_top_follows_the_rules(problem):
    x, y, positives, options = problem
    expected = rules_by_hand(x, y, positives.tolist(), **options)
    found = mine_hard_negatives(x, y, positives, progress=False, **options)
    indices, scores = found
    for i, (passed, _, _) in enumerate(expected):
        count = min(options["num_negatives"], len(passed))
        got = [(s, j) for s, j in zip(scores[i].tolist(), indices[i].tolist(), strict=True)]
        assert all(j == -1 and s == -math.inf for s, j in got[count:])
        for (s, j), (t, k) in zip(got, passed, strict=False):
            assert s == pytest.approx(t, abs=TOLERANCE, rel=TOLERANCE)
            assert j == k
    statistics = found.statistics
    assert statistics.queries == len(x)
    assert statistics.negatives == int((indices >= 0).sum())
    assert statistics.missing == int((indices < 0).sum())
    for name in FILTERS[:3]:
        assert statistics.dropped[name] == sum(dropped[name] for _, _, dropped in expected)
    if "range_max" in options:
        assert statistics.examined == sum(size for _, size, _ in expected)
        assert statistics.dropped["min_score"] == sum(d["min_score"] for _, _, d in expected)


@given(problems(), st.integers(0, 5))
@settings(max_examples=25)
def test_random_draws_from_what_passes(problem, seed):
    x, y, positives, options = problem
    expected = rules_by_hand(x, y, positives.tolist(), **options)
    found = mine_hard_negatives(
        x, y, positives, sampling="random", seed=seed, progress=False, **options
    )
    for i, (passed, _, _) in enumerate(expected):
        got = [j for j in found.indices[i].tolist() if j >= 0]
        assert len(got) == len(set(got)) == min(options["num_negatives"], len(passed))
        assert set(got) <= {j for _, j in passed}
        assert found.scores[i].tolist() == sorted(found.scores[i].tolist(), reverse=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"relative_margin": 0.3},
        {"absolute_margin": 2.0, "range_max": 25},
        {"sampling": "random", "absolute_margin": 0.0, "range_min": 2},
    ],
)
def test_bits_and_bytes_follow_the_rules(dtype, normalize, options):
    """Margins and limits are of the scores that rank: of bits, minus the Hamming distance."""
    generator = torch.Generator().manual_seed(0)
    low, high = (0, 256) if dtype == torch.uint8 else (-127, 128)
    x, y = (torch.randint(low, high, (n, 6), generator=generator).to(dtype) for n in (9, 60))
    positives = torch.randint(0, 60, (9, 2), generator=generator)
    options = {"num_negatives": 4, "normalize": normalize, **options}
    found = mine_hard_negatives(x, y, positives, progress=False, **options)
    random = options.pop("sampling", "top") == "random"
    del options["num_negatives"]
    expected = rules_by_hand(x, y, positives.tolist(), **options)
    for i, (passed, _, _) in enumerate(expected):
        count = min(4, len(passed))
        got = found.indices[i, :count].tolist()
        assert found.indices[i, count:].tolist() == [-1] * (4 - count)
        known = {j: s for s, j in passed}
        near = partial(pytest.approx, abs=TOLERANCE, rel=TOLERANCE)
        assert found.scores[i, :count].tolist() == near([known[j] for j in got])
        if not random:
            assert [known[j] for j in got] == near([s for s, _ in passed[:4]])


def test_numbers_of_numpy_and_no_positives(tmp_path):
    x, y = brute.clustered(6, 40, 8)
    none = torch.full((6,), -1)
    whole = mine_hard_negatives(x, y, none, num_negatives=3, relative_margin=0.5, progress=False)
    found = mine_hard_negatives(
        x,
        y,
        none[:, None][:, :0],
        num_negatives=np.int64(3),
        relative_margin=np.float32(0.5),
        shard_rows=np.int64(4),
        output=tmp_path / "out.npz",
        progress=False,
    )
    assert torch.equal(found.indices, whole.indices)
    assert found.positive_scores.isnan().all()


def test_every_look_at_the_corpus_is_counted():
    x, y = brute.clustered(6, 40, 8)
    options = {"num_negatives": 3, "progress": False}
    for extra, looks in (({}, 1), ({"range_min": 2}, 2), ({"range_min": 2, "range_max": 9}, 1)):
        found = mine_hard_negatives(x, y, torch.arange(6), **options, **extra)
        assert found.statistics.pairs == looks * 6 * 40


def test_an_index_beyond_a_stream_excludes_nothing():
    x, y = brute.clustered(6, 40, 8)
    options = {"num_negatives": 3, "range_max": 9, "progress": False}
    whole = mine_hard_negatives(x, y, torch.arange(6), **options)
    beyond = torch.full((6,), 1 << 62)
    found = mine_hard_negatives(x, y.split(7), torch.arange(6), exclude=beyond, **options)
    assert torch.equal(found.indices, whole.indices)


@pytest.mark.parametrize("range_max", [None, 40])
def test_random_draws_are_uniform_and_belong_to_the_seed(range_max):
    x, y = brute.clustered(2000, 60, 8)
    x = x[:1].expand(2000, 8)  # one query, many draws
    positives = torch.zeros(2000, dtype=torch.int64)

    def mined(**options):
        return mine_hard_negatives(
            x, y, positives, num_negatives=3, sampling="random", range_max=range_max,
            progress=False, **options,
        ).indices  # fmt: skip

    first = mined(seed=1)
    assert torch.equal(first, mined(seed=1, shard_rows=77))
    assert torch.equal(first, mined(seed=1, backend="torch"))
    assert not torch.equal(first, mined(seed=2))
    counts = torch.bincount(first.flatten(), minlength=60).double()
    allowed = counts > 0
    assert allowed.sum() == (range_max or 59)
    assert not allowed[0]
    # Chi-squared with 39 or 58 degrees of freedom: 110 is beyond one in a hundred thousand.
    expected = 6000 / allowed.sum()
    assert ((counts[allowed] - expected).square() / expected).sum() < 110
    # What comes first says nothing about what comes with it.
    together = torch.corrcoef(torch.stack([first.min(1).values, first.max(1).values]).double())
    assert abs(together[0, 1]) < 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000])
def test_permutations_are_permutations(count):
    rows = torch.arange(5)[:, None]
    place = torch.arange(count)[None]
    found = permuted(place, count, rows, seed=9)
    assert torch.equal(found.sort(1).values, place.expand(5, count))
    if count >= 64:
        assert len({tuple(row) for row in found.tolist()}) == 5


def test_relative_margin_is_right_for_negative_scores():
    """-0.5 with 10 % is -0.55, not -0.45."""
    x = torch.tensor([[1.0, 0.0]])
    angles = [-0.5, -0.52, -0.56, -0.6]
    y = torch.tensor([[s, math.sqrt(1 - s * s)] for s in angles])
    found = mine_hard_negatives(
        x, y, torch.tensor([0]), num_negatives=3, relative_margin=0.1, progress=False
    )
    assert found.indices.tolist() == [[2, 3, -1]]
    assert found.statistics.dropped["relative_margin"] == 1
    assert found.positive_scores.item() == pytest.approx(-0.5)


def test_equal_scores_stay_at_every_limit():
    """All comparisons are strict: a duplicate of the positive passes a margin of 0."""
    x, y = brute.clustered(4, 30, 8)
    y[7] = y[3]
    options = {"num_negatives": 30, "absolute_margin": 0.0, "progress": False}
    for extra in ({}, {"range_max": 30}):
        found = mine_hard_negatives(x, y, torch.full((4,), 3), **options, **extra)
        assert (found.indices == 7).any(1).all()
        assert not (found.indices == 3).any()


def test_streams_maps_and_shards_give_what_the_tensor_gives(tmp_path, monkeypatch):
    monkeypatch.setattr("contrastive_ops.mining.corpus.BLOCK_BYTES", 3000)
    x, y = brute.clustered(40, 500, 10)
    positives = torch.randint(0, 500, (40, 2))
    options = {"num_negatives": 5, "range_max": 60, "relative_margin": 0.05, "progress": False}
    whole = mine_hard_negatives(x, y, positives, **options)
    np.save(tmp_path / "y.npy", y.numpy())
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    for corpus in (mapped, y.split(64), iter(y.split(99))):
        found = mine_hard_negatives(x, corpus, positives, **options)
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.scores, whole.scores)
        assert torch.equal(found.positive_scores, whole.positive_scores)
        assert found.statistics.dropped == whole.statistics.dropped
    del options["range_max"]
    whole = mine_hard_negatives(x, y, positives, **options)
    for shard_rows in (1, 7, 40):
        found = mine_hard_negatives(x, mapped, positives, shard_rows=shard_rows, **options)
        assert torch.equal(found.indices, whole.indices)
        assert found.statistics.dropped == whole.statistics.dropped


MINE = """
import os, sys
import numpy as np, torch
from contrastive_ops import mine_hard_negatives
from contrastive_ops.mining import hard_negatives
torch.manual_seed(0)
x, y = torch.randn(50, 8), torch.randn(300, 8)
mine, done = hard_negatives._mine, []
def counted(*args):
    if len(done) == int(sys.argv[2]):
        os._exit(9)  # no clean-up of any kind
    done.append(args[3])
    return mine(*args)
hard_negatives._mine = counted
found = mine_hard_negatives(
    x, y, torch.arange(50), num_negatives=4, relative_margin=0.05, shard_rows=10,
    output=sys.argv[1], progress=False,
)
print(done)
"""


def test_a_killed_run_goes_on_behind_its_last_shard(tmp_path):
    def run(name, shards):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MINE), str(tmp_path / name), str(shards)],
            capture_output=True,
            text=True,
        )

    assert run("whole.npz", 99).stdout.strip() == "[0, 10, 20, 30, 40]"
    assert run("killed.npz", 3).returncode == 9
    assert not (tmp_path / "killed.npz").exists()
    torn = tmp_path / "killed.npz.shards" / ".partial-1-000000000030.npz"
    torn.write_bytes(b"half")
    assert run("killed.npz", 1).returncode == 9
    assert run("killed.npz", 99).stdout.strip() == "[40]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.npz", "whole.npz"]
    whole, resumed = (read_result(tmp_path / name) for name in ("whole.npz", "killed.npz"))
    assert torch.equal(whole.indices, resumed.indices)
    assert torch.equal(whole.scores, resumed.scores)
    assert whole.statistics == resumed.statistics


def test_shards_of_another_run_are_refused(tmp_path):
    x, y = brute.clustered(20, 50, 8)
    output = tmp_path / "out.npz"

    def mine(**options):
        arguments = {"num_negatives": 2, "shard_rows": 5, "progress": False, **options}
        return mine_hard_negatives(x, y, torch.arange(20), output=output, **arguments)

    mine()
    folder = tmp_path / "out.npz.shards"
    folder.mkdir()
    (folder / "settings.json").write_text('{"rules": {}, "shard_rows": 5, "inputs": "x"}')
    with pytest.raises(ValueError, match=r"output: .* another run"):
        mine()


def test_the_table_says_what_was_dropped():
    x, y = brute.clustered(30, 100, 8)
    found = mine_hard_negatives(
        x, y, torch.arange(30), num_negatives=5, range_max=20, relative_margin=0.3, progress=False
    )
    text = table(found.statistics, found.positive_scores, found.scores)
    dropped = found.statistics.dropped["relative_margin"]
    assert f"relative_margin dropped {dropped:,} of {found.statistics.examined:,}" in text
    mean = float(found.positive_scores.double().mean())
    assert f"{mean:.4f}" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_negatives": 0}, "num_negatives: got 0"),
        ({"range_min": -1}, "range_min: got -1"),
        ({"range_max": 2}, "range_max: got 2, expected an integer >= 3"),
        ({"relative_margin": -0.1}, "relative_margin: got -0.1"),
        ({"max_score": math.nan}, "max_score: got nan"),
        ({"sampling": "best"}, "sampling: got 'best'"),
        ({"positives": torch.tensor([0, 1, 50, 3])}, "positives: got index 50"),
        ({"positives": torch.zeros(4)}, "positives: got torch.float32"),
        ({"corpus": iter([torch.ones(9, 8)])}, "range_max: got None"),
        ({"corpus": iter([torch.ones(9, 8)]), "range_max": 5, "output": "x.npz"}, "corpus: got an"),
        ({"output": "x.json"}, "output: got 'x.json'"),
        ({"shard_rows": 0}, "shard_rows: got 0"),
        ({"shard_rows": 2.5}, "shard_rows: got 2.5"),
        ({"normalize": "no"}, "normalize: got 'no'"),
        ({"exclude": torch.full((4,), 30)}, "exclude: got index 30"),
        ({"positives": [[0], [1, 2], [3], [4]]}, "positives: got no matrix"),
        (
            {"query_ids": torch.arange(4), "corpus_ids": torch.arange(29)},
            r"corpus_ids: got shape \(29,\)",
        ),
    ],
)
def test_bad_input_names_the_argument(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "queries": torch.ones(4, 8),
        "corpus": torch.ones(30, 8),
        "positives": torch.arange(4),
        "num_negatives": 3,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        mine_hard_negatives(**arguments)
