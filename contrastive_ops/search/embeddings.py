"""Embeddings of many texts in files: written shard by shard, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize as unit

from ..evaluation.evaluator import Side, embed
from ..mining.corpus import Blocks
from ..training.atomic import atomic_path, remove, remove_partial, write_json

DTYPES = ("float32", "float16")
SHARD_ROWS = 8192
_NAME = "embeddings"
_SHARD = re.compile(r"\d{12}\.npy")


def encode_to(
    output: str | os.PathLike[str],
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    model_name: str = "",
    side: Side = "document",
    dtype: str = "float32",
    normalize: bool = False,
    batch_size: int = 64,
    shard_rows: int = SHARD_ROWS,
    progress: bool | None = None,
) -> None:
    """Write the embeddings of texts to a file that appears only when it is whole.

    Shards are kept in ``{output}.partial`` meanwhile; the same call goes on with those that are
    there, to the same bits.

    Args:
        output: a ``.npy``, a ``.safetensors`` (tensor ``embeddings``), or else a folder of shards
            ``000000000000.npy``, named by their first row; each can be memory-mapped.
        model: any SentenceTransformer.
        texts: N >= 1 of them; row i is that of text i.
        model_name: what tells one model from another when a run goes on.
        side: ``"document"``, ``"query"`` or ``"plain"``: which of the model's prompts.
        dtype: ``"float32"`` or ``"float16"``.
        normalize: whether rows are divided by their length.
        batch_size: texts at a time.
        shard_rows: rows that a killed run loses at most.
        progress: whether to show a bar; None: where there is a terminal.

    Raises:
        ValueError: no texts, a bad setting, a partial run of other texts or settings, or a folder
            that holds something else, which would be lost.
    """
    from tqdm import tqdm

    output = Path(output)
    if not texts:
        raise ValueError("texts: got none, expected at least one")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    for name, count in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if count < 1:
            raise ValueError(f"{name}: got {count}, expected an integer >= 1")
    kept = [p.name for p in output.glob("*") if not _SHARD.fullmatch(p.name)]
    if kept and output.is_dir():
        raise ValueError(f"output: {output} holds something else, {min(kept)}")
    folder = output.with_name(f"{output.name}.partial")
    settings = {
        "model": model_name,
        "side": side,
        "dtype": dtype,
        "normalize": normalize,
        "batch_size": batch_size,
        "shard_rows": shard_rows,
        "texts": len(texts),
        "sha256": _hash(texts),
    }
    _open(folder, settings)
    starts = range(0, len(texts), shard_rows)
    shards = [folder / f"{start:012d}.npy" for start in starts]
    with tqdm(
        total=len(texts),
        desc="encoding",
        unit="text",
        disable=None if progress is None else not progress,
        leave=False,
    ) as bar:
        for start, shard in zip(starts, shards, strict=True):
            part = texts[start : start + shard_rows]
            if not shard.exists():
                rows = embed(model, part, side, batch_size=batch_size)
                rows = unit(rows, dim=1) if normalize else rows
                with atomic_path(shard) as scratch:
                    np.save(scratch, rows.to(getattr(torch, dtype)).cpu().numpy())
            bar.update(len(part))
    _publish(shards, output)
    remove(folder)


def _open(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in settings if found.get(key) != settings[key]]
        if changed:
            listed = ", ".join(f"{key} = {found.get(key)!r}" for key in changed)
            raise ValueError(
                f"output: {folder} holds a partial run with {listed}; remove it, or choose another "
                "output"
            )
        remove_partial(folder)
    else:
        write_json(path, settings)


def _publish(shards: list[Path], output: Path) -> None:
    """The shards as one file, or as the folder of them."""
    with atomic_path(output) as scratch:
        if output.suffix not in (".npy", ".safetensors"):
            scratch.mkdir()
            for shard in shards:
                os.link(shard, scratch / shard.name)
            return
        parts = [np.load(shard, mmap_mode="r") for shard in shards]
        rows, width, dtype = sum(map(len, parts)), parts[0].shape[1], parts[0].dtype
        with open(scratch, "wb") as file:
            if output.suffix == ".npy":
                header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
            else:
                file.write(_safetensors_header(rows, width, dtype))
            for part in parts:
                part.tofile(file)


def _safetensors_header(rows: int, width: int, dtype: np.dtype[Any]) -> bytes:
    """Length and JSON before the data, so that no copy of all of it is made in memory."""
    facts = {
        "dtype": {"float32": "F32", "float16": "F16"}[dtype.name],
        "shape": [rows, width],
        "data_offsets": [0, rows * width * dtype.itemsize],
    }
    text = json.dumps({_NAME: facts}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_embeddings(path: str | os.PathLike[str]) -> tuple[Blocks, int]:
    """What :func:`encode_to` wrote, not yet in memory, and its number of rows.

    Returns:
        A memory map, a tensor, or a list of memory maps: what `topk_similarity` takes as a corpus.

    Raises:
        ValueError: no such file, or not a matrix of float16 or float32.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    parts: list[Any]
    if path.is_dir():
        parts = [np.load(shard, mmap_mode="r") for shard in sorted(path.glob("*.npy"))]
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if _NAME not in names and len(names) != 1:
                raise ValueError(f"{path}: got the tensors {', '.join(names)}, expected {_NAME}")
            parts = [file.get_tensor(_NAME if _NAME in names else names[0])]
    else:
        try:
            parts = [np.load(path, mmap_mode="r")]
        except ValueError as error:
            raise ValueError(f"{path}: no .npy file: {error}") from None
    for part in parts:
        kind = str(part.dtype).removeprefix("torch.")
        if part.ndim != 2 or kind not in DTYPES:
            raise ValueError(
                f"{path}: got {kind} of shape {tuple(part.shape)}, expected a matrix of float32 or "
                "float16"
            )
    if not parts:
        raise ValueError(f"{path}: got no shards")
    rows = sum(len(part) for part in parts)
    return (parts[0] if len(parts) == 1 else parts), rows


def dtype_of(embeddings: Blocks) -> torch.dtype:
    """Of what :func:`read_embeddings` gives."""
    first = embeddings[0] if isinstance(embeddings, list) else embeddings
    if isinstance(first, Tensor):
        return first.dtype
    found: torch.dtype = getattr(torch, str(first.dtype))  # type: ignore[union-attr]
    return found


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
