"""What a report says, what it reads, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fake_run import write_run
from torch.nn.functional import cosine_similarity

from contrastive_ops import cli
from contrastive_ops.report import Run, Space, compute_space, figures, write_report
from contrastive_ops.report.run import curve, lower_is_better

PICTURES = {
    "loss", "score", "scores", "path", "similarity", "space", "in-batch", "schedule", "time"
}  # fmt: skip


class Links(HTMLParser):
    """All that a page refers to, its scripts, and its text."""

    def __init__(self):
        super().__init__()
        self.references, self.tags, self.words = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


def parsed(folder):
    page = (folder / "report.html").read_text("utf-8")
    links = Links()
    links.feed(page)
    return page, links, " ".join(" ".join(links.words).split())


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_page_needs_nothing_else(finished):
    page, links, _ = parsed(finished)
    assert links.references
    assert all(ref.startswith(("data:image/png;base64,", "#")) for ref in links.references)
    assert not links.tags & {"script", "link", "iframe", "img"}
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    # A name inside a picture refers to that picture.
    names = re.findall(r'\bid="([^"]+)"', page)
    targets = set(re.findall(r"url\(#([^)]+)\)", page))
    targets |= {ref[1:] for ref in links.references if ref.startswith("#")}
    assert targets <= set(names)
    assert all(names.count(name) == 1 for name in targets)


def test_pictures(finished):
    made = {path.stem: path.read_bytes() for path in (finished / "plots").iterdir()}
    assert set(made) == PICTURES
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in made.values())
    _, _, text = parsed(finished)
    for title in ("Training loss", "sts-dev spearman", "squad nDCG@10", "Temperature", "step 300",
                  "gold score 4–5", "Before training", "Rank of the positive"):  # fmt: skip
        assert title in text
    assert plt.get_fignums() == []


def test_numbers(finished):
    _, _, text = parsed(finished)
    evaluations, log = lines(finished, "evaluation.jsonl"), lines(finished, "log.jsonl")
    best = max(evaluations, key=lambda e: e["sts-dev_spearman"])
    assert f"{best['sts-dev_spearman']:.4f} best sts-dev spearman, at step {best['step']}" in text
    assert f"{evaluations[0]['sts-dev_spearman']:.4f} untrained" in text
    assert f"{statistics.mean(e['loss'] for e in log[-15:]):.3f} training loss at the end" in text
    seconds = 300 * (0.0712 + 0.0152 + 0.0043)
    assert f"{seconds:.1f} s training 300 steps of 90.7 ms" in text
    assert "16.8% of the time in the loss" in text
    assert "encoder · 71.2 ms · 78.5%" in text
    closest = min(e["alignment"] for e in evaluations)
    assert re.search(rf"alignment lower \S+ {closest:.4f}", text)
    assert (
        "To repeat it contrastive-ops train static --data nli/triplets.tsv --output static" in text
    )
    assert "torch 2.13.0" in text
    assert "<b>5 & 6</b>" in text  # the configuration is text, not markup
    assert "trainer.learning_rate 0.02" in text
    assert "guide" not in text  # it is not set
    assert "1 March 2026, 09:05" in text
    assert "not finished" not in text


def test_the_same_run_gives_the_same_page(finished):
    page = (finished / "report.html").read_bytes()
    write_report(finished)
    assert (finished / "report.html").read_bytes() == page


def test_seeds(seeds):
    _, _, text = parsed(seeds)
    best = [max(e["sts-dev_spearman"] for e in lines(path, "evaluation.jsonl"))
            for path in sorted(seeds.glob("seed-*"))]  # fmt: skip
    assert f"{statistics.mean(best):.4f} ± {statistics.stdev(best):.4f}" in text
    assert "seeds 0, 1, 2" in text
    assert "bands one standard deviation" in text
    found = curve([Run.read(path) for path in sorted(seeds.glob("seed-*"))], "loss")
    losses = np.array([[e["loss"] for e in lines(path, "log.jsonl")]
                       for path in sorted(seeds.glob("seed-*"))])  # fmt: skip
    np.testing.assert_allclose(found.mean, losses.mean(0))
    np.testing.assert_allclose(found.spread, losses.std(0, ddof=1))


def test_a_run_that_has_just_begun(tmp_path, dev):
    write_run(tmp_path / "run", dev, steps=1)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    del facts["finished"]
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    (tmp_path / "run/evaluation.jsonl").unlink()
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    _, _, text = parsed(tmp_path / "run")
    assert "not finished" in text
    assert "Training loss" in text
    assert "All scores" not in text


def test_a_run_of_which_only_the_recipe_is_known(tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": "static"}')
    write_report(tmp_path)
    assert "static" in parsed(tmp_path)[2]
    assert not (tmp_path / "plots").exists()


def test_a_development_table_that_is_gone(encoder, tmp_path):
    write_run(tmp_path, tmp_path / "gone.tsv", steps=2, model=encoder)
    with pytest.warns(RuntimeWarning, match=r"no pictures of the space: .*gone\.tsv: no such file"):
        write_report(tmp_path)
    assert "Training loss" in parsed(tmp_path)[2]


def test_what_was_logged_twice_or_half(tmp_path, dev):
    write_run(tmp_path, dev, steps=5)
    path = tmp_path / "log.jsonl"
    first = lines(tmp_path, "log.jsonl")
    # Killed after step 5 and resumed from the checkpoint of step 2; the last line is cut off.
    again = [{**entry, "loss": -1.0} for entry in first[2:4]]
    cut = json.dumps(first[4])[:20]
    path.write_text("\n".join(map(json.dumps, [*first, *again])) + "\n" + cut)
    run = Run.read(tmp_path)
    assert [entry["step"] for entry in run.log] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in run.log[2:]] == [-1.0, -1.0]
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2"):
        Run.read(tmp_path)


def test_no_run(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_seconds_count_the_steps_between_lines(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    entries = [{"step": s, "seconds": {"encoder": 1.0, "loss": 0.5}} for s in (10, 20, 25)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert Run.read(tmp_path).seconds == {"encoder": 25.0, "loss": 12.5}


@pytest.mark.parametrize(
    ("score", "lower"),
    [
        ("sts-dev_spearman", False),
        ("alignment", True),
        ("x_uniformity", True),
        ("ndcg@10", False),
        ("effective_rank", False),
    ],
)
def test_which_way_is_better(score, lower):
    assert lower_is_better(score) is lower


def test_space_of_pairs_with_scores(encoder, dev, tmp_path):
    space = compute_space(encoder, str(dev))
    assert list(space.groups) == ["0–1", "1–2", "2–3", "3–4", "4–5"]
    rows = [line.split("\t") for line in dev.read_text().splitlines()[1:]]
    x, y = (encoder.encode([row[i] for row in rows], convert_to_tensor=True) for i in (1, 2))
    expected = cosine_similarity(x, y)
    torch.testing.assert_close(torch.tensor(space.similarity), expected)
    gold = np.array([float(row[0]) for row in rows])
    np.testing.assert_array_equal(space.group, np.minimum(gold, 4).astype(int))
    assert space.points.shape == (480, 2)
    # The points are the projection with the largest variance.
    unit = torch.nn.functional.normalize(torch.cat([x, y]), dim=1).double()
    variance = torch.linalg.eigvalsh(torch.cov(unit.T, correction=0)).flip(0)
    np.testing.assert_allclose(space.points.var(0), variance[:2], rtol=1e-4)
    share = variance / variance.sum()
    np.testing.assert_allclose(space.explained, share[: len(space.explained)], rtol=1e-4)
    assert set(space.link_group) == {0, 4}
    for (a, b), group in zip(space.links, space.link_group, strict=True):
        assert b == a + 240
        assert space.group[a] == group
    space.save(tmp_path / "space.npz")
    for name, value in vars(Space.load(tmp_path / "space.npz")).items():
        np.testing.assert_array_equal(value, getattr(space, name))


def test_space_of_labels_and_of_pairs(encoder, tmp_path):
    from small_encoder import make_texts

    texts = make_texts(40, 0)
    labels = ["ab"[i % 2] for i in range(40)]
    rows = "\n".join(f"{a}\t{b}" for a, b in zip(labels, texts, strict=True))
    (tmp_path / "labels.tsv").write_text(f"intent\ttext\n{rows}")
    space = compute_space(encoder, str(tmp_path / "labels.tsv"))
    assert list(space.groups) == ["two labels", "one label"]
    assert list(space.classes[space.class_of]) == labels
    assert (space.group == 1).sum() == 38
    named = compute_space(encoder, f"{tmp_path / 'labels.tsv'}:text,intent")
    np.testing.assert_array_equal(named.points, space.points)
    rows = "\n".join(f"{a}\t{a}" for a in texts)
    (tmp_path / "pairs.tsv").write_text(f"question\tanswer\n{rows}")
    space = compute_space(encoder, str(tmp_path / "pairs.tsv"))
    assert space.similarity[space.group == 1] == pytest.approx(np.ones(40), abs=1e-6)
    assert space.similarity[space.group == 0].max() < 0.99


def test_pictures_of_the_space_of_a_collapsed_model(encoder, dev):
    space = compute_space(encoder, str(dev))
    for components in (0, 1):
        collapsed = replace(space, explained=space.explained[:components], points=0 * space.points)
        figure = figures.plot_space({"after training": collapsed})
        assert figure.axes[0].get_ylabel() == "second component, 0.0%"
        shown = figure.axes[1].yaxis.get_major_formatter()
        assert [shown(share) for share in (1, 0.1, 0.02, 1e-7)] == ["100%", "10%", "2%", "0.00001%"]
        plt.close(figure)


def test_space_of_a_dataset_is_that_of_its_development_split(encoder, tmp_path):
    from datasets import Dataset, DatasetDict
    from small_encoder import make_texts

    splits = {
        name: Dataset.from_dict({"anchor": make_texts(9, seed), "positive": make_texts(9, seed)})
        for seed, name in enumerate(("train", "validation", "test"))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "set")
    found = compute_space(encoder, str(tmp_path / "set"))
    named = compute_space(encoder, f"{tmp_path / 'set'}@validation")
    np.testing.assert_array_equal(found.points, named.points)
