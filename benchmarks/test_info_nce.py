"""pytest-benchmark: ``pytest benchmarks --benchmark-only`` compares the losses at three sizes.

For tables with memory and error, and for interleaved timing: ``contrastive-ops bench``.
"""

from __future__ import annotations

import pytest

from contrastive_ops.benchmarks.cases import Case, make_inputs
from contrastive_ops.benchmarks.oracle import relative_errors, solve
from contrastive_ops.benchmarks.timing import Runner
from contrastive_ops.benchmarks.variants import (
    DENSE,
    LINEAR_CROSS_ENTROPY,
    OURS,
    SENTENCE_TRANSFORMERS,
    Unavailable,
    Variant,
)

pytest.importorskip("pytest_benchmark")

CASES = [
    Case(n=64, dim=384),
    Case(n=64, dim=384, backward=False),
    Case(n=2048, dim=384),
    Case(n=2048, dim=384, symmetric=True),
    Case(n=2048, dim=384, dtype="bfloat16"),
]


def _name(case: Case) -> str:
    parts = [f"N{case.n}", f"D{case.dim}", case.dtype]
    parts += ["two-directions"] if case.symmetric else []
    parts += [] if case.backward else ["forward"]
    return "-".join(parts)


@pytest.mark.parametrize("case", CASES, ids=_name)
@pytest.mark.parametrize(
    "variant", [OURS, DENSE, LINEAR_CROSS_ENTROPY, SENTENCE_TRANSFORMERS], ids=lambda v: v.name
)
def test_step(benchmark, case: Case, variant: Variant) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = _name(case)
    query, key = make_inputs(case)
    try:
        runner = Runner(variant, case, query, key)
    except Unavailable as reason:
        pytest.skip(str(reason))
    errors = relative_errors(case, runner.answer(), solve(case, query, key))
    benchmark.extra_info.update(errors)
    benchmark(runner)
    # A fast wrong answer is no result: the loss agrees to the digits that the dtype has.
    assert errors["loss"] < (0.02 if case.dtype == "bfloat16" else 1e-4)
