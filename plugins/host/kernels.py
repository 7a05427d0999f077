"""The operators run by their CUDA kernels, compiled for the CPU: the host build behind the backend plugin-host."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops.contract import Array
from tokenrt.plugins.host import symbols
from tokenrt.plugins.host.launches import KERNELS, TYPES, Launch
from tokenrt.plugins.toolchain.compiler import cache, compiler, launchers, linked, recorder

FLAGS = ("-O2", "-g1", "-pthread")
EXTRA_FLAGS = "TOKENRT_HOST_FLAGS"
"""Environment variable with further compiler flags, such as -fsanitize=address or -DSIMT_THREADS."""

ALIGNMENT = 16
FAULTS: Mapping[int, str] = MappingProxyType(
    {
        1: "a size is outside of what the kernels take (up to 16384 tokens, batch 1024, 256 heads; plugins/*/README.md "
        "says what each takes), or the numbers do not fit together",
        9: "a launch with more threads or shared memory than a GPU has",
        716: "a tensor does not start on an element of its own",
        801: "the kernels take float32, float16 and bfloat16 only",
    }
)
"""cudaError_t -> what it means here."""


def built(extra: Sequence[str] = ()) -> Path:
    """Return the host build, compiled unless the cache holds it; `extra` are further flags of the compiler.

    Raises: UnsupportedError without a C++ compiler; BuildError when it refuses a kernel.
    """
    return linked((*launchers(), recorder()), (*FLAGS, *extra), "host.so")


def library() -> ctypes.CDLL:
    """Return the host build, compiled on first use with what EXTRA_FLAGS adds. Raises: as `built`.

    Shared memory is full of 0xFF at the beginning of every block, as nobody's memory.
    """
    return _library(tuple(os.environ.get(EXTRA_FLAGS, "").split()), compiler(), cache())


@functools.cache
def _library(extra: tuple[str, ...], *_: object) -> ctypes.CDLL:
    path = built(extra)
    loaded = ctypes.CDLL(str(path))
    if not any(
        "address" in flag for flag in extra
    ):  # it has fences between variables, which must stay as they are
        found = symbols.shared(path)
        places, sizes = (
            (ctypes.c_ulonglong * max(1, len(found)))(*numbers)
            for numbers in ([place for place, _ in found], [size for _, size in found])
        )
        loaded.host_shared(len(found), places, sizes)
    return loaded


def aligned(shape: Sequence[int], kind: Any) -> Array:
    """Return an array of zeros that starts on 16 bytes, as device memory does; NumPy promises less."""
    kind = np.dtype(kind)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    whole = np.zeros(count + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    result: Array = whole[start : start + count].view(kind).reshape(tuple(shape))
    return result


def unwritten(shape: Sequence[int], kind: Any) -> Array:
    """Return an aligned array whose bytes are all 0xFF, as nobody's memory: NaN, and -1 for integers."""
    made = aligned(shape, kind)
    made.reshape(-1).view(np.uint8)[...] = 0xFF
    return made


def ready(array: Any, kind: Any = None) -> Array:
    """Return the array contiguous, aligned and of type `kind`; a copy only where it is not."""
    given = np.ascontiguousarray(array, kind)
    if given.ctypes.data % ALIGNMENT == 0:
        return given
    copy = aligned(given.shape, given.dtype)
    copy[...] = given
    return copy


@contextmanager
def backwards() -> Iterator[None]:
    """Run the blocks of every launch from the last to the first: a GPU runs them in any order."""
    library().host_backwards(1)
    try:
        yield
    finally:
        library().host_backwards(0)


@contextmanager
def gpu(capability: float, multiprocessors: int, cluster: int = 16) -> Iterator[None]:
    """Let launchers find a GPU, on which they may choose other launches; without one they take those of every GPU.

    cluster: the most blocks of a cluster that it starts, whatever its compute capability says.
    """
    library().host_device(round(10 * capability), multiprocessors, cluster)
    try:
        yield
    finally:
        library().host_device(0, 0, 0)


def call(name: str, *arguments: Any) -> None:
    """Call a launcher. Raises: UnsupportedError with what the error it returned means."""
    passed = [_passed(item) for item in arguments]
    _check(name, int(getattr(library(), f"host_{name}")(*passed)), arguments)


def _check(name: str, status: int, arguments: Sequence[Any]) -> None:
    if status:
        shapes = ", ".join(
            f"{item.dtype}{list(item.shape)}" for item in arguments if isinstance(item, np.ndarray)
        )
        reason = FAULTS.get(status, "an error without a name here")
        raise UnsupportedError(f"kernel {name} returned error {status}: {reason}; tensors: {shapes}")


def _passed(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return ctypes.c_void_p(item.ctypes.data if item.size else None)
    if isinstance(item, ctypes.c_void_p):
        return item
    return ctypes.c_float(item) if isinstance(item, float) else ctypes.c_int(int(item))


def run(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[Array, ...]:
    """Run operator `name` by its kernel.

    Raises: UnsupportedError for an operator without a kernel, without a C++ compiler, or for what the kernel refuses.
    """
    if name not in KERNELS:
        raise UnsupportedError(
            f"operator {name} has no CUDA kernel in this version; kernels: {', '.join(KERNELS)}; use "
            "backend='onnxruntime', which runs it as an ONNX function"
        )
    launch = KERNELS[name](*inputs, **attributes)
    given = [ready(array) for array in launch.inputs]
    made = tuple(unwritten(shape, kind) for shape, kind in launch.outputs)
    kind = TYPES.get(given[0].dtype.name, 0)
    call(launch.name, kind, *given, *made, *_workspace(launch), *launch.numbers)
    return made


def _workspace(launch: Launch) -> list[Array]:
    return [] if launch.space is None else [unwritten((space(launch),), np.uint8)]


def space(launch: Launch) -> int:
    """The bytes of workspace that a launch takes."""
    if launch.space is None:
        return 0
    count = getattr(library(), f"host_{launch.name}_workspace")
    count.restype = ctypes.c_size_t
    return int(count(*launch.space))
