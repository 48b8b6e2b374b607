"""Mining: what is found in sources, and what is left out."""

from __future__ import annotations

import sysconfig

import pytest

from contrastive_ops.training import docstrings
from contrastive_ops.training.docstrings import mine_functions, mine_source, split_docstring

SOURCE = '''
import os

def read_lines(path, *, limit=10):
    """Read a file line by line. Stops early
    at the limit.

    Parameters
    ----------
    path : see :func:`os.path.join`
    """
    with open(path) as stream:  # a comment
        return list(stream)[:limit]


class Reader:
    """A class is no function."""

    def __repr__(self):
        """Return a short description of it."""

    @property
    def name(self):
        """Name of the file that is read."""
        return self._name

    class Inner:
        async def close(self):
            """Close the reader and wait for it."""

    def short(self):
        """Too short."""

    def undocumented(self):
        def nested():
            """Nested functions have no public name."""


if os.name == "posix":
    def fork():
        """Split this process into two processes."""
        return os.fork()
'''


def test_functions_of_a_source():
    found = mine_source(SOURCE, package="demo", path="demo/io.py")
    assert [(f.name, f.path) for f in found] == [
        ("read_lines", "demo/io.py:4"),
        ("Reader.name", "demo/io.py:23"),
        ("Reader.Inner.close", "demo/io.py:28"),
        ("fork", "demo/io.py:40"),
    ]
    first = found[0]
    assert first.package == "demo"
    assert first.summary == "Read a file line by line."
    assert first.rest == "Stops early at the limit.\n\nParameters\n\npath : see os.path.join"
    assert first.code == (
        "def read_lines(path, *, limit=10):\n"
        "    with open(path) as stream:  # a comment\n"
        "        return list(stream)[:limit]"
    )


@pytest.mark.parametrize(
    ("docstring", "summary", "rest"),
    [
        ("One line", "One line", ""),
        ("First. Second one.", "First.", "Second one."),
        ("Over\n    two lines.\n\n    Rest\n", "Over two lines.", "Rest"),
        ("See e.g. this, and i.e. that.", "See e.g. this, and i.e. that.", ""),
        ("Like :class:`~a.b.C` and :meth:`run <x.run>`.", "Like a.b.C and run.", ""),
        ("", "", ""),
    ],
)
def test_split_docstring(docstring, summary, rest):
    assert split_docstring(docstring) == (summary, rest)


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n    '''Does not parse at all.'''",
        "def f():\n    '''>>> f() prints something here'''",
        "def f():\n    '''Gibt die Länge zurück, in Metern.'''",
        "def f():\n    '''" + "word " * 100 + "'''",
        "x = '''A string that documents nothing.'''",
        "def f():\n    '''null \0 byte in the source'''",
    ],
)
def test_left_out(source):
    assert mine_source(source, package="demo", path="x.py") == []


def test_long_texts_are_cut():
    source = (
        f'def f():\n    """Summary of three words.\n\n    {"rest " * 500}"""\n    {"x; " * 900}\n'
    )
    (found,) = mine_source(source, package="demo", path="x.py")
    assert len(found.rest) == 1200
    assert len(found.code) == 1600


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two packages in a folder that poses as site-packages; 70 modules, more than one chunk."""
    for package in ("alpha", "beta"):
        for number in range(35):
            module = tmp_path / package / f"module_{number:02}.py"
            module.parent.mkdir(exist_ok=True)
            module.write_text(
                f'def find_{number}(x):\n    """Find {package} number {number} in x."""\n'
            )
    for skipped in ("alpha/tests", "alpha/_vendor", "alpha/__pycache__"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "m.py").write_text('def f():\n    """Never to be mined here."""\n')
    (tmp_path / "alpha" / "latin.py").write_bytes(b'def f():\n    """Caf\xe9 is not UTF-8."""\n')
    monkeypatch.setattr(
        sysconfig,
        "get_paths",
        lambda: {"stdlib": str(tmp_path), "purelib": str(tmp_path), "platlib": str(tmp_path)},
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_what_is_left_out_is_named(installed, capsys):
    mine_functions(["beta", "absent", "alpha"], workers=1)
    assert "left out: absent\n" in capsys.readouterr().out


def test_packages_are_mined_in_order_by_any_number_of_workers(installed):
    one = mine_functions(["beta", "absent", "alpha"], workers=1, progress=False)
    assert [f.package for f in one] == ["beta"] * 35 + ["alpha"] * 35
    assert one[3].path == "beta/module_03.py:1"
    assert mine_functions(["beta", "absent", "alpha"], workers=2, progress=False) == one


def test_standard_library_is_mined_under_its_label(installed):
    found = mine_functions([docstrings.STANDARD_LIBRARY], workers=1, progress=False)
    assert {f.package for f in found} == {"stdlib"}
    assert len(found) == 70


def test_bad_input(installed):
    with pytest.raises(ValueError, match=r"packages: none of \['absent'\] is installed"):
        mine_functions(["absent"])
    with pytest.raises(ValueError, match="workers: expected a positive integer, got 0"):
        mine_functions(["alpha"], workers=0)
