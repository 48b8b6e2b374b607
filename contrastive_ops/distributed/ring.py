r"""Strategy ``ring``: candidates travel from rank to rank, none ever holds them all.

The loss of a row among one rank's candidates is a loss of its own, :math:`L_b`, relative to the
row's positive. The loss among those of all ranks is put together from them, without the difference
of two large numbers anywhere, and so is its gradient:

.. math:: e^L - 1 = \sum_b (e^{L_b} - 1) \qquad \partial L / \partial L_b = e^{L_b - L}

One round finds the losses; another, in the backward, the gradients: those of candidates travel with
them and arrive at home last. That is 4 matrix products in place of 3. A rank keeps two blocks of
candidates, a block's gradient, and for each of its rows a number a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.problem import Operands, SimilarityProblem, each_prefix
from ..engine.similarity import positive_index
from ..engine.softmax_ce import softmax_ce
from ..objectives.arguments import take_rows, wide
from .collectives import Spread
from .directions import Layout
from .travel import Candidates, around, passed_on


class Journey(NamedTuple):
    """The candidates of one kind, and what this rank's rows know of them."""

    own: Candidates
    spread: Spread
    row_ids: Tensor | None  # (R, n), as in `Operands.query_ids`
    group: int = 0  # as in `SimilarityProblem`, of this rank's own


class Itinerary(NamedTuple):
    """All that a ring needs, without gradients."""

    problem: SimilarityProblem
    rows: Operands  # `key` holds their positives alone
    journeys: list[Journey]
    backend: str | None

    def blocks(self) -> Iterator[tuple[int, int, SimilarityProblem, Operands]]:
        """Each block of candidates as a problem of this rank's rows: its journey, its rank, both.

        The first is that of the rows' own negatives, if any: it makes no journey, -1.
        """
        alone = self.problem._replace(in_batch=False, group=0)
        yield -1, -1, alone, self.rows
        rows = self.rows._replace(own_negatives=None, own_bias=None)
        for place, journey in enumerate(self.journeys):
            for origin, block in around(journey.own, journey.spread):
                at_home = origin == journey.spread.rank
                problem = alone._replace(group=journey.group if at_home else 0)
                operands = rows._replace(
                    negatives=block.rows,
                    query_ids=journey.row_ids,
                    negative_ids=None if block.ids is None else block.ids.T,
                    negative_bias=block.bias,
                    guide_negatives=block.guide,
                )
                yield place, origin, problem, operands
                del block, operands  # before the next arrive


def check_ring(problem: SimilarityProblem, operands: Operands, statistics: object) -> None:
    """ValueError for what needs all candidates of a row at once."""
    width = positive_index(operands).shape[1]
    for name, value, serves in (
        ("false_negative_margin", problem.false_negative_margin, torch.inf),
        ("label_smoothing", problem.label_smoothing, 0.0),
        ("positives", f"{width} a row", "1 a row"),
        ("statistics", statistics, None),
    ):
        if value != serves:
            raise ValueError(
                f"{name}: got {value} with strategy='ring', expected {serves}, or "
                "strategy='all_gather'"
            )


def ring(
    problem: SimilarityProblem,
    operands: Operands,
    layout: Layout,
    weight: Tensor | None,
    backend: str | None,
    summary: Tensor | None = None,
) -> Tensor:
    """A :class:`.directions.Strategy`, for what :func:`check_ring` lets pass."""
    losses = _losses(problem, operands, layout, backend)
    return losses if weight is None else (losses * weight).sum()


def _losses(
    problem: SimilarityProblem, operands: Operands, layout: Layout, backend: str | None
) -> Tensor:
    if problem.prefixes:
        each = each_prefix(problem, operands)
        return torch.stack([w * _losses(p, o, layout, backend) for _, w, p, o in each]).sum(0)
    o = operands
    number = positive_index(o)[:, 0]
    key = o.key[: len(number)] if o.positives is None else take_rows(o.key, number)
    # A sum over blocks, whose gradient is therefore wide.
    temperature = None if o.temperature is None else o.temperature.double()
    differentiable = (o.query, key, o.own_negatives, temperature)
    o = Operands(*[None if t is None else t.detach() for t in o])  # type: ignore[arg-type]
    rows = Operands(
        query=o.query,
        key=key.detach(),
        own_negatives=o.own_negatives,
        own_bias=o.own_bias,
        temperature=None if temperature is None else temperature.detach(),
        guide_query=o.guide_query,
        guide_threshold=o.guide_threshold,
    )
    journeys = list(_journeys(problem, o, layout, number))
    sent = ([operands.key] if problem.in_batch else []) + [operands.negatives]
    itinerary = Itinerary(problem, rows, journeys, backend)
    return _Ring.apply(itinerary, *differentiable, *sent[: len(journeys)])


def _journeys(
    problem: SimilarityProblem, o: Operands, layout: Layout, number: Tensor
) -> Iterator[Journey]:
    """Of the keys, and of the negatives, where rows see them; ``number`` is a row's positive."""
    if problem.in_batch:
        # A row's positive is left out of the keys by its number: one more id.
        first = layout.keys.first
        row_ids = (number + first).unsqueeze(0)
        ids = torch.arange(first, first + len(o.key), device=o.key.device).unsqueeze(1)
        if o.query_ids is not None and o.key_ids is not None:
            row_ids = torch.cat([row_ids, o.query_ids])
            ids = torch.cat([ids, o.key_ids.T], 1)
        yield Journey(Candidates(o.key, ids, None, o.guide_key), layout.keys, row_ids)
    if o.negatives is not None:
        own = Candidates(
            o.negatives,
            None if o.negative_ids is None else o.negative_ids.T,
            o.negative_bias,
            o.guide_negatives,
        )
        compared = None if o.negative_ids is None else o.query_ids
        yield Journey(own, layout.negatives, compared, problem.group)


class _Ring(torch.autograd.Function):
    """Losses (n,) of the rows; differentiable in query, positive, own negatives, temperature, and
    the rows that travel."""

    @staticmethod
    def forward(ctx: Any, itinerary: Itinerary, *tensors: Tensor | None) -> Tensor:
        blocks = torch.stack(
            [
                softmax_ce(problem, operands, None, itinerary.backend)
                for _, _, problem, operands in itinerary.blocks()
            ]
        ).double()
        # log(e^L - 1) of each block, which neither overflows nor loses a small loss.
        odds = blocks + (-torch.expm1(-blocks)).log()
        losses = torch.nn.functional.softplus(odds.logsumexp(0), threshold=40.0)
        ctx.itinerary = itinerary
        ctx.save_for_backward(*tensors, blocks, losses)
        return losses.to(itinerary.rows.accumulation_dtype)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what follows would silently be a constant
            raise ValueError(
                "strategy: got 'ring' for second derivatives (create_graph=True), expected "
                "'all_gather'"
            )
        *tensors, blocks, losses = ctx.saved_tensors
        itinerary: Itinerary = ctx.itinerary
        shares = (grad_losses * (blocks - losses).exp()).to(itinerary.rows.accumulation_dtype)
        wanted, travelling = ctx.needs_input_grad[1:5], ctx.needs_input_grad[5:]
        sums: list[Tensor | None] = [None] * 4
        carried: list[Tensor | None] = [None] * len(travelling)
        parts = zip(shares, itinerary.blocks(), strict=True)
        for share, (place, origin, problem, operands) in parts:
            wants = place >= 0 and travelling[place]
            flags = (*wanted, wants)
            sent = _add_gradients(sums, problem, operands, share, itinerary.backend, flags)
            del operands
            if sent is not None:
                grad = _sum(carried[place], sent)
                del sent
                carried[place] = passed_on(grad, itinerary.journeys[place].spread, origin)
                del grad
        return None, *[
            None if grad is None else grad.to(tensor.dtype)
            for grad, tensor in zip([*sums, *carried], tensors, strict=True)
        ]


_IN = ("query", "key", "own_negatives", "temperature", "negatives")


def _add_gradients(
    sums: list[Tensor | None],
    problem: SimilarityProblem,
    operands: Operands,
    weight: Tensor,
    backend: str | None,
    wanted: tuple[bool, ...],
) -> Tensor | None:
    """Adds those of sum_i weight_i L_i in the wanted of :data:`_IN`, in float32 at least; returns
    the last, the candidates' own."""
    given = zip(_IN, wanted, strict=True)
    leaves = {
        name: getattr(operands, name).detach().requires_grad_()
        for name, wants in given
        if wants and getattr(operands, name) is not None
    }
    if not leaves:
        return None
    with torch.enable_grad():
        loss = softmax_ce(problem, operands._replace(**leaves), weight, backend)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for place, name in enumerate(_IN[: len(sums)]):
        if name in grads:
            sums[place] = _sum(sums[place], wide(grads.pop(name)))
    return wide(grads["negatives"]) if grads else None


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a.add_(b)
