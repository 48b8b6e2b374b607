"""Negatives from the past: FIFO queues, banks of them, momentum encoders, a queue's hardest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..engine import check
from ..engine.similarity import full_precision, unit_rows
from ..engine.stripes import COPIES, STRIPE_BYTES
from .arguments import matrices, wide, workspace


class EmbeddingQueue(nn.Module):
    """The last ``size`` keys, first in first out, in one buffer that is never copied.

        loss = info_nce(query, key, queue.rows, in_batch=False)
        loss.backward()
        queue.enqueue(key)

    Enqueue after the backward, so that no key is its own negative and the rows that the loss saw
    are still there (PyTorch raises an error otherwise). The buffer and its state are part of the
    ``state_dict``.

    Args:
        size: how many keys at most.
        dim: D.
        dtype, device: of the buffer.

    Source: He et al. 2020, "Momentum Contrast" (arXiv 1911.05722), algorithm 1.
    """

    buffer: Tensor
    state: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer >= 1")
        self.register_buffer("buffer", torch.zeros(size, dim, dtype=dtype, device=device))
        # Where the next key goes, and how many there are; on the CPU, so that reading is free.
        self.register_buffer("state", torch.zeros(2, dtype=torch.int64))

    @property
    def rows(self) -> Tensor:
        """(K, D), K <= size: a view of the keys that there are, in no particular order."""
        return self.buffer[: int(self.state[1])]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Adds (N, D) keys; the oldest make room. Of more than ``size`` the last stay."""
        check.matrix("keys", keys)
        size, dim = self.buffer.shape
        if keys.shape[1] != dim:
            raise ValueError(f"keys: got width {keys.shape[1]}, expected {dim}")
        keys = keys.detach()[-size:].to(self.buffer)
        start, count = int(self.state[0]), keys.shape[0]
        head = min(count, size - start)
        self.buffer[start : start + head] = keys[:head]
        self.buffer[: count - head] = keys[head:]
        self.state[0] = (start + count) % size
        self.state[1] = min(size, int(self.state[1]) + count)

    def __len__(self) -> int:
        return int(self.state[1])

    def extra_repr(self) -> str:
        size, dim = self.buffer.shape
        return f"size={size}, dim={dim}, held={len(self)}"


class QueueBank(nn.Module):
    """One :class:`EmbeddingQueue` a group: a language, a source.

    Args:
        groups: their names, without dots.
        size, dim, dtype, device: of each queue.

    Raises:
        ValueError: no groups, one twice, a name with a dot; a group that is not there.

    Source: Wu et al. 2022, "Cross-lingual Contextual Sentence Representation" (CCP), whose memory
    banks are language-specific.
    """

    def __init__(
        self,
        groups: list[str],
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if (
            not groups
            or len(set(groups)) != len(groups)
            or not all(isinstance(name, str) and "." not in name for name in groups)
        ):
            raise ValueError(
                f"groups: got {groups!r}, expected distinct names without dots, at least one"
            )
        # A module's names must not be those of a dictionary's methods, as a language's "to" is.
        self.queues = nn.ModuleDict(
            {f"of_{name}": EmbeddingQueue(size, dim, dtype=dtype, device=device) for name in groups}
        )

    def __getitem__(self, group: str) -> EmbeddingQueue:
        if f"of_{group}" not in self.queues:
            names = ", ".join(name.removeprefix("of_") for name in self.queues)
            raise ValueError(f"group: got {group!r}, expected one of {names}")
        found = self.queues[f"of_{group}"]
        assert isinstance(found, EmbeddingQueue)
        return found


def momentum_encoder(encoder: nn.Module, momentum: float = 0.999) -> AveragedModel:
    """A frozen copy of ``encoder`` that follows it: after each step call
    ``copy.update_parameters(encoder)``, which is m * copy + (1 - m) * encoder.

    PyTorch's own :class:`torch.optim.swa_utils.AveragedModel` with its fused moving average. Its
    first update copies the encoder as it is. Buffers are those of the encoder at this call.

    Raises:
        ValueError: momentum outside [0, 1).

    Source: He et al. 2020, "Momentum Contrast" (arXiv 1911.05722).
    """
    if check.number("momentum", momentum, 0.0, 1.0) == 1.0:
        raise ValueError("momentum: got 1, expected a number in [0, 1)")
    copy = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(momentum))
    copy.update_parameters(encoder)
    return copy.requires_grad_(False)


@torch.no_grad()
def hardest_negatives(
    query: Tensor, queue: Tensor, k: int, *, workspace_bytes: int | None = None
) -> Tensor:
    """(N, k, D): each query's k most similar rows of a queue, by cosine, most similar first.

    For ``info_nce(query, key, hardest_negatives(...), in_batch=False, negatives_scope="own")``.

    Args:
        query: (N, D), not differentiated.
        queue: (K, D), k <= K.
        workspace_bytes: 192 MiB by default.

    Raises:
        ValueError: k out of range, or tensors that do not go together.
    """
    query, queue = matrices(query=query, queue=queue)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= queue.shape[0]:
        raise ValueError(f"k: got {k!r}, expected an integer in [1, {queue.shape[0]}]")
    q, rows = unit_rows(wide(query.detach())), unit_rows(wide(queue.detach()))
    room = min(workspace(workspace_bytes) // COPIES, STRIPE_BYTES)
    step = max(1, room // (rows.shape[0] * rows.element_size()))
    with full_precision(q.device):
        found = [(q[i : i + step] @ rows.T).topk(k, 1).indices for i in range(0, q.shape[0], step)]
    return queue[torch.cat(found)]
