"""A small valid call of every public function of a loss, for tests that change one argument."""

from __future__ import annotations

import inspect

import torch

import contrastive_ops as co

N, D = 4, 6
generator = torch.Generator().manual_seed(0)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (N, D)), generator=generator)


A, B, C, S = rows(), rows(), rows(), rows(N)
LABELS, Y, TIME = torch.tensor([0, 0, 1, 1]), torch.rand(N, generator=generator), torch.arange(4.0)
GUIDE = (rows(N, 3), rows(N, 3))
VALID = {
    "adaptive_layers": ((co.info_nce, [(A, B), (B, C)]), {}),
    "ai_feedback_nce": ((A, B, Y), {}),
    "alignment": ((A, B), {}),
    "angle": ((A, B, Y), {}),
    "angle_scores": ((A, B), {}),
    "band_hinge": ((A, B, C), {}),
    "barlow_twins": ((A, B), {}),
    "brownian_bridge_nce": ((A, B, C, TIME, TIME + 1, TIME + 2), {}),
    "byol": ((A, B), {}),
    "cluster_band_hinge": ((A, B, LABELS), {}),
    "cor_info_max": ((A, B), {}),
    "cosent": ((S, Y), {}),
    "cosine_regression": ((A, B, Y), {}),
    "debiased_nce": ((A, B), {}),
    "decoupled_nce": ((A, B), {"positive_weight_width": 0.5}),
    "effective_rank": ((A,), {}),
    "embedding_kl": ((A, B), {}),
    "energy_hinge": ((A, B, C), {}),
    "feature_cosine": ((A, B), {}),
    "feature_mse": ((A, B), {}),
    "gaussian_decay_nce": ((A, B, C, GUIDE), {}),
    "group_distillation": ((A, rows(N, 2, D), rows(N, 2)), {}),
    "hardest_negatives": ((A, B, 2), {}),
    "hardness_weighted_nce": ((A, B, C), {}),
    "info_nce": ((A, B, C), {"own_negative_log_weight": None}),
    "joint_nce": ((A, B), {}),
    "ko_leo": ((A,), {}),
    "lifted_structure": ((A, LABELS), {}),
    "list_mle": ((A, B), {}),
    "list_net": ((A, B), {}),
    "margin_mse": ((S, S, S), {}),
    "matryoshka": ((co.info_nce, A, B), {"dims": [2]}),
    "n_pair": ((A, B), {}),
    "nce": ((A, B, C), {}),
    "negative_lse": ((A, LABELS), {}),
    "nt_xent": ((A, B), {}),
    "own_positive_nce": ((A, rows(N, 2, D)), {}),
    "pair_bce": ((A, B, Y), {}),
    "pair_contrastive": ((A, B, Y), {}),
    "pair_features": ((A, B), {}),
    "quick_thought": ((A, B), {}),
    "running_covariance": ((A, None), {}),
    "sampled_softmax": ((A, B, -Y), {}),
    "score_nce": ((rows(N, N),), {}),
    "sig_reg": ((A,), {}),
    "sigmoid_loss": ((A, B), {}),
    "similarity_divergence": ((A, B, C, B), {}),
    "similarity_mse": ((A, B, C, B), {}),
    "sliced_wasserstein": ((A, B), {}),
    "soft_nearest_neighbor": ((A, LABELS), {}),
    "soft_target_nce": ((A, B, rows(N, N)), {}),
    "squared_l2_nce": ((A, B), {}),
    "sup_con": ((A, LABELS), {}),
    "threshold_guided_nce": ((A, B, C), {"guide": GUIDE}),
    "token_hinge": ((rows(2, 3, D),), {}),
    "token_similarity": ((rows(2, 3, D), rows(2, 4, D)), {}),
    "triplet": ((A, B, C), {}),
    "triplet_margin": ((A, LABELS), {}),
    "uni_cl": ((A, B, LABELS, LABELS), {}),
    "uniformity": ((A,), {}),
    "vicreg": ((A, B), {}),
    "vocabulary_softmax": ((A, B, LABELS), {}),
}


def call(name: str, changed: dict):
    function = getattr(co, name)
    bound = inspect.signature(function).bind(*VALID[name][0], **VALID[name][1])
    variadic = bound.arguments.pop("embeddings", ()) if name == "matryoshka" else ()
    arguments = dict(bound.arguments) | changed
    first = [arguments.pop("loss")] if variadic else []
    return function(*first, *variadic, **arguments)
