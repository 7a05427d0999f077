"""Compile a source against the kernels, once, into the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenrt.errors import BuildError, UnsupportedError

HERE = Path(__file__).resolve().parent
INCLUDES = (HERE / "simt", HERE / "kernels")
# Vectors of 16 bytes are read through pointers to their elements' type and back, as CUDA code does.
FLAGS = (
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
)
COMPILERS = ("g++", "clang++", "c++")


def cache() -> Path:
    """The folder for what is built on this machine: TOKENRT_CACHE, else `tokenrt` in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("TOKENRT_CACHE")
    if own:
        return Path(own) / "plugins"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenrt" / "plugins"


def shelf(key: str) -> Path:
    """Return the cache's folder for what `key` names, made where it is not there. Raises: BuildError."""
    folder = cache() / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"cannot make the cache folder {folder}: {error}; set TOKENRT_CACHE to one"
        ) from error
    return folder


def compiler() -> str:
    """Return the C++ compiler: CXX, else the first of g++, clang++ and c++ on PATH.

    Raises: UnsupportedError where there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    missing = f"CXX={wanted} is not a program" if wanted else f"none of {', '.join(COMPILERS)} is on PATH"
    raise UnsupportedError(
        f"the host build of the kernels needs a C++17 compiler, and {missing}; install one (Debian: apt install "
        "g++) or use backend='onnxruntime', which runs the same operators as ONNX functions"
    )


def compiled(source: Path, flags: Sequence[str], name: str) -> Path:
    """Return the source compiled for the CPU, made now unless the cache holds it.

    Raises: UnsupportedError without a compiler; BuildError when it refuses the source, with what it said.
    """
    includes = [f"-I{folder}" for folder in INCLUDES]
    return kept((compiler(), *FLAGS, *flags, *includes), source, name)


def kept(command: Sequence[str], source: Path, name: str) -> Path:
    """Return what `command` makes of the source, made now unless the cache holds it; `<name>.log` has what it said.

    The key is everything the result depends on: the program and its version, the flags, the source and all headers.

    Raises: BuildError when the program refuses the source, with what it said.
    """
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join([version, *command]).encode())
    headers = sorted(
        path for folder in INCLUDES for path in folder.iterdir() if path.suffix in {".h", ".cuh"}
    )
    for path in (source, *headers):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = shelf(key.hexdigest()[:24])
    target = folder / name
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, log = Path(scratch) / name, Path(scratch) / f"{name}.log"
        whole = [*command, str(source), "-o", str(made)]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            told = "\n".join(said.splitlines()[:20])
            raise BuildError(f"the compiler refused {source.name}: {' '.join(whole)}\n{told}")
        log.write_text(said, encoding="utf-8")
        log.replace(folder / log.name)
        made.replace(target)
    return target
