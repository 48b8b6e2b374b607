"""Losses over the rows of all processes of a group (torchrun, DistributedDataParallel).

Every rank gives its own rows and computes its own share; nothing is computed twice.
"""

from .loss import InfoNCELoss, info_nce

__all__ = ["InfoNCELoss", "info_nce"]
