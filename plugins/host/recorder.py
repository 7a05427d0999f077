"""What an operator would launch for given sizes: kernels, grids and blocks, noted by the host build without running anything.

No memory is read or written, so sizes may be as large as the kernels take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.ops.contract import Array
from tokenrt.plugins.host import kernels, symbols
from tokenrt.plugins.host.launches import KERNELS, TYPES

PLACE = 1 << 20
"""The address that stands for every tensor: it starts on 16 bytes and is never followed."""

Dims = tuple[int, int, int]


@dataclass(frozen=True)
class Start:
    """One launch. Units: blocks, threads, blocks of a cluster, bytes of dynamic shared memory."""

    kernel: str
    grid: Dims
    block: Dims
    cluster: int
    shared: int

    @property
    def blocks(self) -> int:
        return prod(self.grid)

    @property
    def threads(self) -> int:
        """Threads of one block."""
        return prod(self.block)


@dataclass(frozen=True)
class Job:
    """What one call of an operator launches, in order, and the bytes of workspace it takes."""

    launches: tuple[Start, ...]
    workspace: int

    @property
    def most_blocks(self) -> int:
        return max((start.blocks for start in self.launches), default=0)


def like(shape: Sequence[int], kind: Any = np.float32) -> Array:
    """Return an array of this shape that takes no memory. `kind`: a NumPy type, or the name of one, bfloat16 too."""
    if kind == "bfloat16":
        import ml_dtypes

        kind = ml_dtypes.bfloat16
    return np.broadcast_to(np.zeros((), kind), tuple(shape))


def recorded(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Job:
    """Return what operator `name` launches for these inputs, of which only shapes and types count (see `like`).

    Raises: UnsupportedError for an operator without a kernel, without a C++ compiler or a program that lists symbols,
    or for what the kernel refuses.
    """
    if name not in KERNELS:
        raise UnsupportedError(f"operator {name} has no CUDA kernel; kernels: {', '.join(KERNELS)}")
    launch = KERNELS[name](*inputs, **OPERATORS[name].settle(attributes))
    space = kernels.space(launch)
    tensors = [prod(array.shape) for array in launch.inputs] + [prod(shape) for shape, _ in launch.outputs]
    if launch.space is not None:
        tensors.append(space)
    places = [ctypes.c_void_p(PLACE if count else None) for count in tensors]
    library = kernels.library()
    library.host_record_begin()
    try:
        kind = TYPES.get(launch.inputs[0].dtype.name, 0)
        kernels.call(launch.name, kind, *places, *launch.numbers)
    finally:
        count = library.host_record_end()
    return Job(tuple(_start(library, i) for i in range(count)), space)


def _start(library: ctypes.CDLL, number: int) -> Start:
    held = (ctypes.c_ulonglong * 10)()
    library.host_recorded(number, held)
    place, *sizes, shared, known = (int(item) for item in held)
    if not known:
        raise UnsupportedError("the host build cannot say which kernel it launched: dladdr does not know it")
    x, y, z, wide, high, deep, cluster = sizes
    kernel = symbols.functions(Path(library._name))[place]
    return Start(kernel, (x, y, z), (wide, high, deep), cluster, shared)
