"""Brute-force InfoNCE in plain Python numbers: one (query, candidate) pair at a time.

It shares nothing with the package. Numbers are Python floats, or complex numbers whose tiny
imaginary part carries a directional derivative (the complex step: no subtraction, so the
derivative is as exact as the value). Every comparison looks at real parts alone.
"""

import cmath
import math
from collections.abc import Sequence

import torch

Number = float | complex
Row = list[Number]

STEP = 1e-60  # its square vanishes beside any value here, so the complex step is exact


def info_nce(
    query,
    key,
    negatives=None,
    *,
    temperature=0.05,
    scale=None,
    symmetric=False,
    in_batch=True,
    negatives_scope="all",
    positives=None,
    query_ids=None,
    key_ids=None,
    negative_ids=None,
    false_negative_margin=None,
    guide=None,
    guide_margin=0.0,
    margin=0.0,
    negative_log_weight=None,
    own_negative_log_weight=None,
    label_smoothing=0.0,
    matryoshka_dims=None,
    matryoshka_weights=None,
    row_weight=None,
    normalize=True,
    reduction="mean",
):
    """The loss (a number; a list for reduction "none"), by the definition of every argument."""
    queries, keys = _plain(query), _plain(key)
    groups = _groups(negatives)
    inverse = _plain(scale) if scale is not None else 1 / _plain(temperature)
    positive_sets = _positive_sets(positives, len(queries))
    guides = None if guide is None else _Guide(guide)
    ids = _Ids(query_ids, key_ids, negative_ids)
    shared_weight = _Weights(negative_log_weight)
    own_weight = _Weights(own_negative_log_weight)

    def one_width(width):
        q = [row[:width] for row in queries]
        k = [row[:width] for row in keys]
        n = [[row[:width] for row in group] for group in groups]
        return [row_loss(i, q, k, n) for i in range(len(q))]

    def similarity(x, y):
        return _cosine(x, y) if normalize else _dot(x, y)

    def row_loss(i, q, k, n):
        forth = query_to_key(i, q, k, n)
        if not symmetric:
            return forth
        back = [key_to_query(i, p, q, k) for p in positive_sets[i]]
        return (forth + _total(back) / len(back)) / 2

    def query_to_key(i, q, k, n):
        mine = positive_sets[i]
        positive_similarities = [similarity(q[i], k[p]) for p in mine]
        weakest = min(_real(s) for s in positive_similarities)
        weakest_guide = None if guides is None else min(guides.key(i, p) for p in mine)
        positive_logits = [(s - margin) * inverse for s in positive_similarities]
        others = []
        if in_batch:
            for j in range(len(k)):
                if j in mine or ids.same_key(i, j):
                    continue
                s = similarity(q[i], k[j])
                if false_negative_margin is not None and _real(s) > weakest + false_negative_margin:
                    continue
                if guides is not None and guides.key(i, j) > weakest_guide - guide_margin:
                    continue
                others.append(s * inverse)
        for g, group in enumerate(n):
            own = negatives is not None and negatives.dim() == 3 and g == i
            if negatives_scope == "own" and not own:
                continue
            for h, row in enumerate(group):
                where = (g, h) if negatives.dim() == 3 else (h,)
                weight = shared_weight.at(where) + (own_weight.at(where) if own else 0.0)
                if _real(weight) == -math.inf or ids.same_negative(i, where):
                    continue
                if (
                    guides is not None
                    and guides.has_negatives
                    and guides.negative(i, where) > weakest_guide - guide_margin
                ):
                    continue
                others.append(similarity(q[i], row) * inverse + weight)
        return _cross_entropy(positive_logits, others, label_smoothing)

    def key_to_query(i, p, q, k):
        anchor = similarity(q[i], k[p])
        others = []
        for j in range(len(q)):
            if j == i or p in positive_sets[j] or ids.same_key(j, p):
                continue
            s = similarity(q[j], k[p])
            if (
                false_negative_margin is not None
                and _real(s) > _real(anchor) + false_negative_margin
            ):
                continue
            if guides is not None and guides.key(j, p) > guides.key(i, p) - guide_margin:
                continue
            others.append(s * inverse)
        return _cross_entropy([(anchor - margin) * inverse], others, label_smoothing)

    dims = [len(queries[0])] if matryoshka_dims is None else list(matryoshka_dims)
    dim_weights = [1.0] * len(dims) if matryoshka_weights is None else list(matryoshka_weights)
    per_dim = [one_width(d) for d in dims]
    losses = [
        _total([w * rows[i] for w, rows in zip(dim_weights, per_dim, strict=True)])
        for i in range(len(queries))
    ]
    row_weights = [1.0] * len(queries) if row_weight is None else _plain(row_weight)
    weighted = [w * loss for w, loss in zip(row_weights, losses, strict=True)]
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return _total(weighted)
    return _total(weighted) / _total(row_weights)


def derivative(directions: dict[str, torch.Tensor], /, *tensors: torch.Tensor, **options) -> float:
    """Derivative of the loss along `directions`, by argument name (all of them at once)."""
    call = dict(zip(("query", "key", "negatives"), tensors, strict=False)) | options
    for name, direction in directions.items():
        value = torch.as_tensor(call[name], dtype=torch.float64)
        call[name] = torch.complex(value.detach(), direction.double() * STEP)
    return info_nce(**call).imag / STEP


class _Ids:
    def __init__(self, query_ids, key_ids, negative_ids):
        self.query = None if query_ids is None else query_ids.tolist()
        self.keys = None if key_ids is None else key_ids.tolist()
        self.negatives = None if negative_ids is None else negative_ids.tolist()

    def same_key(self, i, j):
        return self.keys is not None and self.query[i] == self.keys[j]

    def same_negative(self, i, where):
        return self.negatives is not None and self.query[i] == _at(self.negatives, where)


class _Guide:
    """Cosines of the guide's rows: no derivative passes through them."""

    def __init__(self, guide):
        self.queries, self.keys = (_detached(part) for part in guide[:2])
        self.has_negatives = len(guide) == 3
        self.negatives = _detached(guide[2]) if self.has_negatives else None

    def key(self, i, j):
        return _cosine(self.queries[i], self.keys[j])

    def negative(self, i, where):
        return _cosine(self.queries[i], _at(self.negatives, where))


class _Weights:
    def __init__(self, value):
        self.value = 0.0 if value is None else _plain(value)

    def at(self, where):
        return _at(self.value, where) if isinstance(self.value, list) else self.value


def _cross_entropy(positive_logits, other_logits, smoothing):
    """Mean of the positives' negative log-probabilities, smoothed over every kept candidate."""
    logits = [*positive_logits, *other_logits]
    losses = [_negative_log_probability(c, logits) for c in range(len(logits))]
    target = _total(losses[: len(positive_logits)]) / len(positive_logits)
    if smoothing == 0.0:
        return target
    return (1 - smoothing) * target + smoothing * _total(losses) / len(losses)


def _negative_log_probability(chosen, logits):
    """log(1 + sum of exp(other - chosen)): small losses keep their digits."""
    gaps = [logit - logits[chosen] for c, logit in enumerate(logits) if c != chosen]
    if not gaps:
        return 0.0 * logits[chosen]
    top = max(_real(gap) for gap in gaps)
    if top <= 0:
        return _log1p(_total([_exp(gap) for gap in gaps]))
    return top + _log(math.exp(-top) + _total([_exp(gap - top) for gap in gaps]))


def _dot(x: Row, y: Row) -> Number:
    return _total([a * b for a, b in zip(x, y, strict=True)])


def _cosine(x: Row, y: Row) -> Number:
    """A zero row has no direction: similarity 0, constant."""
    if not any(_real(a) for a in x) or not any(_real(b) for b in y):
        return 0.0
    return _dot(x, y) / (_sqrt(_dot(x, x)) * _sqrt(_dot(y, y)))


def _total(terms: Sequence[Number]) -> Number:
    real = math.fsum(_real(t) for t in terms)
    if any(isinstance(t, complex) for t in terms):
        return complex(real, math.fsum(t.imag for t in terms))
    return real


def _real(x: Number) -> float:
    return x.real


def _exp(x: Number) -> Number:
    return cmath.exp(x) if isinstance(x, complex) else math.exp(x)


def _log(x: Number) -> Number:
    return cmath.log(x) if isinstance(x, complex) else math.log(x)


def _log1p(x: Number) -> Number:
    if isinstance(x, complex):
        return complex(math.log1p(x.real), x.imag / (1 + x.real))
    return math.log1p(x)


def _sqrt(x: Number) -> Number:
    return cmath.sqrt(x) if isinstance(x, complex) else math.sqrt(x)


def _at(nested, where):
    for index in where:
        nested = nested[index]
    return nested


def _plain(value):
    """Nested lists of Python numbers, exactly as the tensor holds them."""
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


def _detached(value: torch.Tensor):
    return (value.real if value.is_complex() else value).detach().double().tolist()


def _groups(negatives):
    """Explicit negatives as groups: one per query, or one shared group."""
    if negatives is None:
        return []
    rows = _plain(negatives)
    return rows if negatives.dim() == 3 else [rows]


def _positive_sets(positives, count):
    if positives is None:
        return [[i] for i in range(count)]
    if positives.dim() == 1:
        return [[p] for p in positives.tolist()]
    return [[p for p in row if p >= 0] for row in positives.tolist()]
