"""The benchmark harness: its oracle, its clock, its memory meter, and a whole run at tiny sizes."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import replace

import pytest
import torch

from contrastive_ops import cli
from contrastive_ops.benchmarks import (
    cases,
    command,
    families,
    machine,
    measure,
    memory,
    oracle,
    timing,
)
from contrastive_ops.benchmarks.cases import Case
from contrastive_ops.benchmarks.suites import SUITES, Suite
from contrastive_ops.benchmarks.variants import (
    DENSE,
    LINEAR_CROSS_ENTROPY,
    OURS,
    SENTENCE_TRANSFORMERS,
    VARIANTS,
    Unavailable,
    Variant,
)

SMALL = Case(n=37, dim=8)
KINDS = [
    SMALL,
    replace(SMALL, normalize=False),
    replace(SMALL, symmetric=True),
    replace(SMALL, symmetric=True, learnable_temperature=True, inputs="clustered"),
    replace(SMALL, inputs="clustered", temperature=0.5),
]


@pytest.mark.parametrize("case", KINDS)
def test_oracle_agrees_with_autograd(case, monkeypatch):
    monkeypatch.setattr(oracle, "_ROWS", 10)  # several blocks, the last one shorter
    query, key = (x.double() * 1.7 for x in cases.make_inputs(case))
    runner = timing.Runner(DENSE, replace(case, dtype="float32"), query, key)
    runner.query = query.clone().requires_grad_()
    runner.key = key.clone().requires_grad_()
    runner.temperature = torch.tensor(
        case.temperature, dtype=torch.float64, requires_grad=case.learnable_temperature
    )
    exact = oracle.solve(case, query, key)
    errors = oracle.relative_errors(case, runner.answer(), exact)
    assert set(errors) == {"loss", "gradient"} | (
        {"temperature gradient"} if case.learnable_temperature else set()
    )
    assert max(errors.values()) < 1e-12


def test_errors_see_an_error():
    query, key = cases.make_inputs(SMALL)
    exact = oracle.solve(SMALL, query, key)
    wrong = oracle.Answer(exact.loss * 1.01, exact.query_grad, exact.key_grad * 0.9, None)
    errors = oracle.relative_errors(SMALL, wrong, exact)
    assert errors["loss"] == pytest.approx(0.01, rel=1e-6)
    assert errors["gradient"] == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("case", KINDS[:4])
def test_every_variant_computes_the_same_loss(variant, case):
    if "torch.compile" in variant.name:
        pytest.skip("takes long; measured runs check it")
    query, key = cases.make_inputs(case)
    try:
        runner = timing.Runner(variant, case, query, key)
    except Unavailable as reason:
        pytest.skip(str(reason))
    errors = oracle.relative_errors(case, runner.answer(), oracle.solve(case, query, key))
    assert max(errors.values()) < 2e-5


def test_forward_alone_makes_no_gradients():
    case = replace(SMALL, backward=False)
    runner = timing.Runner(DENSE, case, *cases.make_inputs(case))
    assert not runner().requires_grad
    assert runner.query.grad is None
    assert case.products == 1
    assert replace(SMALL, symmetric=True).products == 4


@pytest.mark.parametrize("inputs", ["gaussian", "clustered"])
def test_inputs_are_unit_rows_and_reproducible(inputs):
    case = Case(n=200, dim=64, inputs=inputs)
    query, key = cases.make_inputs(case)
    again, _ = cases.make_inputs(case)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(200))
    torch.testing.assert_close(key.norm(dim=1), torch.ones(200))
    assert torch.equal(query, again)
    mean = (query * key).sum(dim=1).mean().item()
    assert mean > 0.7 if inputs == "clustered" else abs(mean) < 0.1
    assert cases.make_inputs(replace(case, dtype="bfloat16"))[0].dtype == torch.bfloat16


def test_variants_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ABC"}
    times = timing.interleave(calls, budget=0.0, min_rounds=4, max_rounds=9)
    assert "".join(order) == "ABC" * 5  # an estimate, then four rounds
    assert all(len(values) == 4 for values in times.seconds.values())


def test_times_and_ratios():
    times = timing.Times({"a": [1.0, 1.0, 10.0, 1.0], "b": [2.0, 2.0, 20.0, 3.0]})
    assert times.median("b") == 2.5
    assert times.ratio("b", "a") == 2.0
    slow = timing.interleave(
        {"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.01)},
        budget=0.2,
        sample=0.01,
    )
    assert slow.median("slow") >= 0.01
    assert 2 < slow.ratio("slow", "fast") < 8


def test_memory_meter_counts_a_known_allocation(monkeypatch):
    size = 64 * 2**20

    def build(case):
        def loss(query, key, temperature):
            scratch = torch.ones(size // 4) if case.n > 64 else torch.ones(1)
            return (query * key).sum() * scratch.mean()

        return loss

    variant = Variant("known", build)
    found = memory.measure_here(variant, Case(n=4096, dim=64))
    assert 0.95 * size < found < 1.1 * size


def test_memory_is_measured_in_a_process_of_its_own():
    case = Case(n=1500, dim=16)
    found = memory.measure_memory(DENSE, case, threads=1)
    matrix = case.n * case.n * 4
    assert 1.5 * matrix < found < 8 * matrix


def test_memory_failure_is_one_line(monkeypatch):
    with pytest.raises(RuntimeError, match="memory of 'nobody' failed"):
        memory.measure_memory(Variant("nobody", lambda case: None), SMALL, threads=1)


def test_too_large_is_left_out(monkeypatch):
    monkeypatch.setattr(measure, "available_memory", lambda: 2**20)
    suite = Suite("t", lambda quick: [], (OURS, DENSE), memory=False, budget=0.0)
    ours, dense = measure.measure_case(suite, Case(n=256, dim=4), quick=True)
    assert "seconds" in ours
    assert "GiB" in dense["unavailable"]
    assert "seconds" not in dense


def test_rows_are_consistent():
    suite = Suite("t", lambda quick: [], (OURS, DENSE, SENTENCE_TRANSFORMERS), budget=0.0)
    case = Case(n=64, dim=32)
    rows = measure.measure_case(suite, case, quick=True)
    assert rows[0]["ratio_to_ours"] == 1.0
    for row in rows:
        if "unavailable" in row:
            continue
        assert row["useful_gflops"] == pytest.approx(3 * 2 * 64 * 64 * 32 / row["seconds"] * 1e-9)
        assert row["errors"]["loss"] < 1e-5
        assert row["errors"]["gradient"] < 1e-5
        assert command.summarize(row)


def test_peak_is_what_a_cpu_can_do():
    peak = machine.Peak("float32")
    peak.sample()
    if peak.gflops() is None:
        pytest.skip("without the compiled library")
    assert 1 < peak.gflops() < 1e5


@pytest.mark.parametrize("name", families.SUITES)
def test_families_compute_the_same_loss(name):
    for comparison in families.SUITES[name][1](True):
        small = dataclasses.replace(comparison, case=comparison.case | {"n": 24})
        exact = families.solve(small)
        assert math.isfinite(exact[0])
        for variant_name, variant in small.variants.items():
            try:
                run = families.Step(variant.build(small.case), small.leaves(small.case))
            except Unavailable:
                continue
            if not variant_name.endswith("one width"):
                assert max(families.errors(run, exact).values()) < 2e-5, variant_name


def test_a_family_from_the_command_to_the_plot(tmp_path, monkeypatch, capsys):
    comparisons = families.SUITES["cosent"][1](True)
    small = [dataclasses.replace(c, case=c.case | {"n": 32}) for c in comparisons]
    monkeypatch.setitem(families.SUITES, "cosent", ("CoSENT", lambda quick: small))
    assert cli.main(["bench", "--quick", "--suite", "cosent", "--output", str(tmp_path)]) == 0
    assert "CoSENT, 512 scores" in capsys.readouterr().out
    rows = json.loads((tmp_path / "cosent.json").read_text())["rows"]
    assert rows[0]["ours"]
    assert rows[0]["ratio_to_ours"] == 1.0
    dense = rows[1]
    assert dense["errors"]["loss"] < 1e-5
    assert dense["peak_memory_bytes"] > 512 * 512 * 4  # the child's case is that of the suite
    assert (tmp_path / "families.png").read_bytes().startswith(b"\x89PNG")


def test_memory_of_a_family_fails_in_one_line():
    with pytest.raises(RuntimeError, match="memory of 'nobody' failed"):
        families._measure_memory("cosent", 0, "nobody", True)


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_what_the_machine_can_measure(name):
    suite = SUITES[name]
    assert sum(variant.ours for variant in suite.variants) >= 1
    for quick in (True, False):
        assert suite.cases(quick)
    assert suite.time or suite.memory


def test_command_writes_json_and_resumes(tmp_path, monkeypatch, capsys):
    tiny = Suite("Tiny", lambda quick: [Case(n=8, dim=4)], (OURS, LINEAR_CROSS_ENTROPY), budget=0.0)
    monkeypatch.setitem(SUITES, "tiny", tiny)
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab")
    arguments = ["bench", "--quick", "--suite", "tiny", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    path = tmp_path / "tiny.json"
    result = json.loads(path.read_text())
    assert result["commit"] == "0123456789ab"
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["versions"]["torch"] == torch.__version__
    assert result["rows"][0]["case"]["n"] == 8
    assert math.isfinite(result["rows"][0]["seconds"])
    assert not list(tmp_path.glob("*.partial"))
    capsys.readouterr()
    stamp = path.stat().st_mtime_ns
    assert cli.main([*arguments, "--resume"]) == 0
    assert "already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "arguments", [["--suite", "nothing"], ["--threads", "0"]], ids=["suite", "threads"]
)
def test_command_names_a_bad_argument(arguments, tmp_path, capsys):
    assert cli.main(["bench", "--output", str(tmp_path), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err
