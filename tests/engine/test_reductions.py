"""row_lse and score_sum: the two reductions that softmax losses are composed of."""

from __future__ import annotations

import pytest
import torch

from contrastive_ops import info_nce
from contrastive_ops.engine.problem import Operands, SimilarityProblem
from contrastive_ops.engine.reductions import row_lse, score_sum


def operands(dtype: torch.dtype = torch.float64) -> Operands:
    torch.manual_seed(0)
    return Operands(
        torch.randn(9, 7, dtype=dtype, requires_grad=True),
        torch.randn(11, 7, dtype=dtype, requires_grad=True),
        negatives=torch.randn(5, 7, dtype=dtype, requires_grad=True),
        temperature=torch.tensor(0.3, dtype=dtype, requires_grad=True),
    )


def dense_logits(o: Operands, *, normalize: bool) -> torch.Tensor:
    assert o.negatives is not None
    rows = [o.query, o.key, o.negatives]
    if normalize:
        rows = [torch.nn.functional.normalize(x, dim=1) for x in rows]
    return rows[0] @ torch.cat(rows[1:]).T / o.temperature


@pytest.mark.parametrize("normalize", [True, False])
def test_row_lse_is_the_log_sum_exp_of_every_logit(backend: str, normalize: bool) -> None:
    o = operands()
    wanted = [o.query, o.key, o.negatives, o.temperature]
    seed = torch.linspace(-1, 2, 9, dtype=torch.float64)
    ours = row_lse(SimilarityProblem(normalize=normalize), o, backend)
    dense = dense_logits(o, normalize=normalize).logsumexp(1)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    ours_grads = torch.autograd.grad(ours, wanted, seed)
    dense_grads = torch.autograd.grad(dense, wanted, seed)
    torch.testing.assert_close(ours_grads, dense_grads, rtol=1e-10, atol=1e-12)


def test_row_lse_of_nothing_is_minus_infinity(backend: str) -> None:
    o = operands()
    ids = torch.zeros(1, 9, dtype=torch.int64)
    everything_left_out = o._replace(
        negatives=None, query_ids=ids, key_ids=torch.zeros(1, 11, dtype=torch.int64)
    )
    lse = row_lse(SimilarityProblem(), everything_left_out, backend)
    assert bool((lse == -torch.inf).all())
    grads = torch.autograd.grad(lse.sum(), [o.query, o.key])
    assert all(bool((grad == 0).all()) for grad in grads)


def test_the_cross_entropy_is_their_difference(backend: str) -> None:
    o = operands()
    problem = SimilarityProblem()
    composed = row_lse(problem, o, backend) - score_sum(problem, o)
    fused = info_nce(
        o.query, o.key, o.negatives, temperature=o.temperature, reduction="none", backend=backend
    )
    torch.testing.assert_close(composed, fused, rtol=1e-12, atol=1e-12)
    wanted = [o.query, o.key, o.negatives, o.temperature]
    torch.testing.assert_close(
        torch.autograd.grad(composed.sum(), wanted),
        torch.autograd.grad(fused.sum(), wanted),
        rtol=1e-10,
        atol=1e-12,
    )


def test_score_sum_at_an_index_with_pads_and_targets() -> None:
    o = operands()
    index = torch.tensor([[0, 3], [1, -1], [10, 2]] * 3)
    target = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    logits = dense_logits(o._replace(), normalize=True)[:, :11]
    picked = torch.where(index >= 0, logits.gather(1, index.clamp(min=0)), 0.0)
    ours = score_sum(SimilarityProblem(), o, index, target)
    torch.testing.assert_close(ours, (picked * target).sum(1), rtol=1e-12, atol=1e-12)
    wanted = [o.query, o.key, o.temperature, target]
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), wanted),
        torch.autograd.grad((picked * target).sum(), wanted),
        rtol=1e-10,
        atol=1e-12,
    )
