"""Checks and measures the GPU backend from a checkout, with whatever python has torch, Triton and
NumPy.

    python benchmarks/run_gpu.py [--checks | --bench | --tune FILE] [--output FILE] [--rehearse]

Nothing is installed or downloaded; pytest is not needed. First the checks of tests/triton and those
that only a GPU can make, in a few processes at once, since most of their time is compiling; then
the benchmark, alone; then compute-sanitizer, where it is installed. Each part has its share of nine
minutes. A process that dies or hangs costs the check or case that it was at, no other. The JSON is
written anew, whole, after every few seconds of results. Exit code 1 if a check fails or is not
reached, or the benchmark of something of ours fails.

--rehearse drives all of it on the CPU, in Triton's interpreter, at tiny sizes: it proves this file,
not the kernels, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECK_SECONDS = 200.0
SANITIZER_SECONDS = 75.0
TOTAL_SECONDS = 515.0
KILL_SECONDS = 15.0
"""What a part may overrun before its process is ended: nothing asks a kernel whether it is late."""
WORKERS = max(1, min(12, (os.cpu_count() or 2) * 3 // 4))
ASKS_FOR_ANOTHER = 3
"""Exit code of a process whose GPU context is lost: a fresh one is to go on after its job."""
SHRINK = 1000
"""How much smaller batches are when rehearsed."""
REHEARSED = 30
"""Every how manyth check is rehearsed; tests/triton runs all of them."""

Line = dict[str, Any]
Work = tuple[str, Callable[[], Iterator[tuple[str, Line]]], float]
"""A job: its name, what yields (line to print, entry), and when it is too late to begin."""


def use_checkout() -> None:
    """Makes the checkout importable as it installs: kernels and benchmarks inside the package."""
    here = str(Path(__file__).resolve().parent)  # its modules have everyday names
    sys.path[:] = [entry for entry in sys.path if entry != here]
    for entry in (ROOT, ROOT / "tests", ROOT / "tests" / "mining", ROOT / "tests" / "triton"):
        if str(entry) not in sys.path:
            sys.path.insert(0, str(entry))
    import contrastive_ops

    if str(ROOT) not in contrastive_ops.__path__:
        contrastive_ops.__path__.append(str(ROOT))


@dataclass(frozen=True)
class Part:
    """What one worker process does of a stage."""

    stage: str  # "checks", "bench" or "sanitized"
    number: int
    count: int
    deadline: float  # time.time()
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"


def jobs(part: Part) -> list[Work]:
    """The stage's jobs that fall to this part, always in the same order."""
    use_checkout()
    if part.stage == "bench":
        return _bench_jobs(part)
    import checks  # type: ignore[import-not-found]

    from contrastive_ops.benchmarks.gpu_families import FAMILIES

    if part.stage == "sanitized":
        found = checks.sanitized_checks(part.device)
    else:
        of_device = [check for family in FAMILIES for check in family.checks(part.device)]
        found = [*of_device, *list(checks.all_checks(part.device))[:: _every(part)]]

    def job(name: str, check: Callable[[], None]) -> Work:
        def run() -> Iterator[tuple[str, Line]]:
            try:
                check()
            finally:
                _leave_memory(part)
            yield "", {"outcome": "passed"}

        return name, run, part.deadline

    return [job(name, check) for name, check in found][part.number :: part.count]


def _leave_memory(part: Part) -> None:
    """To the other processes: what a check has freed stays with its own otherwise."""
    import torch

    if part.device == "cuda":
        torch.cuda.empty_cache()


def _every(part: Part) -> int:
    return REHEARSED if part.rehearse else 1


def _bench_jobs(part: Part) -> list[Work]:
    from contrastive_ops.benchmarks import gpu_bench

    began = time.time()
    found: list[Work] = []
    planned = gpu_bench.schedule(SHRINK if part.rehearse else 1)
    if part.rehearse:
        planned = [*{family: (family, *rest) for family, *rest in planned}.values()]  # the last
    for family, case, used in planned:
        end = began + used * (part.deadline - began)

        def run(family: str = family, case: Any = case, end: float = end) -> Any:
            return gpu_bench.measure(family, case, part.device, lambda: time.time() > end)

        found.append((f"{family}: {case.title}", run, end))
    return found


def work(part: Part, skip: int, log: Path) -> int:
    """In a worker process: jobs from number `skip` on, each one's start and entries to the log."""
    with log.open("a", buffering=1) as file:

        def tell(number: int, name: str, **entry: Any) -> None:
            file.write(json.dumps({"number": number, "job": name, **entry}) + "\n")

        for number, (name, run, deadline) in enumerate(jobs(part)):
            if number < skip:
                continue
            if time.time() > deadline:
                tell(number, name, outcome="not run")
                continue
            tell(number, name, outcome="started")
            began = time.monotonic()
            try:
                for line, entry in run():
                    tell(number, name, **{"outcome": "measured", **entry, "line": line})
                    if line:
                        print(line, flush=True)
                outcome: Line = {"outcome": "done"}
            except Exception:
                outcome = {"outcome": "failed", "why": traceback.format_exc()[-1500:]}
            seconds = round(time.monotonic() - began, 2)
            tell(number, name, **outcome, seconds=seconds)
            if outcome["outcome"] == "failed" and _context_lost(part):
                return ASKS_FOR_ANOTHER
    return 0


def _context_lost(part: Part) -> bool:
    import torch

    if part.device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


class Stage:
    """A stage's worker processes, begun anew where one dies, ended when time is up."""

    def __init__(
        self, name: str, count: int, seconds: float, rehearse: bool, prefix: list[str] | None = None
    ) -> None:
        deadline = time.time() + seconds
        self.parts = [Part(name, number, count, deadline, rehearse) for number in range(count)]
        self.prefix = prefix or []
        self.deadline = deadline
        self.folder = tempfile.TemporaryDirectory(prefix="contrastive-ops-gpu-")
        self.logs = [Path(self.folder.name) / f"{number}.jsonl" for number in range(count)]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.begun_at = [0] * count
        self.deaths: list[Line] = []

    def run(self, keep: Callable[[list[Line]], None]) -> list[Line]:
        """All entries, in the jobs' order; `keep` is given those so far every few seconds."""
        with self.folder:
            try:
                for number in range(len(self.parts)):
                    self._start(number, 0)
                kept = time.monotonic()
                while any(process is not None for process in self.processes):
                    time.sleep(0.05)
                    for number in range(len(self.parts)):
                        self._look_after(number)
                    if time.monotonic() - kept > 5:
                        keep(self.entries())
                        kept = time.monotonic()
                return self.entries()
            finally:
                for process in self.processes:
                    if process is not None:
                        process.kill()
                        process.wait()

    def _start(self, number: int, skip: int) -> None:
        part = self.parts[number]
        command = [
            *self.prefix,
            sys.executable,
            str(Path(__file__).resolve()),
            "--work",
            json.dumps([*part.__dict__.values()]),
            str(skip),
            str(self.logs[number]),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        if part.rehearse:
            environment["TRITON_INTERPRET"] = "1"
        self.begun_at[number] = skip
        self.processes[number] = subprocess.Popen(command, env=environment)

    def _look_after(self, number: int) -> None:
        process = self.processes[number]
        if process is None:
            return
        code = process.poll()
        if code is None and time.time() < self.deadline + KILL_SECONDS:
            return
        if code is None:
            process.kill()
            process.wait()
        self.processes[number] = None
        if code == 0:
            return
        why = "did not end in time" if code is None else f"process died, exit code {code}"
        lines = self._lines(number)
        reached = max((line["number"] for line in lines), default=-1)
        last = [line for line in lines if line["number"] == reached]
        unfinished = bool(last) and last[-1]["outcome"] == "started"
        if unfinished or (last and last[-1]["outcome"] == "measured"):
            died = {"number": reached, "job": last[0]["job"], "outcome": "failed", "why": why}
            with self.logs[number].open("a") as file:
                file.write("\n" + json.dumps(died) + "\n")
        elif code != ASKS_FOR_ANOTHER or reached < self.begun_at[number]:
            job = f"{self.parts[number].stage}, process {number}"
            self.deaths.append({"job": job, "outcome": "failed", "why": why})
        # Where it died before any job, another one would, too.
        if code is not None and reached >= self.begun_at[number]:
            self._start(number, reached + 1)

    def _lines(self, number: int) -> list[Line]:
        if not self.logs[number].exists():
            return []
        found = []
        for text in self.logs[number].read_text().splitlines():
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:  # the end of a process that was killed
                continue
        return found

    def entries(self) -> list[Line]:
        """What the logs say: measurements, and what became of each job."""
        found = list(self.deaths)
        for number in range(len(self.parts)):
            lines = self._lines(number)
            finished = {x["number"] for x in lines if x["outcome"] in ("done", "failed")}
            for line in lines:
                if line["outcome"] == "started":
                    if line["number"] not in finished:
                        found.append({**line, "outcome": "not run"})
                elif line["outcome"] != "passed":
                    found.append(line)
        return [{k: v for k, v in entry.items() if k not in ("number", "line")} for entry in found]


def machine(rehearse: bool) -> dict[str, Any]:
    import torch
    import triton

    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": head.stdout.strip() or "unknown",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if rehearse:
        return {"gpu": "rehearsal", **facts}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        **facts,
    }


def sanitizer() -> str | None:
    """compute-sanitizer, where it is installed."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    for place in (shutil.which("compute-sanitizer"), home / "bin" / "compute-sanitizer"):
        if place and Path(place).exists():
            return str(place)
    return None


def run_checks(report: Line, keep: Callable[[], None], rehearse: bool) -> bool:
    """Whether all checks passed."""

    def take(entries: list[Line]) -> None:
        report["checks"] = entries
        keep()

    count = 2 if rehearse else WORKERS
    take(Stage("checks", count, CHECK_SECONDS, rehearse).run(take))
    failed = [entry for entry in report["checks"] if entry["outcome"] == "failed"]
    passed = sum(entry["outcome"] == "done" for entry in report["checks"])
    missed = len(report["checks"]) - passed - len(failed)
    print(f"checks: {passed} passed, {len(failed)} failed, {missed} not run", flush=True)
    for entry in failed:
        print(f"--- FAILED: {entry['job']}\n{entry['why']}", flush=True)
    return passed > 0 and not failed and not missed


def run_bench(report: Line, keep: Callable[[], None], seconds: float, rehearse: bool) -> bool:
    """Whether everything of ours could be measured."""
    from contrastive_ops.benchmarks import gpu_bench

    def take(entries: list[Line]) -> None:
        report["bench"] = [e for e in entries if e["outcome"] == "measured"]
        report["bench_jobs"] = [e for e in entries if e["outcome"] != "measured"]
        keep()

    take(Stage("bench", 1, seconds, rehearse).run(take))
    for line in gpu_bench.memory_table(report["bench"]):
        print(line)
    wrong = [e for e in report["bench_jobs"] if e["outcome"] == "failed"]
    wrong += [e for e in report["bench"] if "failed" in e and e["variant"].startswith("ours")]
    late = sum(e["outcome"] == "not run" for e in report["bench_jobs"])
    print(
        f"benchmark: {len(report['bench'])} measurements, {len(wrong)} failed, "
        f"{late} cases not reached"
    )
    for entry in wrong:
        print(f"--- FAILED: {entry['job']}\n{entry.get('why', entry.get('failed'))}")
    return not wrong and bool(report["bench"])


def run_sanitizer(report: Line, keep: Callable[[], None], seconds: float, rehearse: bool) -> bool:
    """Whether compute-sanitizer found nothing, or is not here."""
    tool = sanitizer()
    if tool is None or rehearse:
        report["sanitizer"] = (
            "compute-sanitizer is not installed here: memory is guarded by NaN around operands and "
            "around every buffer alone (checks named guards)"
        )
        print(report["sanitizer"])
        keep()
        return True
    report["sanitizer"] = {}
    good = True
    for name in ("memcheck", "racecheck"):
        prefix = [tool, "--tool", name, "--error-exitcode", "9", "--target-processes", "all"]
        entries = Stage("sanitized", 1, seconds / 2, False, prefix).run(lambda entries: None)
        report["sanitizer"][name] = entries
        failed = [entry for entry in entries if entry["outcome"] == "failed"]
        print(f"{name}: {len(entries)} checks, {len(failed)} failed", flush=True)
        good = good and not failed
        keep()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks and measures the GPU backend.")
    parser.add_argument("--checks", action="store_true", help="the checks alone")
    parser.add_argument("--bench", action="store_true", help="the benchmark alone")
    parser.add_argument("--tune", type=Path, help="only find this GPU's best tiles, into a file")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-<name>.json")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to prove this command")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        part, skip, log = args.work
        return work(Part(*json.loads(part)), int(skip), Path(log))
    began = time.monotonic()
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here", file=sys.stderr)
        return 2
    os.environ.pop("TRITON_INTERPRET", None)
    use_checkout()
    from contrastive_ops.benchmarks import gpu_bench, gpu_cuda

    if args.tune:
        from contrastive_ops.benchmarks import gpu_tune

        gpu_tune.run(args.tune, lambda line: print(line, flush=True))
        return 0
    report: Line = {"machine": machine(args.rehearse), "peers": gpu_bench.peers_installed()}
    report["cuda_kernels"] = gpu_cuda.build(ROOT)  # workers find it through the environment
    print(f"CUDA C++ kernels: {report['cuda_kernels']}", flush=True)
    name = report["machine"]["gpu"].lower().replace(" ", "-")
    output = args.output or ROOT / "benchmarks" / "results" / f"gpu-{name}.json"

    def keep() -> None:
        write(output, report)

    def left() -> float:
        return TOTAL_SECONDS - (time.monotonic() - began)

    good = True
    keep()
    if not args.bench:
        good = run_checks(report, keep, args.rehearse)
    if not args.checks:
        reserved = SANITIZER_SECONDS if sanitizer() and not args.bench else 0.0
        good = run_bench(report, keep, left() - reserved - KILL_SECONDS, args.rehearse) and good
    if not args.bench:
        good = run_sanitizer(report, keep, min(left(), SANITIZER_SECONDS), args.rehearse) and good
    report["passed"] = good
    report["seconds"] = round(time.monotonic() - began, 1)
    keep()
    print(f"{'passed' if good else 'FAILED'}: {output}, {report['seconds']:.0f} s")
    return int(not good)


def write(output: Path, report: Line) -> None:
    """Atomically."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, output)


if __name__ == "__main__":
    sys.exit(main())
