"""Embeddings in files: formats, resuming, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_encoder import make_texts

from contrastive_ops.search import embeddings as module
from contrastive_ops.search import encode_to, read_embeddings

TEXTS = make_texts(50, 0)


def whole(blocks):
    parts = blocks if isinstance(blocks, list) else [blocks]
    return torch.cat(
        [torch.as_tensor(part if torch.is_tensor(part) else np.array(part)) for part in parts]
    )


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_formats(encoder, tmp_path, name, dtype):
    path = tmp_path / "deep" / name
    encode_to(path, encoder, TEXTS, dtype=dtype, shard_rows=16, side="query")
    expected = encoder.encode_query(TEXTS, convert_to_tensor=True).to(getattr(torch, dtype))
    blocks, rows = read_embeddings(path)
    assert rows == 50
    assert torch.equal(whole(blocks), expected)
    assert sorted(p.name for p in path.parent.iterdir()) == [name]
    if name == "x.npy":
        assert isinstance(np.load(path, mmap_mode="r"), np.memmap)
    if name == "x.safetensors":
        assert torch.equal(load_file(path)["embeddings"], expected)
    if name == "shards":
        assert sorted(p.name for p in path.iterdir()) == [f"{i:012d}.npy" for i in (0, 16, 32, 48)]


def test_normalize(encoder, tmp_path):
    encode_to(tmp_path / "x.npy", encoder, TEXTS, normalize=True)
    norms = np.linalg.norm(np.load(tmp_path / "x.npy"), axis=1)
    assert norms == pytest.approx(np.ones(50), abs=1e-6)


def test_an_interrupted_run_goes_on(encoder, tmp_path, monkeypatch):
    encode_to(tmp_path / "unbroken.npy", encoder, TEXTS, shard_rows=10)
    path, seen, embed = tmp_path / "x.npy", [], module.embed

    def stops(model, texts, *args, **options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(texts)
        return embed(model, texts, *args, **options)

    monkeypatch.setattr(module, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_to(path, encoder, TEXTS, shard_rows=10)
    assert not path.exists()
    # What a kill in the midst of a shard leaves behind is no shard.
    (tmp_path / "x.npy.partial" / ".partial-1-000000000030.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match="partial run with shard_rows = 10"):
        encode_to(path, encoder, TEXTS, shard_rows=20)
    with pytest.raises(ValueError, match="partial run with sha256"):
        encode_to(path, encoder, TEXTS[::-1], shard_rows=10)
    rest = []
    monkeypatch.setattr(
        module, "embed", lambda model, texts, *a, **o: rest.extend(texts) or embed(model, texts, *a)
    )
    encode_to(path, encoder, TEXTS, shard_rows=10)
    assert rest == TEXTS[30:]
    assert path.read_bytes() == (tmp_path / "unbroken.npy").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unbroken.npy", "x.npy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "texts: got none"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"shard_rows": 0}, "shard_rows: got 0"),
    ],
)
def test_bad_settings(encoder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        encode_to(tmp_path / "x.npy", encoder, **{"texts": TEXTS, **options})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(encoder, tmp_path):
    encode_to(tmp_path / "shards", encoder, TEXTS, shard_rows=16)
    encode_to(tmp_path / "shards", encoder, TEXTS[:3])
    assert read_embeddings(tmp_path / "shards")[1] == 3
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"shards holds something else, notes\.txt"):
        encode_to(tmp_path / "shards", encoder, TEXTS)
    assert (tmp_path / "shards" / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_bad_files(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(3, dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 3)))
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    for name, message in {
        "none.npy": "no such file",
        "flat.npy": r"float32 of shape \(3,\)",
        "wide.npy": "float64 of shape",
        "text.npy": "no .npy file",
        "empty": "no shards",
        "two.safetensors": "expected embeddings",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_embeddings(tmp_path / name)
