"""Finds the compiled library, or says why it cannot be used."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation . (in the sources' folder)"


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """The extension module and ``"ok"``, or None and the reason.

    The library is only loaded into the torch that it was built for: across versions torch's C++
    interface changes without notice.
    """
    record = Path(__file__).parent.parent / "_build.json"
    if not record.exists():
        return None, f"not built; to add it: {REBUILD}"
    build = json.loads(record.read_text())
    if not build.get("built"):
        reason = build.get("reason", "unknown reason")
        return None, f"not built ({reason}); to add it: {REBUILD}"
    built_for = build.get("torch")
    if built_for != torch.__version__:
        return None, f"built for torch {built_for}, running {torch.__version__}; run: {REBUILD}"
    try:
        return importlib.import_module("contrastive_ops._C"), "ok"
    except ImportError as error:
        return None, f"cannot be loaded ({error}); to rebuild it: {REBUILD}"
