"""One small call of info_nce per option, in float64: the table that most tests run over."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import oracle
import torch
from torch import Tensor

import contrastive_ops

N, M, D, K, H = 6, 9, 4, 5, 3


@dataclass(frozen=True)
class Call:
    """Arguments of one call; `without` names what neutralises the option that is under test."""

    query: Tensor
    key: Tensor
    negatives: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        def brief(value: Any) -> Any:
            if isinstance(value, Tensor) and value.numel() > 6:
                return f"{str(value.dtype)[6:]}{list(value.shape)} strides {list(value.stride())}"
            return [brief(v) for v in value] if isinstance(value, tuple) else value

        return f"Call({ {name: brief(value) for name, value in self.arguments.items()} })"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every number of every tensor

    def loss(self, **more: Any) -> Tensor:
        arguments = self.arguments | more
        return contrastive_ops.info_nce(
            arguments.pop("query"), arguments.pop("key"), arguments.pop("negatives"), **arguments
        )

    def oracle(self, **more: Any) -> Any:
        return oracle.info_nce(**self.arguments | more)

    def derivative(self, directions: dict[str, Tensor]) -> float:
        return oracle.derivative(directions, **self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        operands = {"query": self.query, "key": self.key, "negatives": self.negatives}
        return operands | self.options

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The arguments that have a gradient, by name."""
        names = ("query", "key", "negatives", "temperature", "scale")
        arguments = self.arguments
        return {n: arguments[n] for n in names if isinstance(arguments.get(n), Tensor)}

    def with_leaves(self, leaves: dict[str, Tensor]) -> "Call":
        operands = {n: leaves.get(n, getattr(self, n)) for n in ("query", "key", "negatives")}
        others = {n: t for n, t in leaves.items() if n not in operands}
        return replace(self, **operands, options=self.options | others)

    def fresh(self, dtype: torch.dtype | None = None) -> "Call":
        """The same call on new leaves that require gradients."""
        return self.with_leaves(
            {n: t.detach().to(dtype or t.dtype).requires_grad_() for n, t in self.leaves.items()}
        )

    def gradients(self, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradients on fresh leaves (of the sum, should the loss have rows)."""
        call = self.fresh()
        loss = call.loss(**more)
        loss.sum().backward()
        return loss.detach(), {n: t.grad for n, t in call.leaves.items()}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def temperature(value: float = 0.3) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def one(n: int = N, m: int = M, negatives: Tensor | None = None, without=None, **options) -> Call:
    """A call on normal rows: keys resemble their queries, so that probabilities are not trivial."""
    query = normal(n, D, seed=1)
    key = normal(m, D, seed=2)
    if "positives" not in options:
        key = torch.cat([query + key[:n], key[n:]])
    return Call(query, key, negatives, {"temperature": temperature()} | options, without or {})


def shared(k: int = K) -> Tensor:
    return normal(k, D, seed=3)


def per_query(n: int = N, h: int = H) -> Tensor:
    return normal(n, h, D, seed=4)


def index() -> Tensor:
    return torch.tensor([3, 1, 1, 0, 4, 2])


def several() -> Tensor:
    """(N, P) with pads in every place; key 1 is a positive of three queries."""
    return torch.tensor([[0, 1, -1], [1, -1, -1], [-1, 2, 5], [3, 1, 8], [-1, -1, 4], [5, 6, 7]])


def ids() -> dict[str, Tensor]:
    """Queries 0 and 3 share an id; key 7 has query 1's, key 8 nobody's."""
    return {
        "query_ids": torch.tensor([10, 11, 12, 10, 14, 15]),
        "key_ids": torch.tensor([10, 11, 12, 10, 14, 15, 16, 11, 99]),
    }


NO_IDS = {"query_ids": None, "key_ids": None, "negative_ids": None}


def guide(negatives: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
    """Another model's rows, of another width and dtype."""
    rows = [normal(N, 3, seed=5), normal(M, 3, seed=6)]
    rows[1][:N] += rows[0]
    if negatives is not None:
        rows.append(normal(*negatives, 3, seed=7))
    return tuple(row.float() for row in rows)


def padded_weights() -> Tensor:
    weights = normal(N, H, seed=8)
    weights[0, 1] = weights[2] = weights[5, 2] = -math.inf
    return weights


def everything() -> Call:
    return one(
        negatives=per_query(),
        **ids(),
        negative_ids=torch.arange(10, 10 + N * H).view(N, H),
        false_negative_margin=0.1,
        guide=guide((N, H)),
        guide_margin=-0.2,
        margin=0.15,
        negative_log_weight=padded_weights(),
        own_negative_log_weight=0.4,
        label_smoothing=0.1,
        row_weight=normal(N, seed=9).abs(),
        without={"own_negative_log_weight": None},
    )


SMOOTH = {"label_smoothing": 0.0}
CASES: dict[str, Callable[[], Call]] = {
    "square": lambda: one(m=N, without={"temperature": 1.0}),
    "more keys": lambda: one(without={"key": one().key[:N]}),
    "scale": lambda: replace(one(), options={"scale": temperature(3.0)}, without={"scale": 1.0}),
    "dot product": lambda: one(normalize=False, without={"normalize": True}),
    "margin": lambda: one(margin=0.2, without={"margin": 0.0}),
    "negative margin": lambda: one(margin=-0.2, without={"margin": 0.0}),
    "shared negatives": lambda: one(negatives=shared(), without={"negatives": None}),
    "per-query negatives": lambda: one(negatives=per_query(), without={"negatives_scope": "own"}),
    "own negatives": lambda: one(
        negatives=per_query(), negatives_scope="own", without={"negatives_scope": "all"}
    ),
    "no in-batch": lambda: one(m=N, negatives=shared(), in_batch=False, without={"in_batch": True}),
    "no in-batch, own": lambda: one(
        m=N,
        negatives=per_query(),
        negatives_scope="own",
        in_batch=False,
        without={"in_batch": True},
    ),
    "no in-batch, several positives": lambda: one(
        positives=several(), in_batch=False, without={"in_batch": True}
    ),
    "positives by index": lambda: one(
        m=5, positives=index(), without={"positives": torch.arange(N) % 5}
    ),
    "several positives": lambda: one(positives=several(), without={"positives": several().amax(1)}),
    "ids": lambda: one(**ids(), without=NO_IDS),
    "ids of shared negatives": lambda: one(
        negatives=shared(),
        **ids(),
        negative_ids=torch.tensor([10, 1, 12, 12, 3]),
        without={"negative_ids": torch.zeros(K, dtype=torch.int64)},
    ),
    "ids of per-query negatives": lambda: one(
        negatives=per_query(),
        **ids(),
        negative_ids=torch.arange(10, 10 + N * H).view(N, H),
        without={"negative_ids": torch.zeros(N, H, dtype=torch.int64)},
    ),
    "ids, several positives": lambda: one(positives=several(), **ids(), without=NO_IDS),
    "false-negative margin": lambda: one(
        negatives=shared(), false_negative_margin=-0.1, without={"false_negative_margin": None}
    ),
    "false-negative margin, several positives": lambda: one(
        positives=several(), false_negative_margin=0.2, without={"false_negative_margin": None}
    ),
    "guide": lambda: one(guide=guide(), without={"guide": None}),
    "guide margin": lambda: one(guide=guide(), guide_margin=0.3, without={"guide_margin": 0.0}),
    "guide, shared negatives": lambda: one(
        negatives=shared(),
        guide=guide((K,)),
        guide_margin=0.2,
        without={"guide": guide()},
    ),
    "guide, per-query negatives": lambda: one(
        negatives=per_query(),
        guide=guide((N, H)),
        guide_margin=0.2,
        without={"guide": guide()},
    ),
    "guide, own negatives": lambda: one(
        negatives=per_query(),
        negatives_scope="own",
        guide=guide((N, H)),
        guide_margin=0.2,
        without={"guide": guide()},
    ),
    "guide, several positives": lambda: one(
        positives=several(), guide=guide(), without={"guide": None}
    ),
    "log-weight number": lambda: one(
        negatives=shared(), negative_log_weight=0.7, without={"negative_log_weight": None}
    ),
    "log-weight of shared": lambda: one(
        negatives=shared(),
        negative_log_weight=normal(K, seed=8),
        without={"negative_log_weight": None},
    ),
    "log-weight of per-query": lambda: one(
        negatives=per_query(),
        negative_log_weight=padded_weights(),
        without={"negative_log_weight": padded_weights().clamp(min=-9.0)},
    ),
    "log-weight of own": lambda: one(
        negatives=per_query(),
        negatives_scope="own",
        negative_log_weight=padded_weights(),
        without={"negative_log_weight": None},
    ),
    "own log-weight": lambda: one(
        negatives=per_query(),
        own_negative_log_weight=math.log(2),
        without={"own_negative_log_weight": None},
    ),
    "own log-weight, own scope": lambda: one(
        negatives=per_query(),
        negatives_scope="own",
        negative_log_weight=-0.3,
        own_negative_log_weight=math.log(2),
        without={"own_negative_log_weight": None},
    ),
    "own negatives screened out": lambda: one(
        negatives=per_query(),
        own_negative_log_weight=-math.inf,
        label_smoothing=0.2,
        without={"own_negative_log_weight": -9.0},
    ),
    "smoothing": lambda: one(label_smoothing=0.1, without=SMOOTH),
    "smoothing, nothing else": lambda: one(label_smoothing=1.0, without=SMOOTH),
    "smoothing, negatives with pads": lambda: one(
        negatives=per_query(),
        negative_log_weight=padded_weights(),
        label_smoothing=0.2,
        without=SMOOTH,
    ),
    "smoothing, ids": lambda: one(**ids(), label_smoothing=0.2, without=NO_IDS),
    "smoothing, several positives": lambda: one(
        positives=several(), label_smoothing=0.2, margin=0.1, without=SMOOTH
    ),
    "row weight": lambda: one(
        row_weight=torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 1.0]), without={"row_weight": None}
    ),
    "sum": lambda: one(reduction="sum", without={"reduction": "mean"}),
    "weighted sum": lambda: one(
        reduction="sum", row_weight=normal(N, seed=9).abs(), without={"row_weight": None}
    ),
    "matryoshka": lambda: one(matryoshka_dims=[2, 4, 1], without={"matryoshka_dims": None}),
    "matryoshka, weighted": lambda: one(
        negatives=shared(),
        matryoshka_dims=[3, 1],
        matryoshka_weights=[0.5, 2.0],
        false_negative_margin=0.05,
        without={"matryoshka_weights": None},
    ),
    "symmetric": lambda: one(m=N, symmetric=True, without={"symmetric": False}),
    "symmetric, more keys": lambda: one(symmetric=True, without={"symmetric": False}),
    "symmetric, negatives": lambda: one(
        negatives=per_query(), symmetric=True, without={"symmetric": False}
    ),
    "symmetric, positives by index": lambda: one(
        m=5, positives=index(), symmetric=True, without={"symmetric": False}
    ),
    "symmetric, several positives": lambda: one(
        positives=several(), symmetric=True, without={"symmetric": False}
    ),
    "symmetric, ids": lambda: one(**ids(), symmetric=True, without=NO_IDS),
    "symmetric, ids, several positives": lambda: one(
        positives=several(), **ids(), symmetric=True, without=NO_IDS
    ),
    "symmetric, false-negative margin": lambda: one(
        false_negative_margin=0.0, symmetric=True, without={"false_negative_margin": None}
    ),
    "symmetric, margins, several positives": lambda: one(
        positives=several(),
        false_negative_margin=0.1,
        margin=0.1,
        symmetric=True,
        without={"false_negative_margin": None},
    ),
    "symmetric, guide": lambda: one(guide=guide(), symmetric=True, without={"guide": None}),
    "symmetric, guide, several positives": lambda: one(
        positives=several(), guide=guide(), symmetric=True, without={"guide": None}
    ),
    "symmetric, smoothing": lambda: one(label_smoothing=0.1, symmetric=True, without=SMOOTH),
    "symmetric, smoothing, ids, several positives": lambda: one(
        positives=several(), **ids(), label_smoothing=0.3, symmetric=True, without=SMOOTH
    ),
    "symmetric, margin": lambda: one(margin=0.2, symmetric=True, without={"margin": 0.0}),
    "symmetric, row weight": lambda: one(
        row_weight=normal(N, seed=9).abs(), symmetric=True, without={"row_weight": None}
    ),
    "symmetric, dot product": lambda: one(
        normalize=False, symmetric=True, without={"symmetric": False}
    ),
    "symmetric, matryoshka": lambda: one(
        symmetric=True,
        matryoshka_dims=[4, 2],
        guide=guide(),
        without={"matryoshka_dims": None},
    ),
    "everything": everything,
    "everything, symmetric": lambda: replace(
        everything(), options=everything().options | {"symmetric": True}
    ),
    "everything, several positives": lambda: replace(
        everything(), options=everything().options | {"positives": several(), "symmetric": True}
    ),
}
