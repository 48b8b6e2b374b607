"""Before anything travels: whether all ranks mean the same loss, and how many rows each has.

A rank that raised alone would leave the others waiting for it. So a rank's mistake, or arguments
that differ, is an error of every rank, found by one exchange of a few integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Spread, all_gather_rows

Facts = Mapping[str, str]
"""What has to be the same on every rank, by argument."""


def members(group: dist.ProcessGroup | None) -> int:
    """How many ranks the group has; 1 where no process group is initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise ValueError(f"group: got {group!r}, expected an initialised process group")
        return 1
    if dist.get_rank(group) < 0:
        raise ValueError("group: this process is not in it, expected one of its ranks")
    return dist.get_world_size(group)


def agree(
    group: dist.ProcessGroup | None,
    facts: Facts,
    counts: Sequence[int],
    error: Exception | None,
) -> list[Spread]:
    """A :class:`Spread` for each of this rank's ``counts``.

    Args:
        facts: what every rank has to have alike.
        counts: rows of each set on this rank.
        error: what this rank's arguments raised, if so.

    Raises:
        ValueError: on all ranks, where the arguments of one are wrong or ``facts`` differ; on the
            rank whose arguments are wrong, ``error`` itself.
    """
    rank = dist.get_rank(group)
    digest = hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=7).digest()
    row = [int(error is not None), int.from_bytes(digest, "big"), *counts]
    rows = _exchanged(row, group)
    if any(failed for failed, *_ in rows) or len({digest for _, digest, *_ in rows}) > 1:
        found: list[Any] = [None] * len(rows)
        mistake = None if error is None else str(error)
        dist.all_gather_object(found, (mistake, dict(facts)), group=group)
        if error is not None:
            raise error
        raise ValueError(_difference(rank, found))
    return [Spread(group, rank, column) for column in zip(*(r[2:] for r in rows), strict=True)]


def fact(value: Any) -> str:
    """What of an argument has to be alike: of a tensor all but its values and number of rows."""
    if isinstance(value, Tensor):
        gradient = ", with gradient" if value.requires_grad and torch.is_grad_enabled() else ""
        shape = ", ".join(["rows", *map(str, value.shape[1:])] if value.dim() else [])
        return f"a {value.dtype} tensor ({shape}){gradient}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(fact, value))})"
    return repr(value)


def _exchanged(row: list[int], group: dist.ProcessGroup | None) -> list[list[int]]:
    """Every rank's row, by way of the CPU if the group has one: that waits for no GPU."""
    config = dist.get_backend_config(group)
    device = torch.device("cpu")
    if "cpu:" not in config:
        kind = config.partition(":")[0]
        device = torch.device(kind, torch.get_device_module(kind).current_device())
    own = torch.tensor([row], device=device)
    every = own.new_empty(dist.get_world_size(group), len(row))
    all_gather_rows(every, own, group)
    return every.tolist()


def _difference(rank: int, found: list[tuple[str | None, dict[str, str]]]) -> str:
    """What is wrong with the others' arguments: a mistake of one, else the first that differs."""
    for other, (mistake, _) in enumerate(found):
        if mistake is not None:
            return f"rank {other} of the group has wrong arguments: {mistake}"
    own = found[rank][1]
    for name in own:
        for other, (_, facts) in enumerate(found):
            if facts.get(name) != own[name]:
                return (
                    f"{name}: got {own[name]} on rank {rank} and {facts.get(name)} on rank "
                    f"{other} of the group, expected the same"
                )
    raise AssertionError("equal facts have equal digests")
