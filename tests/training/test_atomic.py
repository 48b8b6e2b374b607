"""What is written appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from contrastive_ops.training.atomic import atomic_path, remove_partial, write_json

KILLED = """
import os, signal, sys, types
sys.modules["contrastive_ops"] = package = types.ModuleType("contrastive_ops")
package.__path__ = [sys.argv[2]]
from contrastive_ops.training.atomic import atomic_path
with atomic_path(sys.argv[1]) as scratch:
    scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_file_and_folder_replace_what_was_there(tmp_path):
    path = tmp_path / "deep" / "thing"
    for content in ("old", "new"):
        with atomic_path(path) as scratch:
            scratch.write_text(content)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    path.unlink()
    for content in ("old", "new"):
        with atomic_path(path) as scratch:
            scratch.mkdir()
            (scratch / content).touch()
    assert os.listdir(path) == ["new"]
    assert os.listdir(path.parent) == ["thing"]


def test_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_kill_leaves_the_old_one_and_a_scratch_that_can_be_told_apart(tmp_path):
    import contrastive_ops

    path = tmp_path / "file"
    path.write_text("whole")
    command = [sys.executable, "-c", KILLED, str(path), *contrastive_ops.__path__]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "whole"
    assert len(os.listdir(tmp_path)) == 2
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
