"""Files and folders that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a scratch path beside `path` to write to; move it into place when the block succeeds.

    The scratch may become a file or a folder. What was at `path` is replaced; if the block raises,
    it stays as it was and the scratch is removed. A folder that is replaced is absent for the
    moment between two renames, never half-filled.

    Args:
        path: where the finished file or folder shall be; its parent is made if missing.

    Yields:
        A path on the same file system that does not exist yet and keeps the suffix of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{_PARTIAL}-{os.getpid()}-{path.name}")
    try:
        yield scratch
        if scratch.is_dir() and path.exists():
            old = scratch.with_name(f"{scratch.name}-old")
            os.replace(path, old)
            os.replace(scratch, path)
            remove(old)
        else:
            os.replace(scratch, path)
    finally:
        remove(scratch)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file or a whole folder; nothing to remove is no error."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed process left unfinished in `folder`."""
    for path in Path(folder).glob(f"{_PARTIAL}-*"):
        remove(path)
