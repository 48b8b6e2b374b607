"""Prefixes are the sum of the losses on truncated rows; layers their weighted sum with the KL."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from dense import check_error_rule

import contrastive_ops as co
from contrastive_ops.engine import chunked, cpu, stripes

N, D = 9, 6
LABELS = torch.tensor([0, 0, 1, 2, 1, 0, 3, 2, 1])
GRADES = torch.linspace(0, 1, N, dtype=torch.float64)


def rows(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (N, D)), generator=generator, dtype=torch.float64)


GUIDE = (rows(8), rows(9))
A, B, C = rows(1), rows(2), rows(3)
A[2, :3] = B[3] = 0.0  # a short prefix without a direction, a row without any
CALLS = {
    "info_nce": (co.info_nce, (A, B, C), {"symmetric": True, "false_negative_margin": 0.1}),
    "nt_xent": (co.nt_xent, (A, B, C), {}),
    "nt_xent, own": (co.nt_xent, (A, B, C), {"positives_in_denominator": False}),
    "sup_con": (lambda x, **o: co.sup_con(x, LABELS, **o), (A,), {}),
    "sup_con, in": (lambda x, **o: co.sup_con(x, LABELS, **o), (A,), {"sum_over_positives": "in"}),
    "sup_con, none": (lambda x, **o: co.sup_con(x, LABELS, **o), (A,), {"reduction": "none"}),
    "sup_con, own": (
        lambda x, **o: co.sup_con(x, LABELS, positives_in_denominator=False, **o),
        (A,),
        {"normalize": False},
    ),
    "sup_con, in, none": (
        lambda x, **o: co.sup_con(x, LABELS, sum_over_positives="in", **o),
        (A,),
        {"reduction": "none"},
    ),
    "soft_nearest_neighbor": (lambda x, **o: co.soft_nearest_neighbor(x, LABELS, **o), (A,), {}),
    "soft_nearest_neighbor, cosine": (
        lambda x, **o: co.soft_nearest_neighbor(x, LABELS, **o),
        (A,),
        {"distance": "cosine", "reduction": "none"},
    ),
    "decoupled_nce": (co.decoupled_nce, (A, B), {"positive_weight_width": 0.5}),
    "debiased_nce": (co.debiased_nce, (A, B), {"hardness": 0.5}),
    "debiased_nce, not harder": (co.debiased_nce, (A, B), {"reduction": "none"}),
    "hardness_weighted_nce": (co.hardness_weighted_nce, (A, B, C), {}),
    "hardness_weighted_nce, own": (
        co.hardness_weighted_nce,
        (A, B, rows(5, N, 2, D)),
        {"hardness_of": "in_batch"},
    ),
    "hardness_weighted_nce, alone": (co.hardness_weighted_nce, (A, B), {"reduction": "none"}),
    "joint_nce": (co.joint_nce, (A, B), {}),
    "joint_nce, some": (
        co.joint_nce,
        (A, B),
        {"directions": ("query_to_key", "key_to_key"), "reduction": "none"},
    ),
    "own_positive_nce": (co.own_positive_nce, (A, rows(4, N, 2, D)), {}),
    "own_positive_nce, none": (co.own_positive_nce, (A, rows(4, N, 2, D)), {"reduction": "none"}),
    "soft_target_nce": (
        lambda x, y, **o: co.soft_target_nce(x, y, GRADES.outer(GRADES), **o),
        (A, B),
        {},
    ),
    "soft_target_nce, index": (
        lambda x, y, **o: co.soft_target_nce(
            x, y, GRADES.unsqueeze(1), index=LABELS.unsqueeze(1), **o
        ),
        (A, B),
        {},
    ),
    "ai_feedback_nce": (lambda x, y, **o: co.ai_feedback_nce(x, y, GRADES, **o), (A, B), {}),
    "quick_thought": (co.quick_thought, (A, B), {}),
    "uni_cl": (lambda x, y, **o: co.uni_cl(x, y, LABELS, LABELS.flip(0), **o), (A, B), {}),
    "threshold_guided_nce": (
        co.threshold_guided_nce,
        (A, B, C),
        {"guide": GUIDE, "guide_threshold": 0.2},
    ),
    "threshold_guided_nce, bce": (
        co.threshold_guided_nce,
        (A, B, C),
        {"guide": GUIDE, "guide_threshold": 0.2, "objective": "softmax_bce"},
    ),
    "gaussian_decay_nce": (
        lambda x, y, z, **o: co.gaussian_decay_nce(x, y, z, GUIDE, **o),
        (A, B, C),
        {},
    ),
    "threshold_guided_nce, bce, left out": (
        co.threshold_guided_nce,
        (A, B),
        {
            "guide": GUIDE,
            "guide_threshold": 0.2,
            "objective": "softmax_bce",
            "excluded_logit": None,
            "reduction": "none",
        },
    ),
    "gaussian_decay_nce, none": (
        lambda x, y, z, **o: co.gaussian_decay_nce(x, y, z, GUIDE, **o),
        (A, B, C),
        {"reduction": "none", "decay_width": 2.0},
    ),
    "sampled_softmax": (lambda x, y, **o: co.sampled_softmax(x, y, -GRADES, **o), (A, B), {}),
    "sampled_softmax, cosine": (
        lambda x, y, **o: co.sampled_softmax(x, y, -GRADES, normalize=True, **o),
        (A, B),
        {},
    ),
    "sampled_softmax, cosine, several positives": (
        lambda x, y, **o: co.sampled_softmax(x, y, -GRADES, normalize=True, **o),
        (A, B),
        {
            "positives": torch.stack([LABELS, (LABELS + 4).where(LABELS < 2, -1)], 1),
            "query_ids": torch.arange(N) % 4,
            "key_ids": torch.arange(N) % 5,
            "reduction": "none",
        },
    ),
    "squared_l2_nce": (co.squared_l2_nce, (A, B), {"symmetric": True}),
}
DIMS, WEIGHTS = [4, 6, 1, 2], [0.5, 1.0, -0.25, 2.0]


def one_by_one(function, leaves, dims, weights, **options):
    parts = [
        w * function(*[x[..., :d] for x in leaves], **options)
        for d, w in zip(dims, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("short", [1.0, 0.0, 1e-20])
@pytest.mark.parametrize("name", CALLS)
def test_prefixes_are_truncated_rows(name, short, bounded_backend):
    """Also of a row whose shorter prefixes are zero, or have next to nothing of its length."""
    function, tensors, options = CALLS[name]
    tensors = [x.clone() for x in tensors]
    tensors[0][4, ..., :2] *= short
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    options = {"temperature": temperature, **options, "backend": bounded_backend}
    leaves = [x.clone().requires_grad_() for x in tensors]
    inputs = [*leaves, temperature]
    ours = function(*leaves, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS, **options)
    truncated = one_by_one(function, leaves, DIMS, WEIGHTS, **options)
    torch.testing.assert_close(ours, truncated, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), inputs),
        torch.autograd.grad(truncated.sum(), inputs),
        rtol=1e-9,
        atol=1e-11,
    )
    general = co.matryoshka(lambda *x: function(*x, **options), *leaves, dims=DIMS, weights=WEIGHTS)
    torch.testing.assert_close(general, ours, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dims", [[3, 5, 3], [2]])
@pytest.mark.parametrize("name", CALLS)
def test_the_rest_of_the_rows_is_cut_off(name, dims, bounded_backend):
    """Prefixes given twice, a single one, none as wide as the rows."""
    function, tensors, options = CALLS[name]
    found = []
    for loss in (
        functools.partial(function, matryoshka_dims=dims),
        lambda *x, **o: one_by_one(function, x, dims, [1.0] * len(dims), **o),
    ):
        leaves = [x.clone().requires_grad_() for x in tensors]
        value = loss(*leaves, backend=bounded_backend, **options)
        seed = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
        found.append([value, *torch.autograd.grad(value, leaves, seed)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in CALLS if "hardness_weighted" not in name])
def test_second_derivatives(name):
    function, tensors, options = CALLS[name]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    options = {**options, "temperature": temperature, "backend": "torch"}
    leaves = [x.clone().requires_grad_() for x in tensors]
    inputs = [*leaves, temperature]
    found = []
    for loss in (
        function(*leaves, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS, **options),
        one_by_one(function, leaves, DIMS, WEIGHTS, **options),
    ):
        first = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
        total = sum((g * torch.linspace(-1, 1, g.numel()).view(g.shape)).sum() for g in first)
        found.append(torch.autograd.grad(total, inputs))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("short", [1.0, 1e-30])
@pytest.mark.parametrize("name", CALLS)
def test_error_rule(name, short, bounded_backend):
    """In float32 prefixes are as exact as truncated rows, also where they are far shorter than
    the rows."""
    function, tensors, options = CALLS[name]
    if short < 1 and not options.get("normalize", True):
        pytest.skip("dot products")
    dims = (70, 9, 33)

    def draw(seed):
        shapes = [(*x.shape[:-1], 70) for x in tensors]
        drawn = [rows(100 * seed + i, *shape).float() for i, shape in enumerate(shapes)]
        for x in drawn:
            x[2:4, ..., :9] *= short
        return drawn

    def formula(*leaves, **o):
        return one_by_one(function, leaves, dims, [1.0] * 3, backend=bounded_backend, **o)

    ours = functools.partial(function, matryoshka_dims=dims)
    check_error_rule(draw, 0.3, bounded_backend, ours=ours, formula=formula, **options)


@pytest.mark.parametrize("name", CALLS)
def test_all_prefixes_take_one_pass(name, cpu_kernel, monkeypatch):
    """As many calls of kernels and of stripes for four prefixes as for two."""
    calls = []

    def counted(module, attribute):
        original = getattr(module, attribute)

        def noted(*arguments, **options):
            calls.append(attribute)
            return original(*arguments, **options)

        monkeypatch.setattr(module, attribute, noted)

    counted(cpu, "_run")
    counted(stripes, "_evaluate")
    counted(chunked, "total")
    counted(chunked, "forward")
    function, tensors, options = CALLS[name]
    if "false_negative_margin" in options:  # a pass for each direction
        options = {**options, "symmetric": False}
    found = []
    for dims in ([2, 6], [1, 2, 4, 6]):
        calls.clear()
        leaves = [x.clone().requires_grad_() for x in tensors]
        function(*leaves, matryoshka_dims=dims, backend="cpu", **options).sum().backward()
        found.append(list(calls))
    assert found[0] == found[1]
    assert 1 <= len(found[0]) <= 5
    assert not {"total", "forward"} & set(found[0])


def test_the_whole_softmax_family_is_here():
    taking = {
        name
        for name in co.functional.__all__
        if callable(getattr(co, name))
        and "matryoshka_dims" in inspect.signature(getattr(co, name)).parameters
    }
    assert taking == {name.partition(",")[0] for name in CALLS}


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("matryoshka_dims: got \\[7\\]", {"matryoshka_dims": [7]}),
        ("matryoshka_dims: got \\[\\]", {"matryoshka_dims": []}),
        ("matryoshka_dims: got 4", {"matryoshka_dims": 4}),
        ("matryoshka_dims: got \\[2.0\\]", {"matryoshka_dims": [2.0]}),
        ("matryoshka_weights: expected matryoshka_dims", {"matryoshka_weights": [1]}),
        (
            "matryoshka_weights: got 2 of them",
            {"matryoshka_dims": [2], "matryoshka_weights": [1, 2]},
        ),
        (
            "matryoshka_weights: got 3, expected a list of 1",
            {"matryoshka_dims": [2], "matryoshka_weights": 3},
        ),
        ("matryoshka_weights: got nan", {"matryoshka_dims": [2], "matryoshka_weights": [math.nan]}),
    ],
)
def test_bad_prefixes(message, options):
    for name in ("info_nce", "sup_con", "squared_l2_nce"):
        function, tensors, _ = CALLS[name]
        with pytest.raises(ValueError, match=message):
            function(*tensors, **options)


def test_bad_embeddings_and_probabilities():
    with pytest.raises(ValueError, match="embeddings: got none"):
        co.matryoshka(co.info_nce, dims=[4])
    with pytest.raises(ValueError, match="key_log_probability: got infinite"):
        co.sampled_softmax(A, B, torch.full((N,), -torch.inf))


def layers_of(count):
    return [(rows(10 * i + 1), rows(10 * i + 2)) for i in range(count)]


@pytest.mark.parametrize("weighting", ["uniform", "log", "linear", lambda layer: 0.1 * layer])
def test_adaptive_layers(weighting):
    layers = [tuple(x.requires_grad_() for x in pair) for pair in layers_of(3)]
    step = functools.partial(co.info_nce, temperature=0.3, matryoshka_dims=[6, 2])
    ours = co.adaptive_layers(
        step,
        layers,
        indices=[3, 7],
        layer_weighting=weighting,
        last_layer_weight=0.5,
        prior_layers_weight=0.7,
        kl_weight=0.9,
        kl_temperature=0.4,
    )
    by_name = {"uniform": lambda i: 1, "log": lambda i: 1 / (1 + math.log(1 + i))}
    by_name["linear"] = lambda i: 1 / (1 + i)
    weight = weighting if callable(weighting) else by_name[weighting]
    dense = 0.5 * step(*layers[-1])
    teacher = torch.cat(layers[-1]).detach()
    for index, pair in zip((3, 7), layers, strict=False):
        dense = dense + 0.7 * weight(index) / 2 * step(*pair)
        log_q = (torch.cat(pair) / 0.4).log_softmax(1)
        kl = torch.nn.functional.kl_div(log_q, (teacher / 0.4).softmax(1), reduction="batchmean")
        dense = dense + 0.9 * 0.4 * kl
    torch.testing.assert_close(ours, dense)
    leaves = [x for pair in layers for x in pair]
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(dense, leaves)
    )


def test_adaptive_layers_against_sentence_transformers(monkeypatch):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    adaptive = importlib.import_module(losses.AdaptiveLayerLoss.__module__)
    layers = layers_of(4)

    class Transformer(torch.nn.Module):
        """A backbone whose layers are given."""

        def __init__(self):
            super().__init__()
            config = SimpleNamespace(output_hidden_states=False)
            self.auto_model = SimpleNamespace(config=config)

        def forward(self, features):
            every = [pair[features["side"]] for pair in layers]
            features.update(all_layer_embeddings=every, token_embeddings=every[-1])
            return features

    class Model(torch.nn.Sequential):
        def forward(self, features):
            features = self[0].forward(features)
            return {**features, "sentence_embedding": features["token_embeddings"]}

    monkeypatch.setattr(adaptive, "Transformer", Transformer)
    monkeypatch.setattr(adaptive, "BaseModel", Model)
    model = Model(Transformer())
    inner = losses.MultipleNegativesRankingLoss(model, scale=10)
    theirs = losses.AdaptiveLayerLoss(
        model, inner, n_layers_per_step=-1, layer_weighting="linear", kl_temperature=0.3
    )
    expected = theirs([{"side": 0}, {"side": 1}], torch.empty(0))
    ours = co.adaptive_layers(functools.partial(co.info_nce, temperature=0.1), layers)
    torch.testing.assert_close(ours.to(expected.dtype), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "layers", "options"),
    [
        ("layers: got none", [], {}),
        ("indices: got", layers_of(2), {"indices": [1, 2]}),
        ("indices: got", layers_of(2), {"indices": [-1]}),
        ("layers: got shapes", [(A[:3], B[:3]), (A, B)], {}),
        ("layer_weighting", layers_of(2), {"layer_weighting": "quadratic"}),
        ("kl_temperature", layers_of(2), {"kl_temperature": 0}),
        ("prior_layers_weight", layers_of(2), {"prior_layers_weight": "1"}),
    ],
)
def test_bad_layers(message, layers, options):
    with pytest.raises(ValueError, match=message):
        co.adaptive_layers(co.info_nce, layers, **options)


def test_a_single_layer_is_the_loss():
    assert co.adaptive_layers(co.info_nce, [(A, B)]) == co.info_nce(A, B)
