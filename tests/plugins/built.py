"""What the tests of the plugin library build, once, into the cache: the library for a CPU and TensorRT's side of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenrt.plugins import library
from tokenrt.plugins.compiler import FLAGS, HERE, INCLUDES, cache, compiler
from tokenrt.plugins.headers import headers

DRIVER = Path(__file__).with_name("driver.cpp")
EXTRA = "TOKENRT_PLUGIN_FLAGS"
"""Environment variable with further flags for both, such as -fsanitize=address."""


def host_library() -> Path:
    """The plugin library compiled for the CPU: the same sources, over the host layer instead of CUDA."""
    return _shared(library.sources(), "plugins-host.so", "-fvisibility=hidden")


def driver() -> Path:
    """The calls of TensorRT that the tests make, as a C library."""
    return _shared((DRIVER,), "driver.so")


def stub(source: Path, name: str) -> Path:
    """Another small library of the tests."""
    return _shared((source,), name, f"-Wl,-soname,{name}", "-Wno-deprecated-declarations")


def _shared(sources: tuple[Path, ...], name: str, *more: str) -> Path:
    flags = ("-O1", "-g", "-fPIC", "-pthread", *FLAGS, *more, *os.environ.get(EXTRA, "").split())
    folders = {source.parent for source in sources} | {*INCLUDES, HERE / "common"}
    watched = [path for folder in folders for path in folder.iterdir()]
    key = hashlib.sha256("\0".join([compiler(), name, headers().version, *flags]).encode())
    for path in sorted({*sources, *(path for path in watched if path.suffix in {".h", ".cuh"})}):
        key.update(path.read_bytes())
    target = cache() / key.hexdigest()[:24] / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    includes = [*(f"-I{folder}" for folder in INCLUDES), "-isystem", str(headers().folder)]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def compiled(source: Path) -> str:
            made = f"{scratch}/{source.parent.name}_{source.stem}.o"
            _run([compiler(), *flags, *includes, "-x", "c++", "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        made = Path(scratch) / name
        _run([compiler(), *flags, "-shared", *objects, "-ldl", "-o", str(made)])
        made.replace(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    assert "warning" not in done.stderr, done.stderr[:4000]
