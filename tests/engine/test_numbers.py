"""The numbers contract: errors against float64, and inputs that break careless arithmetic."""

import math
from functools import partial

import dense
import numpy as np
import oracle
import pytest
import torch
from cases import normal

import contrastive_ops
from contrastive_ops import info_nce

HALF = [torch.bfloat16, torch.float16]
SINGLE = [torch.float32, *HALF]
both = pytest.mark.parametrize("symmetric", [False, True])
every_dtype = pytest.mark.parametrize("dtype", [*SINGLE, torch.float64])
single_dtype = pytest.mark.parametrize("dtype", SINGLE)


def related(n: int, m: int, width: int, dtype: torch.dtype, seed: int = 0):
    """Rows as a model in training has them: every key resembles its query somewhat."""
    query, key = normal(n, width, seed=60 + 2 * seed), normal(m, width, seed=61 + 2 * seed)
    key[:n] += query
    return [query.to(dtype), key.to(dtype)]


def clustered(n: int, width: int, dtype: torch.dtype, seed: int = 0):
    """Rows as a trained model has them: clusters, with near-duplicates within."""
    centres, *noise = (normal(n, width, seed=70 + 3 * seed + i) for i in range(3))
    query = centres[torch.arange(n) % 8] + 0.1 * noise[0]
    return [query.to(dtype), (query + 0.05 * noise[1]).to(dtype)]


def unrelated(n: int, m: int, width: int, dtype: torch.dtype, seed: int = 0):
    return [normal(rows, width, seed=80 + 2 * seed + rows % 2, dtype=dtype) for rows in (n, m)]


def opposed(n: int, width: int, dtype: torch.dtype, seed: int = 0):
    """All cosines near -1."""
    query = normal(1, width, seed=90 + seed) + 0.05 * normal(n, width, seed=100 + seed)
    return [query.to(dtype), (0.05 * normal(n, width, seed=110 + seed) - query.flip(0)).to(dtype)]


@both
@single_dtype
@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.05, 0.5, 10.0])
def test_error_rule(temperature, dtype, symmetric, backend):
    dense.check_error_rule(
        partial(related, 77, 101, 67, dtype),
        temperature,
        backend,
        better=dtype in HALF,
        symmetric=symmetric,
    )


@both
@single_dtype
def test_error_rule_on_trained_rows(dtype, symmetric, backend):
    rows = partial(clustered, 96, 48, dtype)
    dense.check_error_rule(rows, 0.02, backend, symmetric=symmetric)


@both
@single_dtype
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_error_rule_of_reductions(reduction, dtype, symmetric, backend):
    rows = partial(related, 61, 61, 40, dtype)
    dense.check_error_rule(rows, 0.05, backend, symmetric=symmetric, reduction=reduction)


@single_dtype
def test_error_rule_with_negatives(dtype, backend):
    dense.check_error_rule(
        lambda seed: [*related(35, 37, 24, dtype, seed), normal(67, 24, seed=seed, dtype=dtype)],
        0.05,
        backend,
    )


@both
@single_dtype
def test_error_rule_of_dot_products(dtype, symmetric, backend):
    """Logits far beyond what exp can take."""
    dense.check_error_rule(
        lambda seed: [3 * x for x in related(61, 61, 48, dtype, seed)],
        0.5,
        backend,
        symmetric=symmetric,
        normalize=False,
    )


@both
@pytest.mark.parametrize("temperature", [0.01, 0.1, 2.0])
def test_double_precision(temperature, symmetric, backend):
    """Larger than the oracle's tables, where the dense loss in float64 is good enough."""
    rows = related(77, 101, 67, torch.float64)

    def ours(*args, **kwargs):
        return info_nce(*args, backend=backend, **kwargs)

    torch.testing.assert_close(
        dense.gradients(ours, rows, temperature, symmetric=symmetric),
        dense.gradients(dense.info_nce, rows, temperature, symmetric=symmetric),
        rtol=1e-9,
        atol=1e-12,
    )


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_small_probabilities(dtype, symmetric, backend):
    """Probabilities near 1/N each carry the whole gradient of the negatives: none is dropped."""
    rows = partial(unrelated, 1025, 1026, 32, dtype)
    dense.check_error_rule(rows, 1.0, backend, symmetric=symmetric, draws=1)


@both
@pytest.mark.parametrize("dtype", HALF)
def test_sums_over_many_stripes_keep_their_digits(dtype, symmetric, bounded_backend):
    """Key gradients are summed stripe by stripe: not in 16 bits."""
    dense.check_error_rule(
        partial(related, 512, 512, 32, dtype),
        0.1,
        bounded_backend,
        symmetric=symmetric,
        workspace_bytes=1 << 18,
        draws=1,
    )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_logits_are_not_rounded(dtype, backend):
    """Of 16-bit rows the loss is float32-exact, where the dense one keeps two or three digits."""
    rows = related(128, 128, 64, dtype)
    exact = dense.info_nce(*[x.double() for x in rows], temperature=0.01).item()
    rounded = dense.info_nce(*rows, temperature=0.01).item()
    actual = info_nce(*rows, temperature=0.01, backend=backend)
    assert actual.dtype == torch.float32
    assert abs(actual.item() - exact) < 2e-5 * exact < abs(rounded - exact)


def test_long_sums(backend):
    """A quarter of a million candidates, odd in number."""
    rows = partial(unrelated, 4, (1 << 18) + 1, 2, torch.float32)
    dense.check_error_rule(rows, 0.1, backend, draws=4)


@pytest.mark.parametrize("width", [2, 769, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths(width, dtype, backend):
    dense.check_error_rule(partial(related, 17, 19, width, dtype), 0.05, backend)


@every_dtype
def test_width_one(dtype, backend):
    """Cosines are 1 and -1, and nothing changes them: no gradient."""
    query, key = (x.requires_grad_() for x in related(17, 19, 1, dtype))
    loss = info_nce(query, key, temperature=0.1, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(oracle.info_nce(query, key, temperature=0.1), rel=1e-6)
    for leaf in (query, key):
        wobble = torch.finfo(loss.dtype).eps / 0.1 / leaf.detach().abs()
        assert (leaf.grad.abs() <= wobble).all()


@both
@single_dtype
def test_every_similarity_is_low(dtype, symmetric, backend):
    """exp(-100) in every place; padding that counts as a logit of 0 would drown it."""
    rows = partial(opposed, 19, 16, dtype)
    dense.check_error_rule(rows, 0.01, backend, symmetric=symmetric, draws=8)
    assert info_nce(*rows(0), temperature=0.01, symmetric=symmetric, backend=backend).isfinite()


@both
@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_random_rows_at_low_temperature(temperature, symmetric, backend):
    """No cosine reaches 0.13: with exp(l - 1/T) every term would underflow."""
    rows = partial(unrelated, 8, 9, 768, torch.float32)
    assert dense.largest_logit(rows(0), 1.0) < 0.13
    dense.check_error_rule(rows, temperature, backend, symmetric=symmetric)


@both
@pytest.mark.parametrize(
    ("dtype", "temperature", "tolerance"),
    [
        (torch.float32, 0.035, 2e-5),
        (torch.float32, 0.016, 1e-4),
        (torch.bfloat16, 0.035, 2e-5),
        (torch.float64, 0.035, 1e-12),
        (torch.float64, 0.0025, 1e-11),
    ],
)
def test_positives_apart(dtype, temperature, tolerance, symmetric, backend):
    """Losses of 1e-11 to 1e-173 are right to their own digits: log-sum-exp minus the positive
    would be 0 or an ulp of it. So are the gradients."""
    rows = [torch.eye(16, dtype=dtype) + 0.001 * normal(16, 16, seed=s).to(dtype) for s in (1, 2)]
    scalar = torch.tensor(temperature, dtype=torch.promote_types(dtype, torch.float32))
    options = {"temperature": scalar, "symmetric": symmetric}
    expected = oracle.info_nce(*rows, **options)
    assert 0 < expected < 1e-10
    leaves = [x.clone().requires_grad_() for x in rows]
    loss = info_nce(*leaves, backend=backend, **options)
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    loss.backward()
    for name, leaf in zip(("query", "key"), leaves, strict=True):
        direction = normal(16, 16, seed=72)
        slope = oracle.derivative({name: direction}, *rows, **options)
        along = leaf.grad.double() * direction
        rounding = max(tolerance, torch.finfo(dtype).eps)
        assert abs(along.sum().item() - slope) < rounding * along.abs().sum().item()


@both
@every_dtype
def test_zero_rows(dtype, symmetric, backend):
    """Similarity 0 to everything, gradient 0, -0.0 included; the others' values are untouched."""
    rows = [*related(9, 11, 5, dtype), normal(4, 5, dtype=dtype)]
    zeros = [2], [4, 10], [0]
    for x, at in zip(rows, zeros, strict=True):
        x[at] = 0.0
    rows[1][10] = -0.0
    options = {"temperature": 0.5, "symmetric": symmetric}
    leaves = [x.clone().requires_grad_() for x in rows]
    loss = info_nce(*leaves, backend=backend, **options)
    loss.backward()
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert loss.item() == pytest.approx(oracle.info_nce(*rows, **options), rel=rounding)
    names = ("query", "key", "negatives")
    for name, leaf, at in zip(names, leaves, zeros, strict=True):
        assert (leaf.grad[at] == 0).all()
        direction = normal(*leaf.shape, seed=73)
        slope = oracle.derivative({name: direction}, *rows, **options)
        along = leaf.grad.double() * direction
        error = abs(along.sum().item() - slope)
        assert error < max(torch.finfo(dtype).eps, rounding) * along.abs().sum().item()


def test_nothing_but_zeros(backend):
    rows = [torch.zeros(5, 3, requires_grad=True) for _ in range(2)]
    loss = info_nce(*rows, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert all((x.grad == 0).all() for x in rows)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [8, 512])
def test_tiny_and_huge_rows(width, dtype, symmetric, backend):
    """Entries of 1e-18 and 1e18 have a direction like any other: powers of two change nothing
    in the loss and turn into their reciprocal in the gradient."""
    rows = related(12, 14, width, dtype)
    powers = [torch.full((len(x), 1), 2.0**60, dtype=dtype) for x in rows]
    for power in powers:
        power[::2] = 2.0**-60
    leaves = [(x * power).requires_grad_() for x, power in zip(rows, powers, strict=True)]
    plain = [x.clone().requires_grad_() for x in rows]
    losses = [
        info_nce(*some, temperature=0.1, symmetric=symmetric, backend=backend)
        for some in (leaves, plain)
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    eps = torch.finfo(dtype).eps
    for scaled, leaf, power in zip(leaves, plain, powers, strict=True):
        torch.testing.assert_close(
            scaled.grad.double() * power.double(),
            leaf.grad.double(),
            rtol=4 * eps,
            atol=max(8 * eps, 1e-6) * leaf.grad.abs().max().item(),
        )


@pytest.mark.parametrize("entry", [1e-18, 1e18])
def test_ordinary_rows_of_extreme_size(entry, backend):
    """The same without powers of two, mixed within a row."""
    query, key = related(6, 6, 5, torch.float32)
    query[:, 0] *= entry
    key[:3] *= entry
    exact = oracle.info_nce(query, key, temperature=0.1)
    assert info_nce(query, key, temperature=0.1, backend=backend).item() == pytest.approx(
        exact, rel=1e-5
    )


EQUAL = [{"false_negative_margin": 0.0}, {"guide_margin": 0.0}]


@both
@every_dtype
@pytest.mark.parametrize("options", EQUAL)
@pytest.mark.parametrize(("count", "width"), [(7, 3), (300, 77), (20, 768), (5, 8192)])
def test_equal_similarities_stay(count, width, options, dtype, symmetric, backend):
    """Comparisons are strict: duplicates of the positive, wherever they stand, are candidates."""
    query = normal(1, width, seed=74).expand(count, -1)
    key = (query + normal(1, width, seed=75)).to(dtype)
    query = query.to(dtype)
    if "guide_margin" in options:
        options = options | {"guide": (query, key)}
    loss = info_nce(query, key, temperature=0.05, symmetric=symmetric, backend=backend, **options)
    assert loss.item() == pytest.approx(math.log(count), abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_duplicates_stay(dtype, backend):
    """A power of two changes no cosine."""
    query = normal(40, 33, dtype=dtype)
    key = normal(1, 33, seed=76, dtype=dtype) * 2.0 ** torch.arange(-20, 20)[:, None].to(dtype)
    loss = info_nce(query, key, false_negative_margin=0.0, backend=backend)
    assert loss.item() == pytest.approx(math.log(40), abs=2e-5)


@both
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("kind", ["false_negative_margin", "guide"])
def test_larger_similarities_go(kind, dtype, gap, symmetric, backend):
    """A cosine just above its positive's is left out, one just below stays."""
    if kind == "guide":
        dtype, gap = torch.float32, 1e-4
    angles = torch.tensor([1.0, 1.0 - 2 * gap, 1.0 + 2 * gap], dtype=torch.float64)
    key = torch.stack([angles.cos(), angles.sin()], 1).to(dtype)
    query = torch.tensor([[1.0, 0.0]] * 3, dtype=dtype)
    options = {"false_negative_margin": 0.0} if kind != "guide" else {"guide": (query, key)}
    options |= {"temperature": 1.0, "symmetric": symmetric, "reduction": "none"}
    # Query 0 keeps the farther key, query 1 keeps all, query 2 keeps neither; every key is as
    # close to all queries.
    forth, back = [math.log(2), math.log(3), 0.0], [math.log(3)] * 3
    expected = [(f + b) / 2 for f, b in zip(forth, back, strict=True)] if symmetric else forth
    actual = info_nce(query, key, backend=backend, **options)
    assert actual.tolist() == pytest.approx(expected, abs=1e-3)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("operand", ["query", "key"])
def test_nonfinite_values_stay_where_dense_has_them(operand, bad, symmetric, backend):
    """A poisoned row spoils what it takes part in, as in dense PyTorch, and nothing else."""
    rows = dict(zip(("query", "key"), related(35, 40, 20, torch.float32), strict=True))
    rows[operand][7, 3] = bad
    results = []
    for function in (lambda *a, **k: info_nce(*a, backend=backend, **k), dense.info_nce):
        leaves = [x.clone().requires_grad_() for x in rows.values()]
        losses = function(*leaves, temperature=0.1, symmetric=symmetric, reduction="none")
        losses.sum().backward()
        results.append([losses.detach(), *(x.grad for x in leaves)])
    for ours, theirs in zip(*results, strict=True):
        finite = theirs.isfinite()
        assert ours[finite].isfinite().all()
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-4, atol=1e-6)
        if ours.dim() == 1:
            assert not ours[~finite].isfinite().any()
    assert not results[0][0].isfinite().all()


def test_logits_of_the_module(backend):
    """InfoNCELoss keeps the contract: its temperature is float32 whatever the embeddings are."""
    rows = related(64, 64, 32, torch.bfloat16)
    module = contrastive_ops.InfoNCELoss(
        temperature=0.01, learnable_temperature=True, backend=backend
    )
    exact = dense.info_nce(*[x.double() for x in rows], temperature=0.01).item()
    assert module(*rows).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scale_is_inverted_wide(dtype, backend):
    query, key = torch.randn(6, 5), torch.randn(7, 5)
    scale = torch.tensor(100.0, dtype=dtype)
    expected = info_nce(query.double(), key.double(), scale=100.0)
    actual = info_nce(query, key, scale=scale, backend=backend)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (3e38, torch.float32),
        (1e-38, torch.float32),
        (1e300, torch.float64),
        (1e-300, torch.float64),
    ],
)
def test_mean_of_extreme_weights(weight, dtype, backend):
    query, key = torch.randn(6, 5), torch.randn(7, 5)
    weights = torch.full((6,), weight, dtype=dtype)
    actual = info_nce(query, key, row_weight=weights, backend=backend)
    torch.testing.assert_close(actual, info_nce(query, key, backend=backend))


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_numbers_of_numpy(number, backend):
    query, key = torch.randn(6, 5), torch.randn(7, 5)
    actual = info_nce(query, key, temperature=number, margin=number, backend=backend)
    expected = info_nce(query, key, temperature=0.5, margin=0.5, backend=backend)
    assert torch.equal(actual, expected)
