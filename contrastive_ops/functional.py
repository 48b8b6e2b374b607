"""Contrastive losses, neighbours and hard negatives as functions of tensors.

One file a family in `objectives`, built on the reductions of `engine`; `mining` is beside them.
"""

from __future__ import annotations

from .mining.hard_negatives import mine_hard_negatives
from .mining.topk import topk_similarity
from .objectives.decorrelation import (
    barlow_twins,
    byol,
    cor_info_max,
    effective_rank,
    running_covariance,
    sig_reg,
    vicreg,
)
from .objectives.decoupled import debiased_nce, decoupled_nce
from .objectives.distillation import (
    embedding_kl,
    feature_cosine,
    feature_mse,
    group_distillation,
    margin_mse,
    similarity_divergence,
    similarity_mse,
)
from .objectives.geometry import alignment, ko_leo, negative_lse, sliced_wasserstein, uniformity
from .objectives.guided import threshold_guided_nce
from .objectives.hardness import hardness_weighted_nce
from .objectives.heads import cosine_regression, pair_features, score_nce, vocabulary_softmax
from .objectives.hinge import (
    band_hinge,
    cluster_band_hinge,
    energy_hinge,
    lifted_structure,
    n_pair,
    pair_contrastive,
    token_hinge,
)
from .objectives.info_nce import info_nce
from .objectives.joint import joint_nce
from .objectives.late_interaction import token_similarity
from .objectives.logit_bias import (
    brownian_bridge_nce,
    gaussian_decay_nce,
    sampled_softmax,
    squared_l2_nce,
)
from .objectives.matryoshka import adaptive_layers, matryoshka
from .objectives.nt_xent import nt_xent
from .objectives.own_positive import own_positive_nce
from .objectives.queues import hardest_negatives, momentum_encoder
from .objectives.ranking import angle, angle_scores, cosent, list_mle, list_net
from .objectives.sigmoid import nce, pair_bce, sigmoid_loss
from .objectives.soft_nearest_neighbor import soft_nearest_neighbor
from .objectives.soft_targets import (
    ai_feedback_nce,
    quick_thought,
    soft_target_nce,
    uni_cl,
)
from .objectives.statistics import Statistics
from .objectives.sup_con import sup_con
from .objectives.triplet import triplet, triplet_margin

__all__ = [
    "Statistics",
    "adaptive_layers",
    "ai_feedback_nce",
    "alignment",
    "angle",
    "angle_scores",
    "band_hinge",
    "barlow_twins",
    "brownian_bridge_nce",
    "byol",
    "cluster_band_hinge",
    "cor_info_max",
    "cosent",
    "cosine_regression",
    "debiased_nce",
    "decoupled_nce",
    "effective_rank",
    "embedding_kl",
    "energy_hinge",
    "feature_cosine",
    "feature_mse",
    "gaussian_decay_nce",
    "group_distillation",
    "hardest_negatives",
    "hardness_weighted_nce",
    "info_nce",
    "joint_nce",
    "ko_leo",
    "lifted_structure",
    "list_mle",
    "list_net",
    "margin_mse",
    "matryoshka",
    "mine_hard_negatives",
    "momentum_encoder",
    "n_pair",
    "nce",
    "negative_lse",
    "nt_xent",
    "own_positive_nce",
    "pair_bce",
    "pair_contrastive",
    "pair_features",
    "quick_thought",
    "running_covariance",
    "sampled_softmax",
    "score_nce",
    "sig_reg",
    "sigmoid_loss",
    "similarity_divergence",
    "similarity_mse",
    "sliced_wasserstein",
    "soft_nearest_neighbor",
    "soft_target_nce",
    "squared_l2_nce",
    "sup_con",
    "threshold_guided_nce",
    "token_hinge",
    "token_similarity",
    "topk_similarity",
    "triplet",
    "triplet_margin",
    "uni_cl",
    "uniformity",
    "vicreg",
    "vocabulary_softmax",
]
