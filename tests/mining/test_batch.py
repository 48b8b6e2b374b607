"""In-batch miners against their rules, and against pytorch-metric-learning where that is."""

import importlib

import pytest
import torch

from contrastive_ops.mining import (
    AnyViolatorMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    EasyPositiveMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
    SemiHardMiner,
)

# sizes of batch and reference set (0: none), classes
CASES = [(1, 0, 1), (2, 0, 1), (9, 0, 3), (120, 0, 10), (120, 0, 200), (60, 90, 8), (5, 70, 1)]


def rows(n, m, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    x = torch.randn(n, 16, generator=generator) + torch.nn.functional.one_hot(labels % 16, 16)
    if m == 0:
        return (x, labels)
    ref_labels = torch.randint(0, classes, (m,), generator=generator)
    return (x, labels, torch.randn(m, 16, generator=generator), ref_labels)


def by_hand(x, labels, y=None, ref_labels=None):
    """Distances of unit rows, and the masks of positives and negatives, in float64."""
    own = y is None
    y, ref_labels = (x, labels) if own else (y, ref_labels)
    x, y = (torch.nn.functional.normalize(t.double(), dim=1) for t in (x, y))
    same = labels[:, None] == ref_labels
    positive = same.clone()
    if own:
        positive.fill_diagonal_(False)
    return (2 - 2 * x @ y.T).clamp(min=0).sqrt(), positive, ~same


def tuples(columns):
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("hard_positive", [True, False])
@pytest.mark.parametrize("semi", [False, True])
def test_one_of_each(case, hard_positive, semi, backend):
    arguments = rows(*case)
    distance, positive, negative = by_hand(*arguments)
    expected = []
    for i in range(len(distance)):
        own = [(float(distance[i, j]), j) for j in positive[i].nonzero()[:, 0].tolist()]
        if not own:
            continue
        value, p = max(own) if hard_positive else min(own)
        others = [(float(distance[i, j]), j) for j in negative[i].nonzero()[:, 0].tolist()]
        others = [(d, j) for d, j in others if not semi or d > value]
        if others:
            expected.append((i, p, min(others)[1]))
    if semi:
        miner = SemiHardMiner(positive="hard" if hard_positive else "easy", backend=backend)
    elif hard_positive:
        miner = BatchHardMiner(backend=backend)
    else:
        miner = EasyPositiveMiner(backend=backend)
    found = miner(*arguments)
    if len(found) == 4:
        assert torch.equal(found[0], found[2])
        found = (found[0], found[1], found[3])
    assert tuples(found) == expected


def test_equal_rows_are_ties_that_go_to_the_lower_index(backend):
    """Also across the blocks that anchors come in, and with a negative that equals a positive."""
    generator = torch.Generator().manual_seed(6)
    distinct = torch.randn(3, 33, generator=generator)
    kind = torch.randint(0, 3, (400,), generator=generator)
    x, labels = distinct[kind], torch.randint(0, 4, (400,), generator=generator)
    score = torch.nn.functional.normalize(distinct.double(), dim=1)
    score = (score @ score.T)[kind[:, None], kind]
    same = labels[:, None] == labels
    positive = same & ~torch.eye(400, dtype=torch.bool)
    nearest = score.masked_fill(~positive, -9)
    furthest = score.masked_fill(~positive, 9)
    a, p, n = BatchHardMiner(backend=backend)(x, labels)
    assert torch.equal(a, torch.arange(400))
    assert torch.equal(p, (furthest == furthest.amin(1, keepdim=True)).int().argmax(1))
    other = score.masked_fill(same, -9)
    assert torch.equal(n, (other == other.amax(1, keepdim=True)).int().argmax(1))
    a, p, _, n = SemiHardMiner(backend=backend)(x, labels)
    assert torch.equal(p, (nearest == nearest.amax(1, keepdim=True)).int().argmax(1)[a])
    assert (score[a, n] < score[a, p] - 1e-3).all()  # never one that is as near as the positive


@pytest.mark.parametrize("case", CASES)
def test_pair_margin(case):
    arguments = rows(*case)
    distance, positive, negative = by_hand(*arguments)
    a1, p, a2, n = PairMarginMiner(0.9, 1.2)(*arguments)
    assert tuples((a1, p)) == tuples((positive & (distance > 0.9)).nonzero(as_tuple=True))
    assert tuples((a2, n)) == tuples((negative & (distance < 1.2)).nonzero(as_tuple=True))


@pytest.mark.parametrize("case", CASES)
def test_multi_similarity(case):
    arguments = rows(*case)
    distance, positive, negative = by_hand(*arguments)
    similarity = 1 - distance.square() / 2
    most = similarity.masked_fill(~negative, -9).amax(1, keepdim=True)
    least = similarity.masked_fill(~positive, 9).amin(1, keepdim=True)
    a1, p, a2, n = MultiSimilarityMiner(0.1)(*arguments)
    hard = positive & (similarity - 0.1 < most) & negative.any(1, keepdim=True)
    assert tuples((a1, p)) == tuples(hard.nonzero(as_tuple=True))
    hard = negative & (similarity + 0.1 > least)
    assert tuples((a2, n)) == tuples(hard.nonzero(as_tuple=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("margin", [0.2, 0.0, -0.3])
def test_any_violator(case, margin):
    arguments = rows(*case)
    distance, positive, negative = by_hand(*arguments)
    violates = distance[:, None, :] - distance[:, :, None] <= margin
    violates &= positive[:, :, None] & negative[:, None, :]
    if margin == 0:  # exactly equal in exact arithmetic only
        violates &= (distance[:, None, :] - distance[:, :, None]).abs() > 1e-6
    found = tuples(AnyViolatorMiner(margin)(*arguments))
    assert found == tuples(violates.nonzero(as_tuple=True))


def test_distance_weighted_draws_by_the_weights():
    x, labels = rows(40, 0, 4)
    distance, positive, negative = by_hand(x, labels)
    clipped = distance.clamp(min=0.5)
    log_weight = (2.0 - 16) * clipped.log() - 6.5 * torch.log(1 - 0.25 * clipped.square())
    weight = log_weight.exp() * negative * (distance < 1.4)
    probability = weight / weight.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    miner = DistanceWeightedMiner(generator=generator)
    counts = torch.zeros(40, 40, dtype=torch.float64)
    for _ in range(400):
        a, p, n = miner(x, labels)
        assert positive[a, p].all()
        counts.index_put_((a, n), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    drawn = counts.sum(1, keepdim=True)
    assert torch.equal(drawn[:, 0], 400 * positive.sum(1).double())
    assert (counts[weight == 0] == 0).all()
    standard = (drawn * probability * (1 - probability)).sqrt().clamp(min=1)
    assert ((counts - drawn * probability) / standard).abs().max() < 5


@pytest.mark.parametrize("case", [(120, 0, 10), (60, 90, 8), (9, 0, 200)])
def test_the_tuples_are_pytorch_metric_learnings(case):
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = importlib.import_module("pytorch_metric_learning.distances")
    arguments = rows(*case)
    pairs = [
        (BatchHardMiner(), miners.BatchHardMiner()),
        (SemiHardMiner(), miners.BatchEasyHardMiner("easy", "semihard")),
        (SemiHardMiner(positive="hard"), miners.BatchEasyHardMiner("hard", "semihard")),
        (EasyPositiveMiner(), miners.BatchEasyHardMiner("easy", "hard")),
        (MultiSimilarityMiner(), miners.MultiSimilarityMiner()),
        (PairMarginMiner(0.9, 1.2), miners.PairMarginMiner(0.9, 1.2)),
        (AnyViolatorMiner(0.1), miners.TripletMarginMiner(0.1)),
        (
            PairMarginMiner(0.5, 0.1, distance="cosine"),
            miners.PairMarginMiner(0.5, 0.1, distance=distances.CosineSimilarity()),
        ),
    ]
    for ours, theirs in pairs:
        found, expected = ours(*arguments), theirs(*arguments)
        assert len(found) == len(expected)
        for at in range(0, len(found), 2 if len(found) == 4 else 3):
            part = slice(at, at + (2 if len(found) == 4 else 3))
            assert tuples(found[part]) == tuples(expected[part]), type(theirs).__name__


MINERS = (
    BatchHardMiner(),
    SemiHardMiner(),
    EasyPositiveMiner(),
    MultiSimilarityMiner(),
    PairMarginMiner(0.2, 1.3),
    AnyViolatorMiner(),
    DistanceWeightedMiner(nonzero_loss_cutoff=2.0),
)


@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: type(miner).__name__)
def test_nobody_and_nobody_to_meet(miner):
    """An empty batch, and one whose memory of others is still empty: empty tuples."""
    x, labels = rows(9, 0, 3)
    for arguments in ((x[:0], labels[:0]), (x, labels, x[:0], labels[:0])):
        found = miner(*arguments)
        assert [(len(column), column.dtype) for column in found] == [(0, torch.int64)] * len(found)


@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: type(miner).__name__)
@pytest.mark.parametrize("reference", [False, True])
def test_a_row_with_nan_is_as_one_that_is_not_there(miner, reference):
    x, labels = rows(30, 0, 4)
    more = torch.cat([x, torch.full((2, 16), torch.nan)]), torch.cat([labels, torch.tensor([0, 1])])
    if reference:
        whole, found = miner(x, labels, x, labels), miner(*more, *more)
    else:
        whole, found = miner(x, labels), miner(*more)
    if isinstance(miner, DistanceWeightedMiner):  # draws anew
        assert torch.equal(whole[0], found[0])
        assert torch.equal(whole[1], found[1])
        assert found[2].amax() < 30
    else:
        assert len(whole[0]) > 0
        assert all(map(torch.equal, whole, found))


def test_memory_of_a_large_batch_is_no_matrix(monkeypatch):
    """No block of similarities exceeds the tile, whatever the batch."""
    seen = []
    masked_fill = torch.Tensor.masked_fill_

    def watch(self, *args):
        seen.append(self.numel())
        return masked_fill(self, *args)

    monkeypatch.setattr("contrastive_ops.mining.batch._TILE", 5000)
    monkeypatch.setattr(torch.Tensor, "masked_fill_", watch)
    x, labels = rows(300, 0, 40)
    MultiSimilarityMiner()(x, labels)
    assert len(seen) > 10
    assert max(seen) <= 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 2), torch.zeros(4, dtype=torch.long)), "labels: got shape"),
        ((torch.ones(3), torch.zeros(3, dtype=torch.long)), "embeddings: got shape"),
        ((torch.ones(3, 2), torch.zeros(3)), "labels: got torch.float32"),
        ((torch.ones(3, 2), torch.zeros(3, dtype=torch.long), torch.ones(3, 2)), "ref_emb"),
    ],
)
def test_bad_input_names_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchHardMiner()(*arguments)
