"""Builds the package, and its C++ kernels where that is possible.

Everything static is in pyproject.toml. Here: the folders that install under another name, and the
optional extension ``contrastive_ops._C``. No torch, no compiler or a failed compilation make a
pure-Python install, never a failed one; ``contrastive_ops/_build.json`` records what happened, for
`contrastive-ops info` and for the loader, which must not load a library built for another torch.

Environment:
  CONTRASTIVE_OPS_NO_EXTENSION=1       skip the extension
  CONTRASTIVE_OPS_REQUIRE_EXTENSION=1  fail if the extension cannot be built
  CONTRASTIVE_OPS_SANITIZE=...         build with -fsanitize=..., e.g. address,undefined or thread
  CXX, CFLAGS, MAX_JOBS                as everywhere
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

BINDING = "csrc/binding.cpp"
SOURCES = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
HEADERS = sorted(glob("csrc/*.h") + glob("csrc/cpu/*.h"))
SANITIZE = os.environ.get("CONTRASTIVE_OPS_SANITIZE", "")


def flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def why_not() -> str | None:
    """The reason, known before compiling, why the extension cannot be built."""
    if flag("CONTRASTIVE_OPS_NO_EXTENSION"):
        return "skipped by CONTRASTIVE_OPS_NO_EXTENSION"
    if not sys.platform.startswith(("linux", "darwin")):
        return f"the C++ kernels are built on Linux and macOS only, this is {sys.platform}"
    if not Path(BINDING).is_file():
        return f"{BINDING} is missing from the sources"
    if importlib.util.find_spec("torch") is None:
        return "torch was not there when the package was built"
    return None


def compile_flags() -> list[str]:
    # No -march=native: instruction sets are chosen at run time, by function. No -ffast-math: the
    # kernels rely on infinities and NaN.
    flags = ["-std=c++20", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-ffp-contract=fast", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
    # GCC warns about its own intrinsics.
    flags += ["-Wno-maybe-uninitialized"]
    if SANITIZE:
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
        if "undefined" in SANITIZE:
            flags += ["-fno-sanitize-recover=undefined"]
    else:
        flags += ["-O3", "-g0"]
    if sys.platform.startswith("linux"):
        # Compiled with OpenMP but not linked to it: the symbols come from the runtime that torch
        # has loaded, so there is one thread pool and torch.set_num_threads governs it.
        flags += ["-fopenmp"]
    return flags


def write_record(folder: str | Path, built: bool, reason: str | None = None, **facts: str) -> None:
    """Writes _build.json, atomically."""
    record = {"built": built, "reason": reason, "sanitize": SANITIZE or None, **facts}
    target = Path(folder) / "contrastive_ops" / "_build.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, target)


def give_up(reason: str, folders: list[str | Path]) -> None:
    """Goes on without the extension, unless it was required."""
    if flag("CONTRASTIVE_OPS_REQUIRE_EXTENSION"):
        raise SystemExit(f"contrastive-ops: the C++ kernels were required, but: {reason}")
    for folder in folders:
        write_record(folder, built=False, reason=reason)
    print(
        f"contrastive-ops: installing without the C++ kernels: {reason}\n"
        "contrastive-ops: everything works through the torch backend; "
        "`contrastive-ops info` shows the state, `pip install -v` the compiler's messages.",
        file=sys.stderr,
    )


def output_folders(command: Command) -> list[str | Path]:
    """Where the package lies that this build makes: the build folder, the source tree, or both."""
    folders: list[str | Path] = []
    in_place = getattr(command, "inplace", False) or getattr(command, "editable_mode", False)
    if in_place:
        folders.append(".")
    if not getattr(command, "inplace", False):
        folders.append(command.build_lib)  # type: ignore[attr-defined]
    return folders


class BuildPython(build_py):
    """Copies the modules, and records why there is no extension when none will be tried."""

    def run(self) -> None:
        super().run()
        if REASON is not None:
            give_up(REASON, output_folders(self))


def find_tools() -> None:
    """Puts ninja on the path, and a compiler in place of one that Python names but is not here."""
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    named = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    if "CXX" not in os.environ and shutil.which(named) is None:
        for cxx, cc in (("g++", "gcc"), ("clang++", "clang"), ("c++", "cc")):
            if shutil.which(cxx):
                os.environ["CXX"] = cxx
                os.environ.setdefault("CC", cc)
                break


def kernel_builder() -> type[build_ext]:
    """The build command for the extension; torch is imported for it alone."""
    import torch
    from torch.utils import cpp_extension

    class BuildKernels(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # A stable place, so that ninja compiles only what changed, from one install to the
            # next; ninja also notices changed flags, which setuptools' own check would miss.
            kind = SANITIZE.replace(",", "-") or "release"
            tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}-{kind}"
            self.build_temp = str(Path("build", f"objects-{tag}"))
            self.force = True

        def run(self) -> None:
            find_tools()
            folders = output_folders(self)
            try:
                super().run()
            except Exception as error:
                self.extensions = []
                for folder in folders:
                    for stale in Path(folder, "contrastive_ops").glob("_C.*"):
                        if stale.suffix in (".so", ".pyd"):
                            stale.unlink()
                detail = " ".join(str(error).split())[:300]
                give_up(detail, folders)
                return
            for folder in folders:
                write_record(folder, built=True, torch=torch.__version__, compiler=self.described)

        def build_extensions(self) -> None:
            compiler = self.compiler.compiler_cxx[0]
            if shutil.which(compiler) is None:
                raise RuntimeError(f"no C++ compiler was found (looked for {compiler})")
            version = subprocess.run(
                [compiler, "--version"], capture_output=True, text=True, check=True
            )
            self.described = version.stdout.splitlines()[0]
            for extension in self.extensions:
                self.complete(extension)
            super().build_extensions()

        @staticmethod
        def complete(extension: Extension) -> None:
            """Adds torch's include folders and libraries, and the flags."""
            torch_extension = cpp_extension.CppExtension(extension.name, extension.sources)
            extension.include_dirs = ["csrc", *torch_extension.include_dirs]
            extension.library_dirs = torch_extension.library_dirs
            extension.libraries = torch_extension.libraries
            extension.language = "c++"
            extension.extra_compile_args = compile_flags()
            extension.extra_link_args = ["-pthread"]
            if SANITIZE:
                extension.extra_link_args.append(f"-fsanitize={SANITIZE}")

    return BuildKernels


REASON = why_not()
METADATA_ONLY = {"egg_info", "dist_info", "sdist", "clean"} & set(sys.argv)

packages = find_packages(include=["contrastive_ops", "contrastive_ops.*"])
commands: dict[str, type[Command]] = {"build_py": BuildPython}
if REASON is None and not METADATA_ONLY:
    commands["build_ext"] = kernel_builder()

setup(
    license="Apache-2.0",
    packages=[*packages, "contrastive_ops.kernels", "contrastive_ops.benchmarks"],
    package_dir={
        "contrastive_ops": "contrastive_ops",
        # The folder's bare name belongs to another distribution; as a subpackage it shadows none.
        "contrastive_ops.kernels": "kernels",
        "contrastive_ops.benchmarks": "benchmarks",
    },
    package_data={
        "contrastive_ops": ["py.typed"],
        "contrastive_ops.report": ["*.jinja"],
        "contrastive_ops.training.recipes": ["*.yaml"],
    },
    include_package_data=False,
    ext_modules=(
        [] if REASON else [Extension("contrastive_ops._C", sources=SOURCES, depends=HEADERS)]
    ),
    cmdclass=commands,
    zip_safe=False,
)
