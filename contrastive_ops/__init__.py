"""Contrastive losses, exact and without the N x M matrix."""

from . import distributed, functional, losses
from .engine.backends import backends
from .functional import *  # noqa: F403
from .losses import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "backends",
    "distributed",
    "functional",
    "losses",
    *functional.__all__,
    *losses.__all__,
]
