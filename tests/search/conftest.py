"""Search among texts needs the extra `train`."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if find_spec("sentence_transformers") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def encoder():
    from small_encoder import make_encoder

    return make_encoder()


@pytest.fixture(scope="session")
def model_folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    encoder.save_pretrained(str(folder), create_model_card=False)
    return str(folder)
