"""Compile sources against the kernels, each once, into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tokenrt.errors import BuildError, UnsupportedError

HERE = Path(__file__).resolve().parents[1]
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

JOBS = os.cpu_count() or 1
"""Compilers that run at once."""

TEXTS = {".h", ".cuh", ".cpp", ".cu"}
INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)
FOLDER = re.compile(r"-(?:I|isystem=?)(.+)")
"""A flag that names a folder of headers; what a source reads there counts, not where it is."""

Made = TypeVar("Made")


def launchers() -> tuple[Path, ...]:
    """The launchers as C functions, a source an operator."""
    return tuple(sorted(HERE.glob("token_*/host.cpp")))


def recorder() -> Path:
    """What notes the launches of the host build in place of running them."""
    return HERE / "simt" / "recorder.cpp"


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
    return kept(_command(flags), [source], name)


def linked(sources: Sequence[Path], flags: Sequence[str], name: str, libraries: Sequence[str] = ()) -> Path:
    """Return a shared library for the CPU of these sources. Raises: as `compiled`."""
    command = _command((*flags, "-fPIC"))
    return together((*command, "-x", "c++", "-c"), (*command, "-shared"), sources, name, libraries)


def together(
    part: Sequence[str],
    whole: Sequence[str],
    sources: Sequence[Path],
    name: str,
    libraries: Sequence[str] = (),
) -> Path:
    """Return what `whole` makes of that which `part` makes of each source; the cache keeps all of these.

    Raises: BuildError when a source is refused.
    """
    objects = each(lambda source: kept(part, [source], "part.o"), sources)
    return kept(whole, objects, name, libraries)


def each(make: Callable[[Path], Made], sources: Sequence[Path]) -> list[Made]:
    """What `make` returns for each source, JOBS at a time; none is begun after one that was refused."""
    with ThreadPoolExecutor(JOBS) as pool:
        try:
            return list(pool.map(make, sources))
        except BuildError:
            pool.shutdown(cancel_futures=True)
            raise


def kept(command: Sequence[str], sources: Sequence[Path], name: str, libraries: Sequence[str] = ()) -> Path:
    """Return what `command` makes of the sources, made now unless the cache holds it; `<name>.log` has what it said.

    The key is everything the result depends on: the program and its version, the flags, the sources, and what they
    include from the folders that the command names.

    Raises: BuildError when the program cannot run or refuses a source, with what it said.
    """
    folder = shelf(_key((*command, *libraries), sources))
    target = folder / name
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, log = Path(scratch) / name, Path(scratch) / f"{name}.log"
        whole = [*command, *map(str, sources), *libraries, "-o", str(made)]
        done = _run(whole)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            told, what = "\n".join(said.splitlines()[:20]), ", ".join(map(label, sources))
            raise BuildError(f"{Path(command[0]).name} refused {what}: {' '.join(whole)}\n{told}")
        log.write_text(said, encoding="utf-8")
        log.replace(folder / log.name)
        made.replace(target)
    return target


def label(source: Path) -> str:
    """A source by folder and name: many of ours are called alike."""
    return f"{source.parent.name}/{source.name}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error}") from error


def _command(flags: Sequence[str]) -> tuple[str, ...]:
    return (compiler(), *FLAGS, *flags, *(f"-I{folder}" for folder in INCLUDES))


def _key(command: Sequence[str], sources: Sequence[Path]) -> str:
    version = _run([command[0], "--version"]).stdout
    folders = [Path(found[1]) for found in map(FOLDER.match, command) if found]
    flags = [flag for flag in command if not FOLDER.match(flag)]
    key = hashlib.sha256("\0".join([version, *flags]).encode())
    for path, text in _read(sources, folders).items():
        key.update(path.name.encode() + b"\0" + text + b"\0")
    return key.hexdigest()[:24]


def _read(sources: Sequence[Path], folders: Sequence[Path]) -> dict[Path, bytes]:
    """The sources, all that they include from the folders whatever the condition, and what each holds."""
    found: dict[Path, bytes] = {}
    waiting = [*reversed(sources)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = path.read_bytes()
        for name in INCLUDE.findall(found[path]) if path.suffix in TEXTS else ():
            places = (folder / os.fsdecode(name) for folder in (path.parent, *folders))
            waiting.extend([place for place in places if place.is_file()][:1])
    return found
