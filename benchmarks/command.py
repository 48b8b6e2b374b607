"""``contrastive-ops bench``: runs the suites and writes a JSON file for each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HELP = """\
Measures contrastive-ops against dense PyTorch, torch.compile, F.linear_cross_entropy and
sentence-transformers: forward and backward time, peak memory, and the error against float64.

Every round runs each variant once, in turn, so that a machine that slows down slows all of them;
times are medians over the rounds. Memory is measured in a fresh process for each variant. GF/s
count the work that a loss needs which recomputes nothing: 3 products of 2 N N D operations in one
direction, 4 in two. The peak is what a register-only loop reaches in the same run.

suites:
  one-direction   N = 8192, D = 384, float32, on Gaussian and on clustered inputs
  two-directions  the same in both directions with a learnable temperature
  bfloat16        the same with bfloat16 inputs
  small           N = 2 to 256, D = 32 to 768, forward alone and with the backward
  memory          peak memory up to N = 32768 at D = 128
  sweep           time and memory against batch size, for the plot
  nt-xent, matryoshka, matryoshka-two-ways, sigmoid, triplet, late-interaction, cosent
                  one family each, against dense PyTorch, sentence-transformers and
                  pytorch-metric-learning, with a plot of all that the folder holds
  mining          top-32 of 4096 x 100,000 x 384, hard negatives of 20,000 pairs, batch miners,
                  against faiss, torch, sentence-transformers and pytorch-metric-learning
"""

_HERE = Path(__file__).resolve().parent


class OtherSuite(NamedTuple):
    """A suite whose rows are not those of :mod:`.suites`."""

    title: str
    measure: Callable[[bool, Callable[[str], None]], list[dict[str, Any]]]
    summarize: Callable[[dict[str, Any]], str]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="run this suite only; may be given several times (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=default_output(),
        metavar="FOLDER",
        help="where the JSON files and the plot go (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes and few rounds: shows that all runs, the numbers mean little",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="skip suites that the folder already holds for this commit",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to use (default: torch's choice)"
    )


def default_output() -> Path:
    """benchmarks/results in a source checkout, a folder in the working directory elsewhere."""
    if (_HERE.parent / "setup.py").is_file():
        return _HERE / "results"
    return Path("bench-results")


def run(args: argparse.Namespace) -> int:
    """Runs the suites that were asked for."""
    from . import families, mining
    from .suites import SUITES

    others = {"mining": mining.OTHER} | families.OTHERS
    known = [*SUITES, *others]
    names = args.suite or known
    for name in names:
        if name not in known:
            raise ValueError(f"--suite: got {name!r}, expected one of {', '.join(known)}")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads: got {args.threads}, expected at least 1")
        import torch

        torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        _run_other(name, others[name], args) if name in others else _run_suite(name, args)
    from . import plot

    if (args.output / "sweep.json").is_file():
        print(f"plot: {plot.draw_sweep(args.output)}")
    if any((args.output / f"{name}.json").is_file() for name in families.OTHERS):
        print(f"plot: {plot.draw_families(args.output)}")
    return 0


def _run_suite(name: str, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from . import machine
    from .measure import measure_case
    from .suites import SUITES

    suite = SUITES[name]
    target = args.output / f"{name}.json"
    facts = machine.describe()
    if args.resume and _is_done(target, facts["commit"], args.quick):
        print(f"{suite.title}: already in {target}")
        return
    print(f"{suite.title}")
    rows: list[dict[str, Any]] = []
    cases = suite.cases(args.quick)
    with tqdm(cases, unit="case", file=sys.stdout, disable=None, leave=False) as bar:
        for case in bar:
            new = measure_case(
                suite, case, quick=args.quick, say=lambda text: bar.set_postfix_str(text)
            )
            rows += new
            if not suite.sample:
                for row in new:
                    bar.write(summarize(row), file=sys.stdout)
    result = {"suite": name, "title": suite.title, "quick": args.quick, **facts, "rows": rows}
    write_json(target, result)
    if suite.sample:
        print(_overview(rows))
    print(f"  -> {target}")


def _run_other(name: str, suite: OtherSuite, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from . import machine

    target = args.output / f"{name}.json"
    facts = machine.describe()
    if args.resume and _is_done(target, facts["commit"], args.quick):
        print(f"{suite.title}: already in {target}")
        return
    print(suite.title)
    with tqdm(unit="call", file=sys.stdout, disable=None, leave=False) as bar:

        def say(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        rows = suite.measure(args.quick, say)
    for row in rows:
        print(suite.summarize(row))
    result = {"suite": name, "title": suite.title, "quick": args.quick, **facts, "rows": rows}
    write_json(target, result)
    print(f"  -> {target}")


def _is_done(path: Path, commit: str, quick: bool) -> bool:
    if not path.is_file() or commit == "unknown" or commit.endswith("+changes"):
        return False
    found = json.loads(path.read_text())
    return found.get("commit") == commit and found.get("quick") == quick


def summarize(row: dict[str, Any]) -> str:
    """A row in one line."""
    case = row["case"]
    line = f"  N={case['n']:<6} D={case['dim']:<4} {case['inputs']:<9} {row['variant']:<52}"
    if "unavailable" in row:
        return f"{line} -- {row['unavailable']}"
    if "seconds" in row:
        line += f" {row['seconds'] * 1e3:9.2f} ms {row['ratio_to_ours']:6.2f}x"
        line += f" {row['useful_gflops']:7.0f} GF/s"
        line += f"  error {row['errors']['loss']:.0e}"
        if "gradient" in row["errors"]:
            line += f", gradient {row['errors']['gradient']:.0e}"
    if "peak_memory_bytes" in row:
        line += f" {row['peak_memory_bytes'] / 2**20:8.0f} MiB"
    return line


def _overview(rows: list[dict[str, Any]]) -> str:
    """How peers compare over many cases."""
    peers = [row for row in rows if not row["ours"] and "seconds" in row]
    worst = min(peers, key=lambda row: row["ratio_to_ours"])
    slower = sum(row["ratio_to_ours"] < 1 for row in peers)
    return f"  {len(peers)} comparisons; a peer is faster in {slower}; closest:\n{summarize(worst)}"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)
