"""Finding neighbours and hard negatives: exact, streaming, in bounded memory."""

from .batch import (
    AnyViolatorMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    EasyPositiveMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
    SemiHardMiner,
)
from .hard_negatives import HardNegatives, mine_hard_negatives
from .topk import TopK, topk_similarity

__all__ = [
    "AnyViolatorMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "EasyPositiveMiner",
    "HardNegatives",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "SemiHardMiner",
    "TopK",
    "mine_hard_negatives",
    "topk_similarity",
]
