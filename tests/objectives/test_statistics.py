"""Statistics of a batch, against dense ones."""

from __future__ import annotations

import pytest
import torch

import contrastive_ops as co

N, M = 6, 8
generator = torch.Generator().manual_seed(0)
Q, K, NEGATIVES = (torch.randn(r, 4, generator=generator, dtype=torch.float64) for r in (N, M, 3))
IDS = torch.tensor([0, 1, 2, 0, 4, 5])
KEY_IDS = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7])


def test_against_dense():
    found = co.info_nce_statistics(
        Q, K, NEGATIVES, temperature=0.2, query_ids=IDS, key_ids=KEY_IDS, workspace_bytes=4096
    )
    unit = [x / x.norm(dim=1, keepdim=True) for x in (Q, K, NEGATIVES)]
    logits = unit[0] @ torch.cat(unit[1:]).T / 0.2
    positive = logits.diagonal().clone()
    own = torch.nn.functional.pad(torch.eye(N, M, dtype=torch.bool), (0, 3))
    same = torch.nn.functional.pad(IDS.unsqueeze(1) == KEY_IDS, (0, 3))
    kept = ~same & ~own
    negatives = logits.masked_fill(~kept, -torch.inf)
    p = logits.masked_fill(~kept & ~own, -torch.inf).softmax(1)
    rank = (negatives > positive.unsqueeze(1)).sum(1)
    torch.testing.assert_close(found.rank, rank)
    torch.testing.assert_close(found.accuracy, (rank == 0).double().mean())
    torch.testing.assert_close(found.hardest_negative, negatives.amax(1))
    torch.testing.assert_close(
        found.left_out, (1 - kept.sum() / (N * 10)).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(found.positive, positive.mean())
    torch.testing.assert_close(found.negative, logits[kept].mean())
    torch.testing.assert_close(found.entropy, torch.special.entr(p).sum(1).mean())
    assert not any(x.requires_grad for x in found)


def test_without_negatives():
    found = co.info_nce_statistics(Q, K, in_batch=False)
    assert found.accuracy == 1
    assert found.left_out == 0
    assert found.entropy == 0
    assert bool((found.hardest_negative == -torch.inf).all())


def test_unknown_option():
    with pytest.raises(TypeError, match="unknown option 'symmetric'"):
        co.info_nce_statistics(Q, K, symmetric=True)
