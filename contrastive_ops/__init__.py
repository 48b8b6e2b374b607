"""Contrastive losses, exact and without the N x M matrix."""

from . import functional, losses
from .engine.backends import backends
from .functional import info_nce, mine_hard_negatives, topk_similarity
from .losses import InfoNCELoss

__version__ = "0.1.0"

__all__ = [
    "InfoNCELoss",
    "__version__",
    "backends",
    "functional",
    "info_nce",
    "losses",
    "mine_hard_negatives",
    "topk_similarity",
]
