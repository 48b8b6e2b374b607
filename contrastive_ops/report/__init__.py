"""A training run as one page: curves, geometry, time, and how to repeat it."""

from .page import write_report
from .run import Run
from .space import Space, compute_space

__all__ = ["Run", "Space", "compute_space", "write_report"]
