"""Builds the package, and its C++ kernels where that is possible.

Everything static is in pyproject.toml. Here: the folders that install under another name, and the
optional extension ``contrastive_ops._C``. No torch, no compiler or a failed compilation make a
pure-Python install, never a failed one; ``contrastive_ops/_build.json`` records what happened, for
`contrastive-ops info` and for the loader, which must not load a library built for another torch.

The CUDA kernels, ``contrastive_ops/_cuda.so``, are a plain library that nvcc builds besides where
torch has CUDA and nvcc is there; no install ever depends on them either.

Environment:
  CONTRASTIVE_OPS_NO_EXTENSION=1       skip the extension
  CONTRASTIVE_OPS_REQUIRE_EXTENSION=1  fail if the extension cannot be built
  CONTRASTIVE_OPS_SANITIZE=...         build with -fsanitize=..., e.g. address,undefined or thread
  CONTRASTIVE_OPS_NO_CUDA=1            skip the CUDA kernels
  TORCH_CUDA_ARCH_LIST="8.0;9.0a"      GPUs to build for; by default 8.0, 9.0a and 10.0
  CUDA_HOME                            where the CUDA toolkit is
  CXX, CFLAGS, MAX_JOBS                as everywhere
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

BINDING = "csrc/binding.cpp"
SOURCES = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
HEADERS = sorted(glob("csrc/*.h") + glob("csrc/cpu/*.h"))
CUDA = "csrc/cuda/selection.cu"
CUDA_SOURCES = sorted(glob("csrc/cuda/*"))
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
    cuda = CUDA_STATE or {"built": False, "reason": REASON or "not tried"}
    record = {"built": built, "reason": reason, "sanitize": SANITIZE or None, **facts, "cuda": cuda}
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


# ---- the CUDA kernels


def find_nvcc() -> str | None:
    """CUDA_HOME's, the path's, or the one in the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    for candidate in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate)
        if found:
            return found
    return None


def toolkit_version(nvcc: str) -> str:
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", told)
    return found[1] if found else "unknown"


def architecture_flags(wanted: str) -> list[str]:
    """-gencode flags from a list as torch has it: "8.0 9.0a;10.0+PTX". Chips before Ampere, which
    lack what the kernels need, are passed over."""
    flags = []
    for entry in re.split(r"[;,\s]+", wanted.strip(" ;,")):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not found:
            raise RuntimeError(f"TORCH_CUDA_ARCH_LIST: got {entry!r}, expected e.g. 8.0, 9.0a")
        number, kind = found[1] + found[2], found[3]
        if int(number) < 80:
            continue
        if number == "90":
            kind = "a"  # wgmma is in that set alone; other chips than 9.0 run neither
        flags.append(f"-gencode=arch=compute_{number}{kind},code=sm_{number}{kind}")
        if found[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not flags:
        raise RuntimeError(f"TORCH_CUDA_ARCH_LIST: got {wanted!r}, the kernels need 8.0 or newer")
    return flags


def build_cuda(folders: list[str | Path]) -> dict[str, Any]:
    """Compiles the CUDA kernels into the folders; returns what to write down of it."""
    for folder in folders:
        Path(folder, "contrastive_ops", "_cuda.so").unlink(missing_ok=True)
    try:
        return compile_cuda(folders)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        print(f"contrastive-ops: no CUDA kernels: {reason}", file=sys.stderr)
        return {"built": False, "reason": reason}


def compile_cuda(folders: list[str | Path]) -> dict[str, Any]:
    import torch

    if flag("CONTRASTIVE_OPS_NO_CUDA"):
        raise RuntimeError("skipped by CONTRASTIVE_OPS_NO_CUDA")
    if SANITIZE:
        raise RuntimeError("the sanitizers are for the C++ kernels")
    if not torch.version.cuda:
        raise RuntimeError(f"torch {torch.__version__} has no CUDA")
    if not Path(CUDA).is_file():
        raise RuntimeError(f"{CUDA} is missing from the sources")
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(f"no nvcc was found; CUDA {torch.version.cuda}'s toolkit has it")
    version = toolkit_version(nvcc)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise RuntimeError(f"nvcc is of CUDA {version}, torch of {torch.version.cuda}")
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or default_architectures(version)
    command = [nvcc, "-std=c++17", "-O3", "--threads", "0", "-cudart", "static", "-shared"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", *architecture_flags(wanted), CUDA]
    built = Path("build", "cuda", "_cuda.so")
    stamp = built.with_suffix(".command")
    newest = max(Path(source).stat().st_mtime for source in CUDA_SOURCES)
    recent = built.is_file() and stamp.is_file() and built.stat().st_mtime > newest
    if not recent or stamp.read_text() != " ".join([*command, version]):
        built.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed: {done.stderr or done.stdout}")
        stamp.write_text(" ".join([*command, version]))
    for folder in folders:
        target = Path(folder, "contrastive_ops", "_cuda.so")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target.with_suffix(".partial"))
        os.replace(target.with_suffix(".partial"), target)
    return {"built": True, "cuda": version, "architectures": wanted}


def default_architectures(version: str) -> str:
    """Ampere, Hopper with its own instructions, and Blackwell where the toolkit knows it."""
    known = tuple(int(part) for part in version.split("."))
    return "8.0;9.0a;10.0" if known >= (12, 8) else "8.0;9.0a"


CUDA_STATE: dict[str, Any] = {}


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
            CUDA_STATE.update(build_cuda(folders))
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
