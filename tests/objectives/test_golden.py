"""The worked example of the literature, in every family that it reaches."""

from __future__ import annotations

import pytest
import torch

import contrastive_ops as co

A = torch.tensor([[0.8109, -0.9391, 0.2519]], dtype=torch.float64)
POSITIVE = torch.tensor([[-1.2887, 1.5057, 0.4449]], dtype=torch.float64)
NEGATIVE = torch.tensor([[2.1968, 0.4785, 1.5207]], dtype=torch.float64)
ROWS = torch.cat([A, POSITIVE, NEGATIVE])
LABELS = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            lambda: co.triplet(A, POSITIVE, NEGATIVE, distance="sq_l2", margin=0.2, normalize=True),
            3.0234103865,
        ),
        (lambda: co.triplet(A, POSITIVE, NEGATIVE, margin=1, normalize=True), 1.9549068039),
        (lambda: co.triplet(A, POSITIVE, NEGATIVE, margin=1), 1.8746528133),
        (lambda: co.alignment(A, POSITIVE), 3.8252436295),
        (lambda: co.uniformity(ROWS), -3.0520408188),
        # The same softmax by other ways: three candidates, of which one is the positive.
        (lambda: co.score_nce(_logits(), positives=torch.tensor([0])), 2.8811159375),
        (lambda: _first(co.sup_con(ROWS, LABELS, temperature=0.5, reduction="none")), 2.8811159375),
        (
            lambda: _first(
                co.soft_nearest_neighbor(
                    ROWS, LABELS, temperature=0.5, distance="cosine", reduction="none"
                )
            ),
            2.8811159375,
        ),
    ],
)
def test_values(loss, expected):
    assert loss().item() == pytest.approx(expected, abs=1e-9)


def test_the_mined_triplets_contain_it():
    """Two anchors have a positive; their triplets are the example's and its mirror image."""
    mirrored = co.triplet(POSITIVE, A, NEGATIVE, distance="sq_l2", margin=0.2, normalize=True)
    for mining in ("all", "hard", "semi-hard", "easy", "violator"):
        loss = co.triplet_margin(ROWS, LABELS, mining=mining, margin=0.2, reduction="sum")
        assert loss.item() == pytest.approx(3.0234103865 + mirrored.item(), abs=1e-9)


def _logits():
    unit = ROWS / ROWS.norm(dim=1, keepdim=True)
    return (unit[:1] @ unit[1:].T) / 0.5


def _first(losses):
    return losses[0]
