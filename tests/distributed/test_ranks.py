"""The distributed loss is the loss of one process that has all rows: values, gradients, errors."""

import functools

import pytest
import rank_checks
import ranks
import torch

import contrastive_ops
from contrastive_ops.distributed import InfoNCELoss, info_nce

STRATEGIES = ("all_gather", "ring")


def _worth_repeating(name):
    """With equal batches, and two ranks whose ring has no direction."""
    return any(word in name for word in ("plain", "shared_negatives", "grouped", "data_parallel"))


def _all_checks():
    found = {}

    def add(check, *arguments, **options):
        words = [check.__name__, *map(str, arguments), *(f"{k}={v}" for k, v in options.items())]
        found[" ".join(words)] = (functools.partial(check, **options), arguments)

    for strategy in STRATEGIES:
        for case in rank_checks.CASES:
            if strategy == "ring" and case in rank_checks.NOT_IN_A_RING:
                continue
            add(rank_checks.equals_one_process, case, strategy, gradient="sum")
            if case not in rank_checks.ONE_WAY:
                add(rank_checks.equals_one_process, case, strategy, symmetric=True)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for case in ("plain", "shared_negatives"):
                add(rank_checks.equals_one_process, case, strategy, dtype, symmetric=True)
        add(rank_checks.equals_one_process, "guided", strategy, torch.float32, backend="torch")
        add(rank_checks.no_reduction, strategy)
        add(rank_checks.same_on_every_rank_and_run, strategy)
        add(rank_checks.small_losses_keep_their_digits, strategy)
        for gradient in ("mean", "sum"):
            add(rank_checks.data_parallel, strategy, gradient)
    for check in (
        rank_checks.second_derivatives,
        rank_checks.statistics,
        rank_checks.no_gradient,
        rank_checks.subgroup,
        rank_checks.wrong_on_one_rank,
        rank_checks.not_in_a_ring,
        rank_checks.empty_negatives,
        rank_checks.compiled,
    ):
        add(check)
    return found


CHECKS = {3: _all_checks()}
CHECKS[2] = {name: CHECKS[3][name] for name in CHECKS[3] if _worth_repeating(name)}
CHECKS[2]["compiled"] = CHECKS[3].pop("compiled")  # a second a rank


@pytest.mark.parametrize("world", CHECKS)
def test_on_every_rank(world, tmp_path):
    for name, errors in ranks.run(CHECKS[world], world, tmp_path).items():
        for rank, error in enumerate(errors):
            assert error is None, f"{name}, rank {rank}: {error}"


def test_without_a_process_group_it_is_the_plain_function():
    query, key = torch.randn(4, 3), torch.randn(5, 3)
    expected = contrastive_ops.info_nce(query, key, margin=0.1)
    for strategy in STRATEGIES:
        assert torch.equal(info_nce(query, key, margin=0.1, strategy=strategy), expected)
    module = InfoNCELoss(margin=0.1, strategy="ring")
    assert torch.equal(module(query, key), expected)
    assert "margin=0.1" in repr(module)
    assert "strategy='ring'" in repr(module)


def test_bad_arguments_without_a_process_group():
    query = torch.randn(4, 3)
    with pytest.raises(ValueError, match="strategy: got 'star', expected 'all_gather' or 'ring'"):
        info_nce(query, query, strategy="star")
    with pytest.raises(ValueError, match="gradient: got 'max', expected 'mean' or 'sum'"):
        InfoNCELoss(gradient="max")
    with pytest.raises(ValueError, match="group: got"):
        info_nce(query, query, group=object())
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        info_nce(query, query, temprature=1)
