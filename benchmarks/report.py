"""Rewrites the measured parts of README and docs/training.md from the JSON files in
benchmarks/results, and nothing else.

python -m contrastive_ops.benchmarks.report           rewrite
python -m contrastive_ops.benchmarks.report --check   exit with 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import report_training

BEGIN = "<!-- measured: begin; written by `python -m contrastive_ops.benchmarks.report` -->"
END = "<!-- measured: end -->"

_HERE = Path(__file__).resolve().parent
README = _HERE.parent / "README.md"
TRAINING = _HERE.parent / "docs" / "training.md"
RESULTS = _HERE / "results"

FAMILIES = (
    "nt-xent",
    "matryoshka",
    "matryoshka-two-ways",
    "sigmoid",
    "triplet",
    "late-interaction",
    "cosent",
)

Results = dict[str, Any]
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Rewrites the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="only say which page is not current")
    args = parser.parse_args(argv)
    old = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    for path in old:
        if args.check:
            print(f"{path.name} is out of date: python -m contrastive_ops.benchmarks.report")
        else:
            partial = path.with_suffix(".partial")
            partial.write_text(pages()[path], encoding="utf-8")
            os.replace(partial, path)
    return int(args.check and bool(old))


def pages() -> dict[Path, str]:
    """What each page should be."""
    return {
        README: rewrite(README.read_text(encoding="utf-8"), load(RESULTS)),
        TRAINING: report_training.rewrite(TRAINING.read_text(encoding="utf-8"), RESULTS),
    }


def load(folder: Path) -> dict[str, Results]:
    """The results of every suite that the folder has."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: value for name, value in found.items() if "rows" in value}


def rewrite(text: str, results: dict[str, Results]) -> str:
    """The text with what stands between the markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("README.md: expected each of the two markers once")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    body = render(results)
    return f"{head}{BEGIN}\n{body}\n{END}{tail}" if body else f"{head}{BEGIN}\n{END}{tail}"


def render(results: dict[str, Results]) -> str:
    """The tables in Markdown; empty without results."""
    parts = [
        comparison(results[name])
        for name in ("one-direction", "two-directions", "bfloat16")
        if name in results
    ]
    if "small" in results:
        parts.append(small_batches(results["small"]))
    if "memory" in results:
        parts.append(large_batches(results["memory"]))
    if any(name in results for name in FAMILIES):
        parts.append(families([results[name] for name in FAMILIES if name in results]))
        parts.append(
            "![Time of dense PyTorch and of other libraries over ours, family by family]"
            "(benchmarks/results/families.png)"
        )
    if "mining" in results:
        parts.append(mining(results["mining"]))
    if "sweep" in results:
        case = results["sweep"]["rows"][0]["case"]
        parts.append(
            f"![Time and memory of {case['dtype']} losses against batch size at D = {case['dim']}]"
            "(benchmarks/results/sweep.png)"
        )
    if parts:
        parts.append(provenance(results))
    return "\n\n".join(parts)


def comparison(results: Results) -> str:
    """Losses against each other, Gaussian and clustered inputs side by side."""
    rows = results["rows"]
    case = rows[0]["case"]
    lines = [
        f"**{results['title']}**: N = M = {case['n']}, D = {case['dim']}, forward + backward",
        "",
        "| loss | time | on clustered inputs | × ours | useful GF/s (of peak) "
        "| error of loss, gradient | memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        first, second = (_pick(rows, name, inputs) for inputs in ("gaussian", "clustered"))
        if first is None or "seconds" not in first:
            continue
        shown = f"**{name}**" if name == "contrastive-ops" else name
        other = second if second is not None and "seconds" in second else None
        lines.append(
            f"| {shown} | {_seconds(first)} | {_seconds(other)} | {first['ratio_to_ours']:.2f} "
            f"| {_rate(first)} | {_errors(first, other)} | {_memory(first)} |"
        )
    return "\n".join(lines)


def small_batches(results: Results) -> str:
    """Dense time over ours at every small size: the range over the widths."""
    rows = [row for row in results["rows"] if not row["ours"] and "seconds" in row]
    sizes = sorted({row["case"]["n"] for row in rows})
    widths = sorted({row["case"]["dim"] for row in rows})
    lines = [
        f"**{results['title']}**: time of dense PyTorch over ours, lowest and highest over "
        f"D = {', '.join(map(str, widths))}, with and without normalisation",
        "",
        "| | " + " | ".join(f"N = {n}" for n in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for backward, label in ((False, "forward"), (True, "forward + backward")):
        cells = []
        for n in sizes:
            ratios = [
                row["ratio_to_ours"]
                for row in rows
                if row["case"]["n"] == n and row["case"]["backward"] == backward
            ]
            cells.append(f"{min(ratios):.2f}–{max(ratios):.2f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mining(results: Results) -> str:
    """A line a peer, beside the fastest of ours for the same case."""
    lines = [
        f"**{results['title']}**: from embeddings, answers exact",
        "",
        "| | ours | peer | peer's time | × ours | same answers |",
        "|---|---:|---|---:|---:|---:|",
    ]
    rows = [row for row in results["rows"] if "seconds" in row]
    for row in rows:
        case, (peer, _, form) = row["case"], row["variant"].partition(", ")
        if peer == "contrastive-ops":
            continue
        mine = [r for r in rows if r["case"] == case and r["variant"].startswith("contrastive-ops")]
        same = [r for r in mine if r["variant"] == f"contrastive-ops, {form}"]
        size = f"{case['n']} × {case['m']} × {case['dim']}" if "m" in case else f"N = {case['n']}"
        what = f"{case['what']}, {size}" + (f", {case['inputs']}" if "inputs" in case else "")
        what, peer = (f"{form}, {size}", peer) if same else (what, row["variant"])
        agreement = f"{row['agreement']:.3%}" if "agreement" in row else "drawn at random"
        lines.append(
            f"| {what} | {_seconds((same or mine)[0])} | {peer} | {_seconds(row)} "
            f"| {row['ratio_to_ours']:.2f} | {agreement} |"
        )
    return "\n".join(lines)


def large_batches(results: Results) -> str:
    """Peak memory by batch size."""
    rows = results["rows"]
    sizes = sorted({row["case"]["n"] for row in rows})
    lines = [
        f"**{results['title']}**: peak beyond inputs and gradients, D = {rows[0]['case']['dim']}, "
        "forward + backward",
        "",
        "| loss | " + " | ".join(f"N = {n}" for n in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for symmetric in (False, True):
        for name in dict.fromkeys(row["variant"] for row in rows):
            mine = {
                row["case"]["n"]: row
                for row in rows
                if row["variant"] == name and row["case"]["symmetric"] == symmetric
            }
            if not mine:
                continue
            label = f"{name}, {'two directions' if symmetric else 'one direction'}"
            cells = " | ".join(_memory(mine.get(n)) for n in sizes)
            lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def families(suites: list[Results]) -> str:
    """Each objective against its peers."""
    lines = [
        "**Other objectives, float32**: forward + backward, inputs as after training",
        "",
        "| objective | ours | against | theirs | × ours | error of loss, gradient: ours; theirs "
        "| memory: ours; theirs |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for rows in (value["rows"] for value in suites):
        for what in dict.fromkeys(row["what"] for row in rows):
            ours, *others = [row for row in rows if row["what"] == what]
            for row in others:
                lines.append(_against(what, ours, row))
                what = ""
    return "\n".join(lines)


def _against(what: str, ours: Row, row: Row) -> str:
    start = f"| {what} | {_seconds(ours) if what else ''} | {row['variant']} "
    if "seconds" not in row:
        return f"{start}| – | – | {_errors(ours)}; – | {_memory(ours)}; {_memory(row)} |"
    theirs = _errors(row) if row["errors"] else "–"
    return (
        f"{start}| {_seconds(row)} | {row['ratio_to_ours']:.2f} | {_errors(ours)}; {theirs} "
        f"| {_memory(ours)}; {_memory(row)} |"
    )


def provenance(results: dict[str, Results]) -> str:
    """Machine, versions and commits, in one paragraph."""
    notes = []
    for facts in dict.fromkeys(_facts(value) for value in results.values()):
        suites = [name for name, value in results.items() if _facts(value) == facts]
        which = "" if len(suites) == len(results) else f" ({', '.join(suites)})"
        notes.append(facts + which)
    quick = any(value.get("quick") for value in results.values())
    warning = " Quick runs at small sizes: the numbers mean little." if quick else ""
    return f"Measured on {'; '.join(notes)}.{warning}"


def _facts(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "sentence-transformers", "pytorch-metric-learning")
        if name in versions
    )
    sets = machine["instruction_sets"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {sets[-1] if sets else 'plain'}; "
        f"{packages}; commit {results['commit']}"
    )


def _pick(rows: list[Row], name: str, inputs: str) -> Row | None:
    for row in rows:
        if row["variant"] == name and row["case"]["inputs"] == inputs:
            return row
    return None


def _seconds(row: Row | None) -> str:
    if row is None:
        return "–"
    seconds: float = row["seconds"]
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _rate(row: Row) -> str:
    rate = f"{row['useful_gflops']:.0f}"
    share = row.get("share_of_peak")
    return rate if share is None else f"{rate} ({share:.0%})"


def _errors(*rows: Row | None) -> str:
    """The larger error of the rows: loss, then gradients."""
    present = [row["errors"] for row in rows if row is not None]
    loss = max(errors["loss"] for errors in present)
    slopes = [value for errors in present for name, value in errors.items() if "gradient" in name]
    return f"{loss:.0e}, {max(slopes):.0e}" if slopes else f"{loss:.0e}"


def _memory(row: Row | None) -> str:
    if row is None or "peak_memory_bytes" not in row:
        return "does not fit" if row is not None and "unavailable" in row else "–"
    mebibytes = row["peak_memory_bytes"] / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
