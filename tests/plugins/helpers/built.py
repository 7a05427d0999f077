"""What the tests of the plugin library build, once, into the cache: the library for a CPU and TensorRT's side of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tokenrt.plugins import library
from tokenrt.plugins.toolchain.compiler import linked
from tokenrt.plugins.toolchain.headers import headers

DRIVER = Path(__file__).with_name("driver.cpp")
EXTRA = "TOKENRT_PLUGIN_FLAGS"
"""Environment variable with further flags for both, such as -fsanitize=address."""


def host_library() -> Path:
    """The plugin library compiled for the CPU: the same sources, over the host layer instead of CUDA."""
    return _shared(library.sources(), "plugins-host.so", "-fvisibility=hidden")


def driver() -> Path:
    """The calls of TensorRT that the tests make, as a C library."""
    return _shared([DRIVER], "driver.so")


def stub(source: Path, name: str) -> Path:
    """Another small library of the tests."""
    return _shared([source], name, "-Wno-deprecated-declarations", libraries=[f"-Wl,-soname,{name}"])


def _shared(sources: Sequence[Path], name: str, *more: str, libraries: Sequence[str] = ()) -> Path:
    own = ("-O1", "-g1", "-pthread", "-Werror", f"-isystem{headers().folder}")
    flags = (*own, *more, *os.environ.get(EXTRA, "").split())
    return linked(sources, flags, name, [*libraries, "-ldl"])
