"""The loss as it is commonly written, with the whole matrix of logits: what ours is timed against.

One matrix of logits serves both directions; that is the fastest of the usual forms.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .. import functional


def dense_info_nce(query: Tensor, key: Tensor, ids: Tensor, *, temperature: float) -> Tensor:
    """Symmetric InfoNCE of normalised rows in plain PyTorch, duplicates left out by id.

    Args:
        query, key: (N, D); row i of `key` is the positive of row i of `query`.
        ids: int64 (N,); a key whose id equals the query's and that is not its positive is left out.
        temperature: divides the cosine similarities.
    """
    logits = normalize(query, dim=1) @ normalize(key, dim=1).T / temperature
    duplicate = (ids[:, None] == ids).fill_diagonal_(False)
    logits = logits.masked_fill(duplicate, -math.inf)
    labels = torch.arange(len(query), device=query.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def time_losses(
    query: Tensor,
    key: Tensor,
    ids: Tensor,
    *,
    temperature: float,
    backend: str | None = None,
    steps: int = 3,
) -> dict[str, float]:
    """Seconds of one forward and backward pass, the dense loss and ours in turns, median.

    Args:
        query, key, ids, temperature: as in `dense_info_nce`; a batch of real embeddings.
        backend: of our loss.
        steps: measured steps, after one to warm up.

    Returns:
        `{"dense": seconds, "ours": seconds, "difference": of the two losses}`.
    """
    seconds: dict[str, list[float]] = {"dense": [], "ours": []}
    values: dict[str, float] = {}
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dense": lambda q, k: dense_info_nce(q, k, ids, temperature=temperature),
        "ours": lambda q, k: functional.info_nce(
            q,
            k,
            temperature=temperature,
            symmetric=True,
            query_ids=ids,
            key_ids=ids,
            backend=backend,
        ),
    }
    for _ in range(steps + 1):
        for name, loss in losses.items():
            q, k = query.clone().requires_grad_(), key.clone().requires_grad_()
            started = time.perf_counter()
            value = loss(q, k)
            value.backward()
            seconds[name].append(time.perf_counter() - started)
            values[name] = value.item()
    measured = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    return {**measured, "difference": abs(values["dense"] - values["ours"])}
