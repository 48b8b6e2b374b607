"""What holds for the objectives beyond their formulas: bounds of memory, bits, dtypes, edges."""

from __future__ import annotations

import math
from typing import Any

import dense
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import contrastive_ops as co
from contrastive_ops.engine import reference, stripes

N, D = 96, 8
LABELS = torch.arange(N) % 12


def rows(seed: int, n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype)


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).sum(1) / 4


GUIDE = (rows(8), rows(9))
CALLS: dict[str, Any] = {
    "nt_xent": lambda a, b, **o: co.nt_xent(a, b, **o),
    "nt_xent, own": lambda a, b, **o: co.nt_xent(a, b, positives_in_denominator=False, **o),
    "sup_con": lambda a, b, **o: co.sup_con(a, LABELS, **o),
    "sup_con, in": lambda a, b, **o: co.sup_con(a, LABELS, sum_over_positives="in", **o),
    "sup_con, own": lambda a, b, **o: co.sup_con(a, LABELS, positives_in_denominator=False, **o),
    "soft_nearest_neighbor": lambda a, b, **o: co.soft_nearest_neighbor(a, LABELS, **o),
    "decoupled": lambda a, b, **o: co.decoupled_nce(a, b, positive_weight_width=0.5, **o),
    "debiased": lambda a, b, **o: co.debiased_nce(a, b, hardness=0.5, **o),
    "hardness": lambda a, b, **o: co.hardness_weighted_nce(a, b, **o),
    "joint": lambda a, b, **o: co.joint_nce(a, b, temperature=0.1, **o),
    "guided": lambda a, b, **o: co.threshold_guided_nce(
        a, b, guide=GUIDE, guide_threshold=0.3, **o
    ),
    "guided, bce": lambda a, b, **o: co.threshold_guided_nce(
        a, b, guide=GUIDE, guide_threshold=0.3, objective="softmax_bce", excluded_logit=0, **o
    ),
    "uni_cl": lambda a, b, **o: co.uni_cl(a, b, LABELS, LABELS.flip(0), **o),
    "sigmoid": lambda a, b, **o: co.sigmoid_loss(a, b, bias=-2.0, **o),
    "nce": lambda a, b, **o: co.nce(a, b, b.flip(0), **o),
    **{
        f"triplet, {mining}": lambda a, b, mining=mining, **o: co.triplet_margin(
            a, LABELS, mining=mining, **o
        )
        for mining in ("all", "hard", "semi-hard", "easy", "violator")
    },
    "lifted": lambda a, b, **o: co.lifted_structure(a, LABELS, **o),
    "cluster band": lambda a, b, **o: co.cluster_band_hinge(a, b, LABELS, **o),
    **{
        f"divergence, {how}": lambda a, b, how=how, **o: co.similarity_divergence(
            a, b, *GUIDE, divergence=how, exclude_self=True, **o
        )
        for how in ("kl", "cross_entropy", "js", "list_mle")
    },
    "similarity_mse": lambda a, b, **o: co.similarity_mse(a, b, *GUIDE, **o),
    "uniformity": lambda a, b, **o: co.uniformity(a, **o),
    "negative_lse": lambda a, b, **o: co.negative_lse(a, LABELS, temperature=0.5, **o),
}
SMALL: dict[str, Any] = {  # no options: O(N D) by nature, or their own
    "energy": lambda a, b, **o: co.energy_hinge(a, b, **o),
    "ko_leo": lambda a, b, **o: co.ko_leo(a, **o),
    "cosent": lambda a, b: co.cosent(products(a, b), LABELS),
    "angle": lambda a, b: co.angle(a, b, LABELS),
    "barlow": lambda a, b: co.barlow_twins(a, b),
    "vicreg": lambda a, b: co.vicreg(a, b),
    "sig_reg": lambda a, b: co.sig_reg(a, knots=4),
}
ALL = CALLS | SMALL
call = pytest.mark.parametrize("name", CALLS)
any_call = pytest.mark.parametrize("name", ALL)


def evaluated(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[torch.Tensor]:
    leaves = [rows(s, dtype=dtype).requires_grad_() for s in (1, 2)]
    loss = ALL[name](*leaves, **options)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@call
def test_no_matrix_of_all_pairs(name: str) -> None:
    with Largest() as seen:
        evaluated(name, backend="torch", workspace_bytes=1 << 15)
    assert seen.elements < N * N / 4


@pytest.mark.parametrize("name", ["energy", "ko_leo"])
def test_no_matrix_in_a_selection(name: str) -> None:
    with Largest() as seen:
        evaluated(name, workspace_bytes=1 << 15)
    assert seen.elements < N * N / 4


@call
def test_the_workspace_changes_nothing(name: str) -> None:
    few = evaluated(name, torch.float64, backend="torch", workspace_bytes=1 << 14)
    many = evaluated(name, torch.float64, backend="torch")
    torch.testing.assert_close(few, many, rtol=1e-11, atol=1e-12)


@any_call
def test_the_same_bits(name: str, restored_threads: None) -> None:
    first = evaluated(name)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        again = evaluated(name)
        if threads == 2:
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        repeated = evaluated(name)
        assert all(torch.equal(x, y) for x, y in zip(again, repeated, strict=True))


@any_call
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_dtypes(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against float64 on the rounded inputs: only gradients are rounded to the inputs' dtype."""
    leaves = [rows(s, dtype=dtype) for s in (1, 2)]
    wide = [x.double().requires_grad_() for x in leaves]
    narrow = [x.requires_grad_() for x in leaves]
    exact, ours = ALL[name](*wide), ALL[name](*narrow)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=2e-6)
    expected = torch.autograd.grad(exact, wide, allow_unused=True)
    for grad, true in zip(
        torch.autograd.grad(ours, narrow, allow_unused=True), expected, strict=True
    ):
        if true is not None:
            assert grad.dtype == dtype
            error = (grad.double() - true).norm() / true.norm().clamp(min=1e-30)
            assert error < tolerance


@pytest.mark.parametrize(
    "name",
    [
        "sigmoid",
        "sup_con, in",
        "triplet, semi-hard",
        "triplet, hard",
        "divergence, kl",
        "hardness",
        "nt_xent",
        "negative_lse",
        "ko_leo",
        "sig_reg",
    ],
)
def test_compiled_and_functional(name: str) -> None:
    leaves = [rows(s).requires_grad_() for s in (1, 2)]
    expected = torch.autograd.grad(ALL[name](*leaves), leaves, allow_unused=True)
    compiled = torch.compile(ALL[name], backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves), leaves, allow_unused=True)
    for x, y in zip(found, expected, strict=True):
        if y is not None:
            torch.testing.assert_close(x, y)
    plain = [x.detach() for x in leaves]
    first = torch.func.grad(lambda a: ALL[name](a, plain[1]))(plain[0])
    torch.testing.assert_close(first, expected[0])


@any_call
def test_autocast_does_not_lower_it(name: str) -> None:
    leaves = [rows(s).requires_grad_() for s in (1, 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ALL[name](*leaves)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    inside = [loss.detach(), *(g for g in grads if g is not None)]
    torch.testing.assert_close(inside, evaluated(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_anchors_without_a_positive_count_nothing(reduction: str, backend: str) -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    x = rows(1, 5, torch.float64).requires_grad_()
    for loss in (
        lambda: co.sup_con(x, labels, reduction=reduction, backend=backend),
        lambda: co.sup_con(
            x, labels, sum_over_positives="in", reduction=reduction, backend=backend
        ),
        lambda: co.soft_nearest_neighbor(x, labels, reduction=reduction, backend=backend),
    ):
        value = loss()
        if reduction == "none":
            assert value.shape == (5,)
            assert value[2] == 0
            assert bool((value[[0, 1, 3, 4]] > 0).all())
        assert bool(torch.autograd.grad(value.sum(), x)[0].isfinite().all())


@pytest.mark.parametrize("n", [1, 3])
def test_nothing_to_compare_with_is_zero(n: int, backend: str) -> None:
    x = rows(1, n).requires_grad_()
    alone = torch.arange(n)
    for loss in (
        co.sup_con(x, alone, backend=backend),
        co.sup_con(x, alone, sum_over_positives="in", backend=backend),
        co.soft_nearest_neighbor(x, alone, backend=backend),
        *(co.triplet_margin(x, alone, mining=m) for m in ("all", "hard", "semi-hard", "violator")),
        *(co.triplet_margin(x, alone * 0, mining=m) for m in ("all", "hard", "easy", "violator")),
        co.lifted_structure(x, alone),
        co.lifted_structure(x, alone * 0),
    ):
        assert loss.item() == 0
        (grad,) = torch.autograd.grad(loss, x, allow_unused=True, retain_graph=True)
        assert grad is None or bool((grad == 0).all())


def test_zero_rows_get_no_gradient() -> None:
    for name in ("nt_xent", "sup_con, in", "sigmoid", "triplet, semi-hard", "divergence, js"):
        x = rows(1)
        x[3] = 0
        x.requires_grad_()
        (grad,) = torch.autograd.grad(ALL[name](x, rows(2)), x)
        assert bool(grad.isfinite().all())
        assert bool((grad[3] == 0).all())


@pytest.mark.parametrize("distance", ["sq_l2", "l2", "cosine"])
def test_duplicates_share_a_class(distance: str) -> None:
    """Distances of zero, and negatives at equal distances."""
    x = rows(1, 12, torch.float64)
    x[6:] = x[:6]
    x.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2] * 2)
    for mining in ("all", "hard", "semi-hard", "easy", "violator"):
        loss = co.triplet_margin(x, labels, mining=mining, distance=distance)
        assert loss.isfinite()
        assert bool(torch.autograd.grad(loss, x)[0].isfinite().all())


def test_violators_violate_and_are_drawn_evenly() -> None:
    x = rows(1, 20, torch.float64)
    x = (x / x.norm(dim=1, keepdim=True)).requires_grad_()
    labels = torch.arange(20) // 2
    d = torch.cdist(x, x).square().detach()
    values: dict[float, int] = {}
    for seed in range(200):
        if seed < 20:
            options = {"mining": "violator", "seed": seed, "reduction": "sum"}
            loss = co.triplet_margin(x, labels, **options)
            striped = co.triplet_margin(x, labels, workspace_bytes=1 << 12, **options)
            torch.testing.assert_close(loss, striped)
        # The gradient of one anchor's own negative tells which one it was.
        single = co.triplet_margin(x[:6], labels[:6], mining="violator", seed=seed, reduction="sum")
        values[round(single.item(), 9)] = values.get(round(single.item(), 9), 0) + 1
    violators = [
        [(d[a, a ^ 1] - d[a, n] + 0.2).item() for n in range(6) if n // 2 != a // 2]
        for a in range(6)
    ]
    choices = [[v for v in vs if v > 0] for vs in violators]
    expected = sum(sum(vs) / len(vs) for vs in choices if vs)
    mean = sum(v * c for v, c in values.items()) / 200
    spread = math.sqrt(sum(c * (v - mean) ** 2 for v, c in values.items()) / 200)
    assert len(values) > 1
    assert abs(mean - expected) < 4 * spread / math.sqrt(200)


def test_equal_targets_make_no_pair() -> None:
    scores = rows(1)[:, 0].double().requires_grad_()
    loss = co.cosent(scores, torch.zeros(N))
    assert loss.item() == 0
    assert bool((torch.autograd.grad(loss, scores)[0] == 0).all())


def test_cosent_of_extreme_scores() -> None:
    scores = torch.tensor([40.0, -40.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss = co.cosent(scores, torch.tensor([0, 2, 1]), scale=20)
    assert loss.item() == pytest.approx(1600.0)
    assert torch.autograd.grad(loss, scores)[0].tolist() == pytest.approx([20.0, -20.0, 0.0])


@pytest.mark.parametrize("excluded_logit", [None, 0])
def test_a_wrong_answer_that_is_all_but_certain_costs_what_it_should(excluded_logit) -> None:
    """1 - p of it is far below float32's resolution of 1."""
    query, key = rows(31), rows(32)
    key[3] = query[2]
    key[5] = query[5]  # and a right one

    def loss(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (query, key)]
        logits = unit[0] @ unit[1].T / 0.01
        others = logits.unsqueeze(1).masked_fill(torch.eye(N, dtype=torch.bool), -math.inf)
        log_rest = others.logsumexp(2) - logits.logsumexp(1, keepdim=True)
        log_p = logits.log_softmax(1).diagonal()
        return -(log_p + log_rest.sum(1) - log_rest.diagonal()) / N

    exact = [x.double().requires_grad_() for x in (query, key)]
    expected = loss(*exact)
    assert expected[2] > 0.5
    ours = [x.clone().requires_grad_() for x in (query, key)]
    actual = co.threshold_guided_nce(
        *ours,
        guide=GUIDE,
        guide_threshold=1.0,
        objective="softmax_bce",
        excluded_logit=excluded_logit,
        temperature=0.01,
        reduction="none",
    )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    for grad, right in zip(
        torch.autograd.grad(actual.sum(), ours),
        torch.autograd.grad(expected.sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(grad.double(), right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dims", [None, (512, 384)])
def test_error_rule_of_a_bias(dims, bounded_backend) -> None:
    """Products are not added to a bias that is larger than they are; the rows' gradients tell."""
    n, width = 128, 512
    log_p = -16 + 3 * torch.randn(n, dtype=torch.float64)

    def formula(query: torch.Tensor, key: torch.Tensor, *, temperature: torch.Tensor, **_: Any):
        loss = 0 * temperature
        for dim in dims or [width]:
            logits = query[:, :dim] @ key[:, :dim].T - log_p.to(query.dtype)
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.arange(n))
        return loss

    def ours(query: torch.Tensor, key: torch.Tensor, *, temperature: torch.Tensor, **options: Any):
        options.pop("normalize")
        bias = log_p.to(query.dtype)
        loss = co.sampled_softmax(query, key, bias, matryoshka_dims=dims, **options)
        return loss + 0 * temperature

    def draw(seed: int) -> list[torch.Tensor]:
        query, key = torch.randn(2, n, width) / 20
        return [query, key + query]

    dense.check_error_rule(draw, 1.0, bounded_backend, ours=ours, formula=formula, normalize=False)


def test_second_derivatives_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.MAX_ELEMENTS == stripes.MAX_ELEMENTS == 1 << 26
    for module in (reference, stripes):
        monkeypatch.setattr(module, "MAX_ELEMENTS", 90 * 90 - 1)
    x = torch.randn(90, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(co.nce(x[:64], x[:64], x[:64]), x, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(ValueError, match="second derivatives"):
        torch.autograd.grad(co.nce(x, x, x), x, create_graph=True)
    for loss in (co.sigmoid_loss(x, x), co.nt_xent(x[:45], x[45:])):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(ValueError, match="second derivatives"):
            grad.sum().backward()


X, Y = rows(1, 4), rows(2, 4)
BAD: list[tuple[str, Any]] = [
    ("view_b: got shape", lambda: co.nt_xent(X, Y[:2])),
    ("temperature", lambda: co.nt_xent(X, Y, temperature=0)),
    ("temperature", lambda: co.sup_con(X, LABELS[:4], temperature=-1.0)),
    ("margin: got 0.1", lambda: co.nt_xent(X, Y, positives_in_denominator=False, margin=0.1)),
    ("labels: got shape", lambda: co.sup_con(X, LABELS[:3])),
    ("labels: got torch.float32", lambda: co.sup_con(X, torch.zeros(4))),
    ("sum_over_positives", lambda: co.sup_con(X, LABELS[:4], sum_over_positives="both")),
    ("reduction", lambda: co.sup_con(X, LABELS[:4], reduction="average")),
    ("view_a: got 1 row", lambda: co.decoupled_nce(X[:1], Y[:1])),
    ("positive_prior", lambda: co.debiased_nce(X, Y, positive_prior=1.0)),
    ("hardness", lambda: co.hardness_weighted_nce(X, Y, hardness=-1)),
    ("directions", lambda: co.joint_nce(X, Y, directions=("key_to_key",))),
    ("targets: got shape", lambda: co.soft_target_nce(X, Y, torch.ones(4, 3))),
    ("index", lambda: co.soft_target_nce(X, Y, torch.ones(4, 1), index=torch.full((4, 1), 7))),
    ("sentences: got 1 row", lambda: co.quick_thought(X[:1], Y[:1])),
    ("window", lambda: co.quick_thought(X, Y, window=0)),
    ("reduction: got 'none'", lambda: co.uni_cl(X, Y, LABELS[:4], LABELS[:4], reduction="none")),
    ("excluded_logit", lambda: co.threshold_guided_nce(X, Y, guide=(X, Y), excluded_logit=0)),
    ("guide_threshold", lambda: co.threshold_guided_nce(X, Y, guide=(X, Y), guide_threshold=2)),
    ("middle_time", lambda: co.brownian_bridge_nce(X, X, X, *[torch.zeros(4)] * 3)),
    ("key: got 2 rows", lambda: co.sigmoid_loss(X, Y[:2])),
    ("bias", lambda: co.sigmoid_loss(X, Y, bias=math.inf)),
    ("query_ids, key_ids", lambda: co.sigmoid_loss(X, Y, query_ids=LABELS[:4])),
    ("noise: got 3 groups", lambda: co.nce(X, Y, torch.randn(3, 2, D))),
    ("log_probability", lambda: co.nce(X, Y, Y, noise_log_probability=torch.zeros(4))),
    ("mining", lambda: co.triplet_margin(X, LABELS[:4], mining="soft")),
    ("margin: got 'soft'", lambda: co.triplet_margin(X, LABELS[:4], margin="soft")),
    (
        "normalize: got False",
        lambda: co.triplet_margin(X, LABELS[:4], distance="cosine", normalize=False),
    ),
    ("key: got 1 row", lambda: co.energy_hinge(X[:1], Y[:1])),
    ("mask: got shape", lambda: co.token_hinge(torch.randn(2, 3, 4), torch.ones(2, 4))),
    ("targets: got shape", lambda: co.cosent(torch.randn(3), torch.randn(4))),
    ("scale", lambda: co.cosent(torch.randn(3), torch.randn(3), scale=0)),
    ("query: got width 7", lambda: co.angle(X[:, :7], Y[:, :7], torch.randn(4))),
    ("teacher_query: got 3 rows", lambda: co.similarity_divergence(X, Y, X[:3], Y)),
    ("divergence", lambda: co.similarity_divergence(X, Y, X, Y, divergence="tv")),
    ("negative_scores", lambda: co.margin_mse(torch.randn(4), torch.randn(3), torch.randn(3))),
    ("alpha", lambda: co.alignment(X, Y, alpha=0)),
    ("x: got 1 row", lambda: co.uniformity(X[:1])),
    ("labels: got 1 set", lambda: co.negative_lse(X, torch.zeros(4, dtype=torch.int64))),
    ("directions", lambda: co.sig_reg(X, directions=torch.randn(3, 5))),
    ("covariances", lambda: co.cor_info_max(X, Y, covariances=(torch.eye(3), torch.eye(3)))),
    ("bias: got shape", lambda: co.vocabulary_softmax(X, Y, LABELS[:4], torch.zeros(3))),
    (
        "positives: got columns",
        lambda: co.score_nce(torch.randn(2, 3), positives=torch.tensor([0, 3])),
    ),
    ("k: got 9", lambda: co.hardest_negatives(X, Y, 9)),
    ("momentum", lambda: co.momentum_encoder(torch.nn.Linear(2, 2), 1.0)),
    ("workspace_bytes", lambda: co.sup_con(X, LABELS[:4], workspace_bytes=0)),
]


@pytest.mark.parametrize(("message", "bad"), BAD, ids=[f"{i}: {m}" for i, (m, _) in enumerate(BAD)])
def test_bad_input_is_one_clear_error(message: str, bad: Any) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        bad()
    assert str(error.value).startswith(message) or message in str(error.value)


def test_not_a_tensor() -> None:
    with pytest.raises(TypeError, match="view_a: got list, expected a tensor"):
        co.nt_xent([[1.0]], X)  # type: ignore[arg-type]


def test_token_similarity_holds_no_token_matrix() -> None:
    q = torch.randn(16, 6, 4, requires_grad=True)
    k = torch.randn(16, 12, 4, requires_grad=True)
    mask = torch.arange(12) < torch.tensor([[0], [5], [12], [1]]).repeat(4, 1)
    few = co.token_similarity(q, k, key_mask=mask, workspace_bytes=1 << 15)
    many = co.token_similarity(q, k, key_mask=mask)
    torch.testing.assert_close(few, many)
    assert bool((few[:, ::4] == 0).all())  # a document without tokens
    with Largest() as seen:
        loss = co.score_nce(co.token_similarity(q, k, key_mask=mask, workspace_bytes=1 << 15))
        grads = torch.autograd.grad(loss, (q, k))
    assert seen.elements < 16 * 16 * 6 * 12 / 4
    assert bool((grads[1][::4] == 0).all())
    assert bool((grads[1][1, 5:] == 0).all())


@pytest.mark.parametrize("name", ["nt_xent", "sup_con", "soft_nearest_neighbor", "sigmoid"])
def test_a_scale_is_the_inverse_temperature(name: str) -> None:
    x, y = rows(1), rows(2)
    expected = ALL[name](x, y, temperature=0.25)
    scale = torch.tensor(4.0, requires_grad=True)
    torch.testing.assert_close(ALL[name](x, y, scale=4), expected)
    loss = ALL[name](x, y, scale=scale)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, scale)[0] != 0
    with pytest.raises(ValueError, match="besides temperature"):
        ALL[name](x, y, scale=4, temperature=0.25)


def test_own_denominators_are_their_mean() -> None:
    """Three views: each positive alone against the other samples' rows."""
    views = [rows(seed, 7, torch.float64) for seed in (41, 42, 43)]
    unit = torch.nn.functional.normalize(torch.cat(views), dim=1)
    logits = unit @ unit.T / 0.5
    sample = torch.arange(21) % 7
    same = sample.unsqueeze(1) == sample
    negatives = logits.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)
    each = torch.logaddexp(negatives, logits) - logits
    positive = same & ~torch.eye(21, dtype=torch.bool)
    expected = torch.where(positive, each, 0.0).sum(1) / 2
    actual = co.nt_xent(*views, positives_in_denominator=False, reduction="none")
    torch.testing.assert_close(actual, expected)


def test_a_row_that_is_no_number_is_not_hidden(backend: str) -> None:
    broken = rows(51)
    broken[3, 2] = math.nan
    assert co.lifted_structure(broken, LABELS, backend=backend).isnan()
    assert co.negative_lse(broken, LABELS, backend=backend).isnan()
    seen: list[Any] = []
    co.info_nce(broken, broken.clone(), statistics=seen.append, backend=backend)
    assert seen[0].accuracy == 0


def test_a_16_bit_scale_is_inverted_widely() -> None:
    scale = torch.tensor(14.3, dtype=torch.bfloat16)
    for loss in (
        lambda **o: co.nt_xent(rows(1), rows(2), **o),
        lambda **o: co.sup_con(rows(1), LABELS, **o),
        lambda **o: co.soft_nearest_neighbor(rows(1), LABELS, **o),
    ):
        torch.testing.assert_close(loss(scale=scale), loss(scale=scale.item()), rtol=1e-6, atol=0)


def test_left_out_entries_have_no_part_in_a_temperature() -> None:
    scores, targets = rows(61, 4), rows(62, 4)
    scores[:, 3] = targets[:, 3] = -math.inf
    for loss in (lambda t: co.list_net(scores, targets, temperature=t), _score_nce_of(scores)):
        temperature = torch.tensor(0.7, requires_grad=True)
        loss(temperature).backward()
        assert temperature.grad is not None
        assert temperature.grad.isfinite()


def _score_nce_of(scores: torch.Tensor) -> Any:
    return lambda t: co.score_nce(scores, positives=torch.arange(4) % 3, temperature=t)


def test_a_row_without_candidates_and_targets_costs_nothing() -> None:
    ids = torch.zeros(3, dtype=torch.int64)
    query = rows(71, 3).requires_grad_()
    targets = torch.zeros(3, 3)
    losses = co.soft_target_nce(
        query, rows(72, 3), targets, query_ids=ids, key_ids=ids, reduction="none"
    )
    assert torch.equal(losses, torch.zeros(3))
    losses.sum().backward()
    assert query.grad is not None
    assert not query.grad.any()


def test_a_margin_of_zero_is_a_margin() -> None:
    with pytest.raises(ValueError, match=r"false_negative_margin: got 0\.0 with positives_in_den"):
        co.nt_xent(rows(1), rows(2), positives_in_denominator=False, false_negative_margin=0.0)


@pytest.mark.parametrize(
    ("hardness_of", "mode"),
    [
        ("all", "all_negatives"),
        ("in_batch", "in_batch_negatives"),
        ("negatives", "hard_negatives"),
    ],
)
@pytest.mark.parametrize("width", [1, 3])
def test_hardness_against_sentence_transformers(hardness_of: str, mode: str, width: int) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    query, key = rows(81, 9), rows(82, 9)
    negatives = torch.stack([rows(83 + i, 9) for i in range(width)], 1)
    columns = [query, key, *negatives.unbind(1)]
    leaves = [x.clone().requires_grad_() for x in columns]

    class Given(torch.nn.Module):
        def forward(self, features: Any) -> Any:
            return {"sentence_embedding": features["rows"]}

    theirs = losses.MultipleNegativesRankingLoss(
        Given(), scale=20.0, hardness_mode=mode, hardness_strength=9.0
    )
    expected = theirs([{"rows": x} for x in leaves], torch.empty(0))
    ours = [x.clone().requires_grad_() for x in columns]
    actual = co.hardness_weighted_nce(
        *ours[:2],
        torch.stack(ours[2:], 1),
        temperature=0.05,
        hardness=9.0,
        hardness_of=hardness_of,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(actual, ours),
        torch.autograd.grad(expected, leaves),
        rtol=1e-4,
        atol=1e-6,
    )


def test_hardness_of_a_single_pair() -> None:
    query, key, own = rows(91, 1), rows(92, 1), rows(93, 1).unsqueeze(1)
    leaves = [x.requires_grad_() for x in (query, key, own)]
    loss = co.hardness_weighted_nce(*leaves, hardness=2.0)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, leaves))
    with pytest.raises(ValueError, match=r"negatives: got shape \(2, 1, 8\), expected \(1, H, 8\)"):
        co.hardness_weighted_nce(query, key, rows(94, 2).unsqueeze(1))
