"""README's and training.md's numbers are those of the JSON files in benchmarks/results."""

from __future__ import annotations

import json

import pytest

from contrastive_ops.benchmarks import plot, report, report_training

FACTS = {
    "date": "2026-01-01",
    "commit": "0123456789ab",
    "machine": {"cpu": "Some CPU", "threads": 2, "instruction_sets": ["AVX2", "AVX-512"]},
    "versions": {"torch": "2.13.0", "sentence-transformers": "6.2.0"},
    "quick": False,
}


def row(name, seconds, ratio, *, n=8192, inputs="gaussian", ours=False, **more):
    case = {"n": n, "dim": 384, "dtype": "float32", "inputs": inputs, "symmetric": False}
    return {
        "case": case | {"backward": True},
        "variant": name,
        "ours": ours,
        "seconds": seconds,
        "ratio_to_ours": ratio,
        "useful_gflops": 200.4,
        "share_of_peak": 0.871,
        "errors": {"loss": 1e-8, "gradient": 2e-7},
        "peak_memory_bytes": 300 * 2**20,
    } | more


def results():
    rows = [
        row("contrastive-ops", 0.4, 1.0, ours=True),
        row("dense", 1.5, 3.75, peak_memory_bytes=2.5 * 2**30, share_of_peak=None),
        row("contrastive-ops", 0.41, 1.0, ours=True, inputs="clustered"),
        row("dense", 1.6, 3.9, inputs="clustered", errors={"loss": 3e-5, "gradient": 4e-5}),
        {"case": row("x", 1, 1)["case"], "variant": "absent", "ours": False, "unavailable": "no"},
    ]
    small = [
        row("dense", 1e-4, ratio, n=n) | {"case": row("x", 1, 1, n=n)["case"] | {"backward": back}}
        for n, ratio, back in (
            (2, 1.5, True),
            (2, 2.5, True),
            (2, 1.1, False),
            (64, 1.2, True),
            (64, 1.3, False),
        )
    ]
    large = [
        row("contrastive-ops", 1, 1, n=1024, ours=True),
        {
            "case": row("x", 1, 1, n=2048)["case"],
            "variant": "contrastive-ops",
            "unavailable": "big",
        },
    ]
    return {
        "one-direction": {"title": "One direction", "rows": rows, **FACTS},
        "small": {"title": "Small", "rows": small, **FACTS},
        "memory": {"title": "Memory", "rows": large, **FACTS},
    }


def test_tables_hold_the_measured_numbers():
    text = report.render(results())
    assert (
        "| **contrastive-ops** | 400 ms | 410 ms | 1.00 | 200 (87%) | 1e-08, 2e-07 | 300 MiB |"
        in text
    )
    assert "| dense | 1.50 s | 1.60 s | 3.75 | 200 | 3e-05, 4e-05 | 2.5 GiB |" in text
    assert "absent" not in text
    assert "| forward | 1.10–1.10 | 1.30–1.30 |" in text
    assert "| forward + backward | 1.50–2.50 | 1.20–1.20 |" in text
    assert "| contrastive-ops, one direction | 300 MiB | does not fit |" in text
    assert "Some CPU, 2 threads, AVX-512; torch 2.13.0" in text
    assert "commit 0123456789ab" in text
    assert "sweep.png" not in text


def family(name, what, ours, theirs):
    rows = [row("contrastive-ops", ours, 1.0, ours=True), row(name, theirs, theirs / ours)]
    rows.append({"variant": "B x B x B", "ours": False, "unavailable": "needs 99 GiB"})
    return {"title": what, "rows": [{"what": what} | x for x in rows], **FACTS}


def test_families_are_one_table():
    text = report.render(
        {
            "triplet": family("their triplets", "Triplets, B = 64", 0.002, 0.5),
            "nt-xent": family("their views", "NT-Xent, 2 x 64 views", 0.004, 0.006),
        }
    )
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| NT-Xent, 2 x 64 views | 4 ms | their views | 6 ms | 1.50 |")
    assert lines[2].startswith(
        "|  |  | B x B x B | – | – | 1e-08, 2e-07; – | 300 MiB; does not fit"
    )
    assert lines[3].startswith("| Triplets, B = 64 | 2 ms | their triplets | 500 ms | 250.00 |")
    assert "families.png" in text
    assert "families.png" not in report.render(results())


def test_plot_of_families(tmp_path):
    pytest.importorskip("matplotlib")
    found = family("PyTorch, dense", "Triplets", 0.002, 0.5)
    (tmp_path / "triplet.json").write_text(json.dumps(found))
    assert plot.draw_families(tmp_path).stat().st_size > 8_000


def test_the_plot_is_shown_where_there_is_one():
    sweep = {"title": "Sweep", "rows": [row("x", 1, 1)], **FACTS}
    text = report.render(results() | {"sweep": sweep})
    assert "at D = 384](benchmarks/results/sweep.png)" in text


def test_quick_runs_say_so():
    quick = {name: value | {"quick": True} for name, value in results().items()}
    assert "mean little" in report.render(quick)
    assert "mean little" not in report.render(results())


def test_only_what_stands_between_the_markers_changes():
    text = f"before\n{report.BEGIN}\nold | 9.99 |\n{report.END}\nafter 9.99\n"
    new = report.rewrite(text, results())
    assert new.startswith(f"before\n{report.BEGIN}\n")
    assert new.endswith(f"\n{report.END}\nafter 9.99\n")
    assert "old" not in new
    assert report.rewrite(new, results()) == new
    assert report.rewrite(text, {}) == f"before\n{report.BEGIN}\n{report.END}\nafter 9.99\n"


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.BEGIN}{report.END}{report.BEGIN}"])
def test_markers_must_be_there_once(text):
    with pytest.raises(ValueError, match="markers"):
        report.rewrite(text, {})


def training_results():
    """Of the commands, the study and the ablation, a line each."""
    facts = FACTS | {"versions": FACTS["versions"] | {"transformers": "5.0"}}
    command = "contrastive-ops train static --data a.tsv --evaluate " + "x" * 80
    before, after = (
        {"sts-dev_spearman": score, "alignment": 0.25, "uniformity": -2.5} for score in (0.5, 0.75)
    )
    done = {"untrained": before, "trained": after, "steps": 7, "metric": "sts-dev_spearman"}
    done |= {"command": command, "seconds": 12.4, "first_loss": 4.0, "last_loss": 1.25}

    def spread(scores, std):
        return {name: {"mean": value, "std": std} for name, value in scores.items()}

    part = {"note": "a note", "seeds": [1, 2], "first_loss": [4.0, 2.0], "last_loss": [1.0, 1.0]}
    part |= {"untrained": spread(before, 0.0), "trained": spread(after, 0.01)}
    part |= {"training_seconds": [3.0, 5.0]}
    share = {"note": "a small encoder", "batch_64": {"share_median": 0.0123}}
    score = {"mean": 0.8, "std": 0.01}
    view = {"name": "crop 10 %", "spearman": score, "paper": 77.8}
    view |= {"alignment": {"mean": 0.2}, "uniformity": {"mean": -2.0}}
    return {
        "recipes": {"tables": {"a.tsv": "rows"}, "runs": {"static": done | facts}},
        "training": {"parts": {"simcse_sup": part | facts, "loss_share": share | facts}},
        "augmentation": {"untrained": 0.7, "caveat": "A caveat.", "augmentations": [view]} | facts,
    }


def write_training(folder):
    for name, kept in training_results().items():
        (folder / f"{name}.json").write_text(json.dumps(kept))


def test_training_parts_hold_the_measured_numbers(tmp_path):
    write_training(tmp_path)
    parts = report_training.render(tmp_path)
    assert "train static --data a.tsv \\\n    --evaluate xxx" in parts["static"]
    assert (
        "7 steps, 12 s from start to report on 2 threads. Loss 4 → 1.25; Spearman (sts-dev) "
        in (parts["static"])
    )
    assert "| `a.tsv` | rows |" in parts["tables"]
    assert "50.00 → **75.00**, alignment 0.250 → **0.250**, uniformity" in parts["static"]
    assert (
        "| `simcse_sup`: a note | Spearman (sts-dev) | 50.00 | **75.00 ± 1.00** |" in parts["study"]
    )
    assert "| **75.00 ± 1.00** | 3.00 → 1.00 | 4 | 2 |" in parts["study"]
    assert "1.23% of a step at batch 64: a small encoder." in parts["study"]
    assert "over seeds. Some CPU, 2 threads, AVX-512; torch 2.13.0" in parts["study"]
    assert "| crop 10 % | 80.00 ± 1.00 | 0.200 | -2.000 | 77.8 |" in parts["augmentation"]
    assert "A caveat." in parts["augmentation"]


def test_training_parts_and_places_must_agree(tmp_path):
    write_training(tmp_path)
    names = ("static", "tables", "study", "augmentation")
    page = "\n\n".join(f"<!-- measured: {name} -->\nold\n<!-- end -->" for name in names)
    new = report_training.rewrite(page, tmp_path)
    assert "old" not in new
    assert report_training.rewrite(new, tmp_path) == new
    with pytest.raises(ValueError, match="places for static, tables, study, expected static"):
        report_training.rewrite(page.rpartition("<!-- measured")[0], tmp_path)


def test_check_and_rewrite(tmp_path, monkeypatch, capsys):
    readme, training = tmp_path / "README.md", tmp_path / "training.md"
    readme.write_text(f"a\n{report.BEGIN}\n{report.END}\n")
    training.write_text("b\n")
    (tmp_path / "one-direction.json").write_text(json.dumps(results()["one-direction"]))
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "TRAINING", training)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main(["--check"]) == 1
    assert "README.md is out of date" in capsys.readouterr().out
    assert report.main([]) == 0
    assert "| dense | 1.50 s |" in readme.read_text()
    assert training.read_text() == "b\n"
    assert report.main(["--check"]) == 0


@pytest.mark.skipif(not report.README.is_file(), reason="not a source checkout")
def test_pages_are_up_to_date():
    for path, text in report.pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run python -m contrastive_ops.benchmarks.report"
        )


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        row(name, seconds * n, 1.0, n=n)
        for name, seconds in (("contrastive-ops", 1e-6), ("PyTorch, dense", 3e-6))
        for n in (256, 512)
    ]
    rows.append({"case": row("x", 1, 1, n=1024)["case"], "variant": "absent", "unavailable": "no"})
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": rows, **FACTS}))
    target = plot.draw_sweep(tmp_path)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert target.stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json", "sweep.png"]
