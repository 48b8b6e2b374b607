"""Bad input is one clear error: the argument, what came, what was expected."""

import math

import pytest
import torch
from cases import D, H, K, M, N

from contrastive_ops import info_nce

query, key = torch.randn(N, D), torch.randn(M, D)
shared, own = torch.randn(K, D), torch.randn(N, H, D)
ids = {"query_ids": torch.arange(N), "key_ids": torch.arange(M)}
guide = (torch.randn(N, 3), torch.randn(M, 3))

# name of the argument at fault, operands (query, key[, negatives]), options
BAD = {
    "1-D query": ("query", (query[0], key), {}),
    "3-D query": ("query", (own, key), {}),
    "empty query": ("query", (query[:0], key), {}),
    "query without width": ("query", (query[:, :0], key[:, :0]), {}),
    "integer query": ("query", (query.long(), key.long()), {}),
    "complex query": ("query", (query.to(torch.complex64), key), {}),
    "boolean query": ("query", (query > 0, key), {}),
    "1-D key": ("key", (query, key[0]), {}),
    "fewer keys than queries": ("key", (query, key[: N - 1]), {}),
    "empty key": ("key", (query, key[:0]), {"positives": torch.zeros(N).long()}),
    "key of another width": ("key", (query, key[:, 1:]), {}),
    "key of another dtype": ("key", (query, key.double()), {}),
    "key in 16 bits": ("key", (query, key.bfloat16()), {}),
    "key on another device": ("key", (query, key.to("meta")), {}),
    "1-D negatives": ("negatives", (query, key, shared[0]), {}),
    "4-D negatives": ("negatives", (query, key, own[None]), {}),
    "negatives of another width": ("negatives", (query, key, shared[:, 1:]), {}),
    "negatives of another dtype": ("negatives", (query, key, shared.half()), {}),
    "negatives of another batch": ("negatives", (query, key, own[1:]), {}),
    "zero temperature": ("temperature", (query, key), {"temperature": 0.0}),
    "negative temperature": ("temperature", (query, key), {"temperature": -0.1}),
    "temperature beyond float32": ("temperature", (query, key), {"temperature": 1e308}),
    "infinite temperature": ("temperature", (query, key), {"temperature": math.inf}),
    "NaN temperature": ("temperature", (query, key), {"temperature": math.nan}),
    "temperature as text": ("temperature", (query, key), {"temperature": "0.05"}),
    "no temperature": ("temperature", (query, key), {"temperature": None}),
    "temperature a truth": ("temperature", (query, key), {"temperature": True}),
    "1-D temperature": ("temperature", (query, key), {"temperature": torch.ones(1)}),
    "integer temperature": ("temperature", (query, key), {"temperature": torch.tensor(1)}),
    "zero temperature tensor": ("temperature", (query, key), {"temperature": torch.tensor(0.0)}),
    "NaN temperature tensor": (
        "temperature",
        (query, key),
        {"temperature": torch.tensor(math.nan)},
    ),
    "scale and temperature": ("scale", (query, key), {"scale": 2.0, "temperature": 0.5}),
    "zero scale": ("scale", (query, key), {"scale": 0.0}),
    "negative scale tensor": ("scale", (query, key), {"scale": torch.tensor(-1.0)}),
    "1-D scale": ("scale", (query, key), {"scale": torch.ones(2)}),
    "symmetric without in-batch": (
        "symmetric",
        (query, key, shared),
        {"symmetric": True, "in_batch": False},
    ),
    "unknown scope": ("negatives_scope", (query, key, own), {"negatives_scope": "mine"}),
    "own scope of shared": ("negatives_scope", (query, key, shared), {"negatives_scope": "own"}),
    "fractional positives": ("positives", (query, key), {"positives": torch.zeros(N)}),
    "boolean positives": ("positives", (query, key), {"positives": torch.ones(N) > 0}),
    "too few positives": ("positives", (query, key), {"positives": torch.arange(N - 1)}),
    "3-D positives": ("positives", (query, key), {"positives": torch.zeros(N, 1, 1).long()}),
    "no positives": ("positives", (query, key), {"positives": torch.zeros(N, 0).long()}),
    "positive out of range": ("positives", (query, key), {"positives": torch.arange(N) + M - 2}),
    "negative positive": ("positives", (query, key), {"positives": torch.arange(N) - 1}),
    "positive given twice": ("positives", (query, key), {"positives": torch.ones(N, 2).long()}),
    "row of pads": ("positives", (query, key), {"positives": torch.full((N, 2), -1)}),
    "below a pad": ("positives", (query, key), {"positives": torch.full((N, 2), -2)}),
    "query ids alone": ("key_ids", (query, key), {"query_ids": torch.arange(N)}),
    "key ids alone": ("query_ids", (query, key), {"key_ids": torch.arange(M)}),
    "fractional ids": ("query_ids", (query, key), ids | {"query_ids": torch.rand(N)}),
    "too many ids": ("key_ids", (query, key), ids | {"key_ids": torch.arange(M + 1)}),
    "2-D ids": ("query_ids", (query, key), ids | {"query_ids": torch.arange(N)[None]}),
    "negative ids without others": (
        "negative_ids",
        (query, key, shared),
        {"negative_ids": torch.arange(K)},
    ),
    "negative ids without negatives": (
        "negative_ids",
        (query, key),
        ids | {"negative_ids": torch.arange(K)},
    ),
    "negative ids of another shape": (
        "negative_ids",
        (query, key, own),
        ids | {"negative_ids": torch.arange(N)},
    ),
    "NaN false-negative margin": (
        "false_negative_margin",
        (query, key),
        {"false_negative_margin": math.nan},
    ),
    "false-negative margin as text": (
        "false_negative_margin",
        (query, key),
        {"false_negative_margin": "0.1"},
    ),
    "guide of one": ("guide", (query, key), {"guide": guide[:1]}),
    "guide a tensor": ("guide", (query, key), {"guide": guide[0]}),
    "guide of another batch": ("guide", (query, key), {"guide": (guide[0][1:], guide[1])}),
    "guide of other keys": ("guide", (query, key), {"guide": (guide[0], guide[1][1:])}),
    "guide of two widths": ("guide", (query, key), {"guide": (guide[0], guide[1][:, 1:])}),
    "integer guide": ("guide", (query, key), {"guide": (guide[0].long(), guide[1])}),
    "guide negatives without negatives": (
        "guide",
        (query, key),
        {"guide": (*guide, torch.randn(K, 3))},
    ),
    "guide negatives of another shape": (
        "guide",
        (query, key, own),
        {"guide": (*guide, torch.randn(K, 3))},
    ),
    "NaN guide margin": ("guide_margin", (query, key), {"guide_margin": math.nan}),
    "infinite margin": ("margin", (query, key), {"margin": math.inf}),
    "margin a tensor": ("margin", (query, key), {"margin": torch.ones(N)}),
    "log-weight without negatives": (
        "negative_log_weight",
        (query, key),
        {"negative_log_weight": 0.5},
    ),
    "log-weight +inf": (
        "negative_log_weight",
        (query, key, shared),
        {"negative_log_weight": math.inf},
    ),
    "NaN log-weight": (
        "negative_log_weight",
        (query, key, shared),
        {"negative_log_weight": torch.full((K,), math.nan)},
    ),
    "log-weight of another shape": (
        "negative_log_weight",
        (query, key, own),
        {"negative_log_weight": torch.zeros(N)},
    ),
    "integer log-weight": (
        "negative_log_weight",
        (query, key, shared),
        {"negative_log_weight": torch.zeros(K).long()},
    ),
    "own log-weight without negatives": (
        "own_negative_log_weight",
        (query, key),
        {"own_negative_log_weight": 0.5},
    ),
    "own log-weight of shared": (
        "own_negative_log_weight",
        (query, key, shared),
        {"own_negative_log_weight": 0.5},
    ),
    "NaN own log-weight": (
        "own_negative_log_weight",
        (query, key, own),
        {"own_negative_log_weight": math.nan},
    ),
    "negative smoothing": ("label_smoothing", (query, key), {"label_smoothing": -0.1}),
    "smoothing above 1": ("label_smoothing", (query, key), {"label_smoothing": 1.1}),
    "NaN smoothing": ("label_smoothing", (query, key), {"label_smoothing": math.nan}),
    "zero prefix": ("matryoshka_dims", (query, key), {"matryoshka_dims": [0, 2]}),
    "prefix beyond the width": ("matryoshka_dims", (query, key), {"matryoshka_dims": [D + 1]}),
    "a number of prefixes": ("matryoshka_dims", (query, key), {"matryoshka_dims": 4}),
    "a truth as prefix": ("matryoshka_dims", (query, key), {"matryoshka_dims": [True]}),
    "no prefixes": ("matryoshka_dims", (query, key), {"matryoshka_dims": []}),
    "fractional prefix": ("matryoshka_dims", (query, key), {"matryoshka_dims": [1.5]}),
    "prefix weights alone": ("matryoshka_weights", (query, key), {"matryoshka_weights": [1.0]}),
    "too few prefix weights": (
        "matryoshka_weights",
        (query, key),
        {"matryoshka_dims": [1, 2], "matryoshka_weights": [1.0]},
    ),
    "NaN prefix weight": (
        "matryoshka_weights",
        (query, key),
        {"matryoshka_dims": [1], "matryoshka_weights": [math.nan]},
    ),
    "integer row weight": ("row_weight", (query, key), {"row_weight": torch.ones(N).long()}),
    "too few row weights": ("row_weight", (query, key), {"row_weight": torch.ones(N - 1)}),
    "negative row weight": ("row_weight", (query, key), {"row_weight": -torch.ones(N)}),
    "no row weighs": ("row_weight", (query, key), {"row_weight": torch.zeros(N)}),
    "NaN row weight": ("row_weight", (query, key), {"row_weight": torch.full((N,), math.nan)}),
    "unknown reduction": ("reduction", (query, key), {"reduction": "avg"}),
    "no reduction": ("reduction", (query, key), {"reduction": None}),
    "unknown backend": ("backend", (query, key), {"backend": "tpu"}),
    "backend of another release": ("backend", (query, key), {"backend": "cuda"}),
    "zero workspace": ("workspace_bytes", (query, key), {"workspace_bytes": 0}),
    "fractional workspace": ("workspace_bytes", (query, key), {"workspace_bytes": 1e6}),
}

NO_TENSOR = {
    "query": (query.tolist(), key),
    "key": (query, key.numpy()),
    "negatives": (query, key, shared.tolist()),
}
NO_TENSOR_OPTIONS = {
    "positives": list(range(N)),
    "query_ids": list(range(N)),
    "row_weight": [1.0] * N,
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_value_error(case, reduction):
    name, operands, options = BAD[case]
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])?: .*(expected|cannot|needs)") as error:
        info_nce(*operands, **{"reduction": reduction} | options)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NO_TENSOR)
def test_type_error_of_operands(name):
    with pytest.raises(TypeError, match=f"^{name}: got .*expected"):
        info_nce(*NO_TENSOR[name])


@pytest.mark.parametrize("name", NO_TENSOR_OPTIONS)
def test_type_error_of_options(name):
    with pytest.raises(TypeError, match=f"^{name}: got .*expected"):
        info_nce(query, key, **ids | {name: NO_TENSOR_OPTIONS[name]})


def test_same_errors_in_every_backend(backend):
    """A check belongs to the call, not to the backend that happens to serve it."""
    with pytest.raises(ValueError, match="positives: "):
        info_nce(query, key, positives=torch.full((N,), M), backend=backend)


def test_nothing_good_is_refused(backend):
    """The borders of what is allowed."""
    allowed = [
        {"label_smoothing": 1.0},
        {"label_smoothing": 0},
        {"margin": 0},
        {"temperature": 1},
        {"scale": 20},
        {"false_negative_margin": -3.0},
        {"positives": torch.zeros(N, 1).long()},
        {"positives": torch.zeros(N, dtype=torch.int32)},
        {"row_weight": torch.eye(N)[0]},
        {"row_weight": torch.ones(N).double()},
        {"matryoshka_dims": (D, 1)},
        {"workspace_bytes": 1},
        {"guide": list(guide)},
    ]
    for options in allowed:
        assert info_nce(query, key, backend=backend, **options).isfinite(), options
