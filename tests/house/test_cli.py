"""The command line: help, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import contrastive_ops
from contrastive_ops import cli, info


def command(monkeypatch, run, *, help_text="A command.", extra=None, configure=None):
    """Puts a command "probe" into the table that behaves as `run` does."""
    module = types.ModuleType("probe_command")
    module.HELP = help_text
    module.configure = configure or (lambda parser: None)
    module.run = run
    monkeypatch.setitem(sys.modules, "probe_command", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_command", "probe", extra))


def raiser(error):
    def run(args):
        raise error

    return run


def test_help_lists_every_command_without_importing_them():
    code = (
        "import sys; from contrastive_ops import cli; cli.main([]); "
        "print([m for m in sys.modules if m in {c.module for c in cli.COMMANDS.values()}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, entry in cli.COMMANDS.items():
        assert name in done.stdout
        assert entry.summary in done.stdout
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main([name, "--help"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    assert f"contrastive-ops {name}" in out
    assert len(out) > 300


def test_version(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["--version"])
    assert leave.value.code == 0
    assert capsys.readouterr().out == f"contrastive-ops {contrastive_ops.__version__}\n"


def test_version_is_the_same_everywhere():
    tomllib = pytest.importorskip("tomllib")
    root = Path(contrastive_ops.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not a source checkout")
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert contrastive_ops.__version__ == declared
    assert f"## [{declared}]" in (root / "CHANGELOG.md").read_text()


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["fly"])
    assert leave.value.code == 2
    assert "fly" in capsys.readouterr().err


def test_exit_code_is_the_commands(monkeypatch):
    command(monkeypatch, lambda args: 7)
    assert cli.main(["probe"]) == 7


def test_arguments_reach_the_command(monkeypatch):
    seen = []
    command(
        monkeypatch,
        lambda args: seen.append(args.number) or 0,
        configure=lambda parser: parser.add_argument("--number", type=int),
    )
    assert cli.main(["probe", "--number", "3"]) == 0
    assert seen == [3]


@pytest.mark.parametrize(
    "error", [ValueError("n: got 0,\n  expected 1"), OSError("n: got 0, expected 1")]
)
def test_bad_input_is_one_line(monkeypatch, capsys, error):
    command(monkeypatch, raiser(error))
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "contrastive-ops probe: error: n: got 0, expected 1\n"


def test_traceback_shows_the_error_itself(monkeypatch):
    command(monkeypatch, raiser(ValueError("deep")))
    with pytest.raises(ValueError, match="deep"):
        cli.main(["probe", "--traceback"])


def test_interrupt(monkeypatch, capsys):
    command(monkeypatch, raiser(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "contrastive-ops probe: interrupted\n"


def test_missing_extra_names_package_and_command(monkeypatch, capsys):
    missing = ModuleNotFoundError("No module named 'datasets.x'", name="datasets.x")
    command(monkeypatch, raiser(missing), extra="train")
    assert cli.main(["probe"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "'datasets'" in err
    assert "pip install 'contrastive-ops[train]'" in err


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (
            ModuleNotFoundError("No module named 'contrastive_ops.no'", name="contrastive_ops.no"),
            "train",
        ),
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), None),
    ],
    ids=["our own module", "no extra would help"],
)
def test_other_import_errors_are_not_hidden(monkeypatch, error, extra):
    command(monkeypatch, raiser(error), extra=extra)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["probe"])


def test_closed_pipe_is_quiet():
    script = f'"{sys.executable}" -m contrastive_ops.cli info | head -c 1'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "v"


def test_info_reports_every_backend(capsys):
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"] == contrastive_ops.backends()
    assert report["versions"]["contrastive-ops"] == contrastive_ops.__version__
    assert report["machine"]["cpu"]
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for name, state in contrastive_ops.backends().items():
        assert f"{name} " in text
        assert state in text


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "flags : fpu avx avx2 fma avx512f avx512_bf16 zzz",
            ["AVX", "FMA", "AVX2", "AVX-512", "AVX512-BF16"],
        ),
        ("Features : fp asimd sve", ["NEON", "SVE"]),
    ],
)
def test_instruction_sets(monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(info, "_cpuinfo", lambda: ["processor : 0", cpuinfo])
    assert info.instruction_sets() == expected


def test_build_record(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "__file__", str(tmp_path / "info.py"))
    monkeypatch.setattr(info, "_kernel_choice", dict)
    assert info.describe_build() == {"built": "no"}
    record = tmp_path / "_build.json"
    record.write_text('{"built": false, "reason": "no compiler"}')
    assert info.describe_build() == {"built": "no", "reason": "no compiler"}
    record.write_text('{"built": true, "torch": "2.13.0", "compiler": "g++ 12", "sanitize": null}')
    assert info.describe_build() == {"built": "yes", "for torch": "2.13.0", "with": "g++ 12"}
