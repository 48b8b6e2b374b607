"""Every argument of every public function of a loss: bad input is one error that names it."""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import contrastive_ops as co

sys.path.insert(0, str(Path(__file__).parent))
from valid import LABELS, VALID, D, N, Y, call, rows

ELSEWHERE = {"mine_hard_negatives", "topk_similarity", "momentum_encoder", "Statistics"}
# Read only together with others, or a switch between rules where None means something.
NEEDS_MORE = {
    ("info_nce", "own_negative_log_weight"): {"negatives": rows(N, 2, D)},
    ("cor_info_max", "memory"): {"covariances": (torch.eye(D), torch.eye(D))},
    ("info_nce", "negative_ids"): {"query_ids": LABELS, "key_ids": LABELS},
    ("nce", "positive_log_probability"): {"noise_log_probability": Y},
    ("nce", "noise_log_probability"): {"positive_log_probability": Y},
    **{
        (name, one): {other: LABELS}
        for name in ("info_nce", "sampled_softmax", "sigmoid_loss", "soft_target_nce")
        for one, other in (("query_ids", "key_ids"), ("key_ids", "query_ids"))
    },
}
CASES = []
for _name in VALID:
    for _parameter in inspect.signature(getattr(co, _name)).parameters.values():
        _kind = str(_parameter.annotation)
        if _parameter.name in ("loss", "statistics", "directions", "layer_weighting"):
            continue
        if _parameter.kind == _parameter.VAR_POSITIONAL:
            continue
        if _kind == "bool":
            CASES.append((_name, _parameter.name, "no", ValueError))
        if "Number" in _kind and "Sequence" not in _kind:
            CASES += [(_name, _parameter.name, bad, ValueError) for bad in ("one", math.nan)]
        if "temperature" in _parameter.name and _parameter.name != "kl_temperature":
            CASES.append((_name, _parameter.name, 1e-40, ValueError))
        if _kind == "Reduction" or "Literal" in _kind or _kind in ("Distance", "Mining"):
            CASES.append((_name, _parameter.name, "nonsense", ValueError))
        if _kind in ("Tensor", "Tensor | None"):
            CASES.append((_name, _parameter.name, [1.0], TypeError))
            CASES.append((_name, _parameter.name, torch.zeros(2, 2, 2, 2), ValueError))
        if _parameter.name == "workspace_bytes":
            CASES += [(_name, _parameter.name, bad, ValueError) for bad in (0, 1.5, True)]
        if _parameter.name == "backend":
            CASES.append((_name, _parameter.name, "abacus", ValueError))
        if _kind == "Dims":
            CASES.append((_name, _parameter.name, [0], ValueError))


def test_every_function_is_here():
    functions = {n for n in co.functional.__all__ if callable(getattr(co, n))}
    assert functions - ELSEWHERE == set(VALID)


@pytest.mark.parametrize("name", VALID)
def test_the_valid_call_is_valid(name):
    found = call(name, {})
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(
    ("name", "parameter", "bad", "error"),
    CASES,
    ids=[f"{n}-{p}-{i}" for i, (n, p, *_) in enumerate(CASES)],
)
def test_names_the_argument(name, parameter, bad, error):
    changed = NEEDS_MORE.get((name, parameter), {}) | {parameter: bad}
    with pytest.raises(error) as raised:
        call(name, changed)
    message = str(raised.value)
    assert re.search(rf"\b{parameter}\b", message), message
    assert "expected" in message
