"""Mine documented functions out of Python source files.

Every Python installation carries tens of thousands of short English descriptions of code: the
docstrings of the standard library and of the installed packages. Each function gives a *summary*
(the first sentence of its docstring), the *rest* of the docstring, its *code* and its *name*: four
views of one meaning, which is what contrastive learning asks for.

Sources are parsed with :mod:`ast` and never imported or executed.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import multiprocessing
import os
import re
import signal
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

#: The label that functions of the standard library carry in place of a package's name.
STANDARD_LIBRARY = "stdlib"

#: Packages that come with `pip install contrastive-ops[train]`, and are well documented. A fixed
#: list, so that two machines with the same versions mine the same corpus.
DEFAULT_PACKAGES = (
    STANDARD_LIBRARY,
    "accelerate",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "jinja2",
    "joblib",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "sympy",
    "torch",
    "transformers",
)

# Tests document little; vendored trees repeat other packages; `models` of transformers are a few
# files copied some four hundred times.
_SKIPPED_FOLDERS = frozenset(
    [
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "testing",
        "idlelib",
        "lib2to3",
        "externals",
        "_vendor",
        "vendor",
        "_vendored_packages",
    ]
)
_SKIPPED_PATHS = frozenset({"transformers/models"})

_MAX_REST = 1200
_MAX_CODE = 1600
_MAX_SUMMARY = 300
_SENTENCE_END = re.compile(r"(?<=[^.][.!?])\s+(?=[A-Z`*:])")
_SECTION_UNDERLINE = re.compile(r"^\s*[-=~^]{3,}\s*$", re.MULTILINE)
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class Function:
    """One documented function or method.

    Attributes:
        package: top-level package, or ``"stdlib"``.
        name: qualified name inside its module, such as ``"TextIOBase.readline"``.
        path: source file below the folder that holds the package, and line: ``"io.py:12"``.
        summary: first sentence of the docstring, on one line.
        rest: what follows the summary in the docstring, cut at 1200 characters; may be empty.
        code: signature and body without the docstring, cut at 1600 characters.
    """

    package: str
    name: str
    path: str
    summary: str
    rest: str
    code: str


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first sentence, on one line, and everything after it.

    Args:
        docstring: raw docstring; indentation is cleaned as `inspect.cleandoc` does.

    Returns:
        `(summary, rest)`, with reStructuredText roles and section underlines taken out of both.
    """
    text = _ROLE.sub(r"\1", inspect.cleandoc(docstring)).strip()
    text = _SECTION_UNDERLINE.sub("", text)
    paragraph, _, rest = text.partition("\n\n")
    sentence, *others = _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
    return sentence, "\n\n".join(part for part in (*others, rest.strip()) if part)


def _code_without_docstring(lines: Sequence[str], node: ast.FunctionDef) -> str:
    doc = node.body[0]
    last = node.end_lineno or node.lineno
    kept = [*lines[node.lineno - 1 : doc.lineno - 1], *lines[doc.end_lineno or doc.lineno : last]]
    return inspect.cleandoc("\n" + "\n".join(kept))[:_MAX_CODE]


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                # Nested functions have no name that anyone would search for.
                yield prefix + node.name, node  # type: ignore[misc]
            elif isinstance(node, ast.ClassDef):
                stack.append((f"{prefix}{node.name}.", node))
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                stack.append((prefix, node))


def mine_source(source: str, *, package: str, path: str) -> list[Function]:
    """Documented functions of one source text.

    Left out: special methods (``__repr__``), summaries of fewer than three words or more than 300
    characters, and text that is not ASCII English. Source that does not parse gives an empty list.

    Args:
        source: text of a Python module.
        package: label that each result carries.
        path: where the text came from; each result appends its line.
    """
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines = source.splitlines()
    found = []
    for name, node in _functions(tree):
        docstring = ast.get_docstring(node, clean=False)
        leaf = name.rsplit(".", 1)[-1]
        if not docstring or (leaf.startswith("__") and leaf.endswith("__")):
            continue
        summary, rest = split_docstring(docstring)
        if len(summary) > _MAX_SUMMARY or not summary.isascii() or summary.startswith(">>>"):
            continue
        if len(_WORD.findall(summary)) < 3:
            continue
        found.append(
            Function(
                package=package,
                name=name,
                path=f"{path}:{node.lineno}",
                summary=summary,
                rest=rest[:_MAX_REST],
                code=_code_without_docstring(lines, node),
            )
        )
    found.sort(key=lambda function: int(function.path.rsplit(":", 1)[1]))
    return found


def _mine_files(files: Sequence[tuple[str, str, str]]) -> list[Function]:
    found: list[Function] = []
    for package, path, absolute in files:
        try:
            source = Path(absolute).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found += mine_source(source, package=package, path=path)
    return found


def _walk(root: Path, top: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(top):
        relative = Path(folder).relative_to(root)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS and (relative / name).as_posix() not in _SKIPPED_PATHS
        )
        for name in sorted(files):
            if name.endswith(".py"):
                yield (relative / name).as_posix(), os.path.join(folder, name)


def _folders(package: str) -> list[Path]:
    """Where an import would find the package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def source_files(packages: Iterable[str]) -> list[tuple[str, str, str]]:
    """Python files of the named packages as `(package, path below its root, absolute path)`.

    What is not installed, or no package, is skipped. `"stdlib"` names the standard library.

    Raises:
        ValueError: none of the packages is installed.
    """
    packages = list(packages)
    paths = sysconfig.get_paths()
    found = []
    for package in packages:
        if package == STANDARD_LIBRARY:
            root = Path(paths["stdlib"])
            found += [(package, *file) for file in _walk(root, root)]
            continue
        for folder in _folders(package):
            found += [(package, *file) for file in _walk(folder.parent, folder)]
    if not found:
        raise ValueError(f"packages: none of {packages} is installed with Python sources")
    return found


def mine_functions(
    packages: Iterable[str] = DEFAULT_PACKAGES, *, workers: int | None = None, progress: bool = True
) -> list[Function]:
    """Documented functions of installed packages, in the order of their files.

    Args:
        packages: import names; `"stdlib"` is the standard library. Missing ones are skipped.
        workers: processes that parse (default: one per CPU that this process may use); 1 parses
            in this process.
        progress: show a progress bar.

    Raises:
        ValueError: none of the packages is installed, or `workers` is not positive.
    """
    packages = list(packages)
    files = source_files(packages)
    missing = sorted(set(packages) - {package for package, _, _ in files})
    if missing and progress:
        print(f"not installed as packages, left out: {', '.join(missing)}", flush=True)
    if workers is None:
        workers = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        workers = workers or 1
    if workers < 1:
        raise ValueError(f"workers: expected a positive integer, got {workers}")
    chunks = [files[start : start + 32] for start in range(0, len(files), 32)]
    found: list[Function] = []
    with tqdm(total=len(files), desc="mining docstrings", unit="file", disable=not progress) as bar:

        def collect(results: Iterable[list[Function]]) -> None:
            for chunk, functions in zip(chunks, results, strict=True):
                found.extend(functions)
                bar.set_postfix_str(f"{len(found):,} functions", refresh=False)
                bar.update(len(chunk))

        if workers == 1 or len(chunks) == 1:
            collect(map(_mine_files, chunks))
        else:
            # Spawned, not forked: the parent has the threads of its numerical libraries.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(
                min(workers, len(chunks)),
                mp_context=context,
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is this process's to handle
            )
            try:
                collect(pool.map(_mine_files, chunks))
            finally:
                pool.shutdown(cancel_futures=True)
    return found
