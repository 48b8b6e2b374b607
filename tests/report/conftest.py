"""A run with its report; it needs the extra `train`."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if any(find_spec(name) is None for name in ("sentence_transformers", "matplotlib", "jinja2")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def encoder():
    from small_encoder import make_encoder

    return make_encoder()


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    """Pairs of which the closer share more words."""
    from small_encoder import make_texts

    path = tmp_path_factory.mktemp("dev") / "dev.tsv"
    rows = ["score\tsentence1\tsentence2"]
    for score, a, b in zip(
        [0, 1, 2, 3, 4, 5] * 40, make_texts(240, 0), make_texts(240, 1), strict=True
    ):
        rows.append(f"{score}\t{a}\t{' '.join([*a.split()[:score], *b.split()[score:]])}")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="session")
def finished(encoder, dev, tmp_path_factory):
    from fake_run import write_run

    from contrastive_ops.report import compute_space, write_report

    folder = tmp_path_factory.mktemp("runs") / "static"
    write_run(folder, dev, model=encoder)
    compute_space(encoder, str(dev)).save(folder / "space-before.npz")
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def seeds(encoder, dev, tmp_path_factory):
    from fake_run import write_run

    from contrastive_ops.report import write_report

    folder = tmp_path_factory.mktemp("runs") / "seeds"
    for seed in range(3):
        write_run(
            folder / f"seed-{seed}",
            dev,
            seed=seed,
            steps=40,
            model=None if seed else encoder,
            seconds={"encoder": 1.2, "loss": 0.02, "data": 0.003},
        )
    write_report(folder)
    return folder
