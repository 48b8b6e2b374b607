"""What only the CUDA kernels have: edges of tiles, two scans, lists that overflow, bounds."""

import math

import brute
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contrastive_ops
from contrastive_ops import info_nce
from contrastive_ops.engine import backends
from contrastive_ops.engine.cuda import library, selection
from contrastive_ops.engine.select import Exclusions, row_select

SCANS = {"mma.sync": 8, "wgmma": 9}
FIELDS = ("indices", "scores", "above", "nan_rows")


@pytest.fixture(params=SCANS)
def scan(request):
    """Runs a test under one scan."""
    kernels = library.load()[0]._library
    kernels.co_force_scan(SCANS[request.param])
    yield request.param
    kernels.co_force_scan(0)


def assert_same(found, expected):
    for name in FIELDS:
        a, b = getattr(found, name), getattr(expected, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def both(x, y, k, **options):
    """What the kernels find and what the definition says."""
    budget = options.pop("workspace_bytes", None)
    found = row_select(x, y, k, backend="cuda", workspace_bytes=budget, **options)
    assert_same(found, row_select(x, y, k, backend="cpu", **options))
    return found


@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.parametrize(("dtype", "metric"), [(torch.bfloat16, "dot"), (torch.float64, "l2")])
def test_stripes_and_chunks(scan, dtype, metric):
    """Several of each, more slices than a ring has stages, exclusions and a limit across tiles."""
    x, y = (rows.to(dtype) for rows in brute.clustered(150, 700, 260, seed=5))
    options = {"metric": metric, "normalize": metric == "dot"}
    exclude = Exclusions.of(torch.randint(-1, 700, (150, 12)))
    free = both(x, y, 7, exclude=exclude, workspace_bytes=1, **options)
    assert free.scored < free.pairs  # the lists chose
    found = both(x, y, 7, exclude=exclude, upper=free.scores[:, 3], **options)
    assert found.above.sum() > 0
    split = row_select(x, y[:333], 7, backend="cuda", exclude=exclude, **options)
    split = row_select(
        x, y[333:], 7, backend="cuda", exclude=exclude, first=333, into=split, **options
    )
    assert torch.equal(split.indices, free.indices)
    assert torch.equal(split.scores, free.scores)


@pytest.mark.usefixtures("cpu_kernel")
@settings(max_examples=8)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 127, 129, 260]),
    st.sampled_from([31, 256, 257, 600]),
    st.sampled_from([1, 64, 65, 130]),
    st.sampled_from([1, 33]),
    st.sampled_from([0, -24, 40]),
    st.sampled_from([8, 9]),
)
def test_edges_of_tiles(seed, n, m, dim, k, power, scan):
    x, y = brute.clustered(n, m, dim, seed)
    x, y = x * 2.0**power, y * 2.0 ** -(power // 2)
    kernels = library.load()[0]._library
    kernels.co_force_scan(scan)
    try:
        both(x, y, min(k, m), normalize=bool(seed % 2), workspace_bytes=1 if seed % 3 else None)
    finally:
        kernels.co_force_scan(0)


@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.parametrize("limited", [False, True])
def test_lists_that_overflow(limited):
    """Equal rows leave every group open: ties go to the lower index all the same."""
    x, y = brute.clustered(3, 3500, 16, seed=1)
    y[:3400] = y[0]
    y[-40:] = x[0] + 0.01 * y[-40:]
    plan = selection.Plan.of(3, 3500, 1, 2, 4, 1 << 20)
    assert plan.capacity * selection.GROUP < 3400
    upper = None
    if limited:
        upper = row_select(x, y, 60, backend="cpu").scores[:, 20]
        x[1] = -x[1]
    exclude = Exclusions.of(torch.tensor([[0, 5, 2], [3499, -1, 1], [7, 7, 0]]))
    found = both(x, y, 2, exclude=exclude, upper=upper, workspace_bytes=1 << 20)
    assert found.scored >= 3500


@pytest.mark.usefixtures("cpu_kernel")
def test_many_winners():
    x, y = brute.clustered(2, 2300, 8)
    both(x, y, backends.LARGEST_SELECTION)
    both(x, y, backends.LARGEST_SELECTION + 1)  # another backend's


def test_labels_are_exclusions(scan):
    x, y = brute.clustered(140, 300, 20)
    labels = (torch.randint(-4, 9, (140,)) << 40, torch.randint(-4, 9, (300,)) << 40)
    upper = torch.full((140,), 0.6)
    found = row_select(x, y, 5, labels=labels, upper=upper, backend="cuda")
    exclude = Exclusions.equal(*labels)
    assert_same(found, row_select(x, y, 5, exclude=exclude, upper=upper, backend="reference"))
    for i, row in enumerate(found.indices.tolist()):
        assert all(j < 0 or labels[0][i] != labels[1][j] for j in row)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_bound_holds_and_is_narrow(scan, monkeypatch, metric, dtype, normalize):
    """Each listed group's best score lies within its entry's bounds, which are close."""
    x, y = brute.clustered(130, 512, 200, seed=2)
    x, y = (x * 3).to(dtype), (y * 0.2).to(dtype)
    seen = []
    score = selection._Stripe.score

    def watched(stripe, *args):
        a, n = stripe.a, len(stripe.query)
        entries = a.tensor("list").view(n, -1, 4).clone()
        seen.append((entries, a.tensor("list_size"), a.tensor("x_scale"), a.tensor("x_norm")))
        return score(stripe, *args)

    monkeypatch.setattr(selection._Stripe, "score", watched)
    options = {"metric": metric, "normalize": normalize}
    row_select(x, y, 16, backend="cuda", **options)  # k groups: all are listed
    (entries, sizes, scale, norm), *none = seen
    assert not none
    assert (sizes == 16).all()
    exact = torch.from_numpy(brute.scores(x, y, **options))
    best = exact.unflatten(1, (16, 32)).amax(2)
    low, high = (entries[:, :16, i].contiguous().view(torch.float32).double() for i in (0, 1))
    scale, norm = scale[:130, None].double(), norm[:130, None]
    if metric == "l2":
        best = (best + norm**2) / 2
    assert ((low * scale <= best) & (best <= high * scale)).all()
    size = norm * (1 if normalize else float(y.double().norm(dim=1).max()))
    if metric == "l2":
        size = size * 4
    # 16-bit rows are exact, but for their norms; others are rounded to 11 bits.
    widest = ((high - low) * scale / size).max()
    assert widest < (3e-4 if dtype == torch.bfloat16 else 1.5e-3)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_limits_at_the_ends(value):
    x, y = brute.clustered(5, 70, 9)
    upper = torch.full((5,), value)
    found = row_select(x, y, 4, upper=upper, backend="cuda")
    assert_same(found, row_select(x, y, 4, upper=upper, backend="reference"))


def test_strided_rows():
    x, y = brute.clustered(9, 90, 24)
    wide = torch.zeros(90, 50)
    wide[:, 1:49:2] = y
    tall = torch.zeros(18, 24)
    tall[::2] = x
    found = row_select(tall[::2], wide[:, 1:49:2], 6, backend="cuda")
    assert_same(found, row_select(x, y, 6, backend="reference"))


def test_the_scan_leaves_few_pairs_to_score():
    x, y = brute.clustered(40, 6000, 64)
    found = row_select(x, y, 4, backend="cuda")
    assert 40 * 4 <= found.scored < 0.06 * found.pairs


def test_where_it_can_run_it_is_chosen_for_selection_alone():
    cpu = torch.device("cpu")
    kind = torch.float32
    assert backends.choose_selection("cuda", cpu, kind, 2048) == "cuda"
    assert backends.choose_selection("cuda", cpu, kind, 2049) in ("cpu", "torch")
    assert backends.choose_selection("torch", cpu, kind, 32) == "torch"
    assert backends.choose_selection(None, cpu, kind, 32) != "cuda"  # not what tests build
    rows = torch.randn(2, 6, 5)
    assert torch.equal(info_nce(*rows, backend="cuda"), info_nce(*rows))
    with pytest.raises(ValueError, match="backend: 'cuda' got tensors on cuda:0, expected them on"):
        backends.choose_selection("cuda", torch.device("cuda", 0), kind, 32)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    assert "cannot be loaded" in contrastive_ops.backends()["cuda"]
    monkeypatch.delenv(library.LIBRARY_VARIABLE)
    record = tmp_path / "_build.json"
    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for text, expected in (
        (None, "not built"),
        ('{"cuda": {"built": false, "reason": "no nvcc"}}', "not built (no nvcc)"),
        ('{"cuda": {"built": true, "cuda": "13.0"}}', "built for CUDA 13.0, torch has 12.8"),
        ('{"cuda": {"built": true, "cuda": "12.6"}}', None),
    ):
        if text is not None:
            record.write_text(text)
        reason = library.why_not_built()
        assert reason == expected if expected is None else expected in reason
