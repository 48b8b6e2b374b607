"""Every family of GPU kernels, for the offline report, the checks and the benchmark.

A new one is a module with `plans` and `cases` and a line here; its tile kernels' work goes to
`gpu_plan.TILE_KERNELS`, its checks in the interpreter to tests/triton (`checks.FAMILIES`).
"""

from __future__ import annotations

from . import gpu_checks, gpu_pairs, gpu_selection, gpu_softmax, gpu_tokens
from .gpu_cases import Family

FAMILIES = (
    Family(
        "info_nce",
        gpu_softmax.plans,
        gpu_softmax.cases,
        share=6,
        checks=gpu_checks.device_checks,
    ),
    Family("nt_xent", gpu_pairs.one_set_plans, gpu_pairs.one_set_cases, share=1),
    Family("sigmoid_loss", gpu_pairs.pair_sum_plans, gpu_pairs.pair_sum_cases, share=1),
    Family(
        "row_select",
        gpu_selection.plans,
        gpu_selection.cases,
        share=1,
        checks=gpu_selection.device_checks,
    ),
    Family(
        "token_similarity",
        gpu_tokens.plans,
        gpu_tokens.cases,
        share=1,
        checks=gpu_tokens.device_checks,
    ),
)
