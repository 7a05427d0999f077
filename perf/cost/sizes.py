"""What the tables of launches share: the sizes of a call, tiles of products, and passes of a block over a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

from tokenrt.perf.cost.chip import Chip, constant

SINGLE, INDEX = 4, 8
"""Bytes of a score or a size (float32) and of an index (int64)."""

SLICE = 64
"""Bytes of a row that a tile loads at a time (tile.cuh)."""

MMA_SLICE = 128
"""The same where tensor cores multiply (stream.cuh)."""


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    shapes: of its inputs; attributes: as of the ONNX node; item: bytes of an element of what keeps its own type, 2 or 4. chip:
    the GPU, where launches are to be those that it takes; else they are those that every GPU takes.
    """

    shapes: Sequence[Sequence[int]]
    attributes: Mapping[str, Any]
    item: int = 2
    chip: Chip | None = None

    def size(self, name: str) -> int:
        """An attribute that sets a size, a list of one number on a node."""
        value = self.attributes[name]
        return int(value if isinstance(value, int) else value[0])

    @property
    def data(self) -> float:
        """Bytes of the first input."""
        return prod(self.shapes[0]) * self.item


def over(count: int, each: int) -> int:
    """How many groups of `each` hold `count`."""
    return -(-count // each)


def tile_cycles(width: int, item: int, threads: int, *, distances: bool = False) -> float:
    """Cycles of one tile of products, or of distances, of rows of `width` elements.

    A slice of the rows is on its way while the one before is multiplied.
    """
    step = constant("distance_cycles" if distances else "dot_cycles") * over(threads, 128)
    slices, computing = over(width * item, SLICE), SLICE / item * step
    return constant("slice_cycles") + slices * (
        max(constant("slice_cycles"), computing) + constant("barrier_cycles")
    )


def mma_cycles(width: int, item: int, tile: int) -> float:
    """Cycles of one tile of products on tensor cores, of rows of `width` elements: stream.cuh.

    Two slices of a small tile are on their way while one is multiplied, one of a large tile, of which two warps share a
    scheduler.
    """
    slices = over(width * item, MMA_SLICE)
    ahead, steps = (2, 4) if tile == 32 else (1, 8)
    each = max(constant("slice_cycles") / ahead, steps * constant("mma_step_cycles"))
    return constant("slice_cycles") + slices * (each + constant("barrier_cycles") / 2)


def pass_cycles(tokens: int, threads: int) -> float:
    """Cycles of one pass of a block over a number for each token."""
    return constant("pass_cycles") + constant("step_cycles") * over(tokens, threads)


SORT_LONG, SORT_MOST = 256, 4096
"""Keys above which a block sorts with 512 threads instead of 128, and above which it does not sort (sort.cuh)."""


def sort_threads(count: int) -> int:
    """Threads of a block that sorts."""
    return 512 if count > SORT_LONG else 128


def sort_cycles(count: int, threads: int) -> float:
    """Cycles in which a block sorts keys in shared memory by a bitonic network."""
    rounds = max(ceil(log2(count)), 6)
    steps = rounds * (rounds + 1) / 2
    return constant("load_cycles") + steps * constant("sort_cycles") * over(2 ** (rounds - 1), threads)


def count_cycles(tokens: int) -> float:
    """Cycles in which each thread counts those of `tokens` keys, staged in shared memory, that come before its own."""
    return 2 * constant("load_cycles") + 6 * tokens
