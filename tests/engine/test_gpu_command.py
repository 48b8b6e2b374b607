"""`make gpu` without a GPU: its orchestration, driven in Triton's interpreter at tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "run_gpu.py"


@pytest.fixture
def run_gpu():
    spec = importlib.util.spec_from_file_location("run_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_gpu"]


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Checks, every family's cases, the file: all of it runs and says so."""
    pytest.importorskip("triton")
    output = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rehearse", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(output.read_text())
    assert report["passed"] is True
    assert len(report["checks"]) > 5
    assert {entry["outcome"] for entry in report["checks"]} == {"done"}
    from contrastive_ops.benchmarks.gpu_families import FAMILIES

    assert {entry["family"] for entry in report["bench"]} == {family.name for family in FAMILIES}
    assert {"ours", "dense"} <= {entry["variant"] for entry in report["bench"]}
    assert all(entry["hot_seconds"] > 0 for entry in report["bench"])
    assert "guard" in report["sanitizer"]


WORKER = """
import json, os, sys, time
part, skip, log = json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with open(log, "a", buffering=1) as file:
    for number in range(skip, 5):
        name = f"job {number}"
        file.write(json.dumps({"number": number, "job": name, "outcome": "started"}) + "\\n")
        if number == 1 and skip <= 1:
            os.abort()
        if number == 3:
            time.sleep(60)
        if number == 2:
            told = {"number": number, "job": name, "outcome": "failed", "why": "wrong"}
            file.write(json.dumps(told) + "\\n")
            sys.exit(3)
        file.write(json.dumps({"number": number, "job": name, "outcome": "done"}) + "\\n")
"""


def test_a_process_that_dies_costs_one_job(run_gpu, tmp_path, monkeypatch):
    """One dies, one loses its context, one hangs: each is told, the others are done."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(run_gpu, "__file__", str(worker))
    monkeypatch.setattr(run_gpu, "KILL_SECONDS", 0.5)
    began = time.monotonic()
    entries = run_gpu.Stage("checks", 1, 1.0, True).run(lambda entries: None)
    assert time.monotonic() - began < 10
    outcomes = {}
    for entry in entries:
        outcomes[entry["job"]] = entry["outcome"], entry.get("why")
    assert outcomes["job 0"] == ("done", None)
    assert outcomes["job 1"] == ("failed", "process died, exit code -6")
    assert outcomes["job 2"] == ("failed", "wrong")
    assert outcomes["job 3"] == ("failed", "did not end in time")


def test_a_process_that_cannot_begin_is_loud(run_gpu, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(7)")
    monkeypatch.setattr(run_gpu, "__file__", str(worker))
    entries = run_gpu.Stage("bench", 1, 5.0, True).run(lambda entries: None)
    assert [entry["outcome"] for entry in entries] == ["failed"]
    assert "exit code 7" in entries[0]["why"]


def test_the_file_is_whole_or_not_there(run_gpu, tmp_path, monkeypatch):
    output = tmp_path / "results" / "report.json"
    run_gpu.write(output, {"machine": 1})

    class Died(Exception):
        pass

    def replace(*_):
        raise Died

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Died):
        run_gpu.write(output, {"machine": 2})
    assert json.loads(output.read_text()) == {"machine": 1}
