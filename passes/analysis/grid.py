"""The layout of the tokens: which cell of the picture, or of a clip's frames, each unprotected token comes from.

A value [B,C,h,w], [B,h,w,C], [B,C,t,h,w], [B,t,h,w,C] or [B*t,C,h,w] on the way to the first block may be
the grid. Its cells are numbered and the numbers sent along that way; only where they arrive in order is it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.stream import Layout
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.quantization import PAIR, parameter
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes, one_picture

Numbers = np.ndarray[Any, np.dtype[np.int32]]
Grid = tuple[int, ...]

SAME = frozenset("Add Cast Clip Div Dropout Identity Mul Relu Sub Sum".split()) | PAIR
"""Entry by entry: the numbers stay where they are."""
CHANNELS = frozenset("Gemm LayerNormalization MatMul RMSNormalization SimplifiedLayerNormalization".split())
"""Along the last axis only: all its entries have the same number."""
SHAPED = frozenset("Flatten Reshape Squeeze Unsqueeze".split())
LIMIT = 2**26
"""Entries a value may have to be followed; larger ones (512 frames of ViT-L) are left unknown."""


def grid(
    entry: ir.Value, axis: int, tokens: int, protected: Sequence[int], shapes: Shapes, images: int
) -> Grid | None:
    """The grid of the tokens of `entry`, or None where no value shows it, or two layouts of one do.

    images: what the shapes have for the batch.
    """
    way = _Way(shapes, images)
    values = [*way.back(entry)]
    for place in range(len(values) - 1, -1, -1):
        # The first value of that form: later ones may be the tokens themselves, cut into rows of any length.
        layouts = [*way.layouts(values[place], tokens - len(protected))]
        found = {layout for layout, cells in layouts if _in_order(way.forward(cells, place), axis, protected)}
        if layouts:
            return found.pop() if len(found) == 1 else None
    return None


def grid_of_rows(
    entry: ir.Value, held: Layout, tokens: int, protected: Sequence[int], shapes: Shapes, images: int
) -> Grid | None:
    """The grid of tokens that stand for a row each of several, (h, w) of places or (frames, 1, 1); None where none shows it.

    The cells of a value (frames, h, w) come to the entry so that along one axis places follow each other, along the other frames.
    """
    way = _Way(shapes, images)
    values = [*way.back(entry)]
    free = tokens - len(protected)
    for place in range(len(values) - 1, -1, -1):
        for layout, cells in way.layouts(values[place], free * held.across):
            numbers = way.forward(cells, place)
            if len(layout) != 3 or numbers is None or [*protected] != [*range(held.marks[0].offset)]:
                continue
            body = np.delete(numbers, range(held.lead), axis=held.marks[0].axis)
            behind = held.across // held.between
            first = body.reshape(-1, held.between, free, behind, held.channels // held.across)[0, ..., 0]
            found = first.transpose(1, 0, 2).reshape(free, -1)
            clip = np.arange(free * held.across).reshape(layout[0], -1)
            if np.array_equal(found, clip.T):
                return layout[1:]
            if np.array_equal(found, clip):
                return layout[0], 1, 1
    return None


def _in_order(numbers: Numbers | None, axis: int, protected: Sequence[int]) -> bool:
    """Whether the cells stand one behind the other along `axis`, the same in every channel."""
    if numbers is None:
        return False
    rows = np.delete(np.moveaxis(numbers, axis, 0), protected, axis=0)
    return bool((rows.reshape(len(rows), -1) == np.arange(len(rows))[:, None]).all())


@dataclass
class _Way:
    """The nodes between the values that may be the grid and the first block, the last one first."""

    shapes: Shapes
    images: int
    nodes: list[ir.Node] = field(default_factory=list)

    def dims(self, value: ir.Value) -> Dims:
        """Dims with one image in a dynamic batch."""
        return one_picture(self.shapes.of(value))

    def back(self, entry: ir.Value) -> Iterator[ir.Value]:
        """The values on the way, from `entry` up to where something else than a layout is computed."""
        value = entry
        while True:
            yield value
            node = value.producer()
            index = None if node is None else self._data(node)
            if node is None or index is None:
                return
            step = node.inputs[index]
            if step is None or not self.shapes.known(step) or prod(self.dims(step)) > LIMIT:
                return
            self.nodes.append(node)
            value = step

    def _data(self, node: ir.Node) -> int | None:
        """The input the tokens come through, or None where the way ends."""
        if node.op_type in SHAPED | CHANNELS | {"Transpose"}:
            return 0
        if node.op_type == "Slice":
            return 0 if all(v is not None and v.const_value is not None for v in node.inputs[1:]) else None
        if node.op_type == "Concat":
            return len(node.inputs) - 1
        live = [
            i
            for i, value in enumerate(node.inputs)
            if value is not None and depends_on_input(value) and not parameter(value)
        ]
        data = node.inputs[live[0]] if node.op_type in SAME and len(live) == 1 else None
        return live[0] if data is not None and self.dims(data) == self.dims(node.outputs[0]) else None

    def layouts(self, value: ir.Value, free: int) -> Iterator[tuple[Grid, Numbers]]:
        """The grids a value may be, each with its numbered cells."""
        dims = self.dims(value)
        images = 1 if self.images % BATCH == 0 else self.images
        if len(dims) not in (4, 5) or dims[0] % images:
            return
        frames = dims[0] // images
        for cells in (slice(2, None), slice(1, -1)):
            sizes = dims[cells]
            if min(sizes[-2:]) < 2 or frames * prod(sizes) != free or (frames > 1 and len(sizes) > 2):
                continue
            shape = [1] * len(dims)
            shape[cells] = list(sizes)
            shape[0] = frames
            numbers = np.arange(free, dtype=np.int32).reshape(shape)
            every = np.concatenate([numbers] * images) if images > 1 else numbers
            layout = (frames, *sizes) if frames > 1 else sizes[-2:] if sizes[0] == 1 else sizes
            yield layout, np.broadcast_to(every, dims)

    def forward(self, numbers: Numbers, place: int) -> Numbers | None:
        """The numbers behind the last `place` nodes; -1 where a Concat brings other tokens."""
        for node in reversed(self.nodes[:place]):
            goal = self.dims(node.outputs[0])
            if node.op_type == "Transpose":
                perm = node.attributes["perm"].value if "perm" in node.attributes else None
                numbers = numbers.transpose(perm)
            elif node.op_type in SHAPED:
                numbers = numbers.reshape(goal)
            elif node.op_type == "Slice":
                numbers = numbers[_slices(node, numbers.ndim)]
            elif node.op_type == "Concat":
                axis = node.attributes["axis"].value
                front = [*goal]
                front[axis] -= numbers.shape[axis]
                numbers = np.concatenate([np.full(front, -1, np.int32), numbers], axis=axis)
            elif node.op_type in CHANNELS:
                if not (numbers == numbers[..., :1]).all():
                    return None
                numbers = np.broadcast_to(numbers[..., :1], goal)
        return numbers


def _slices(node: ir.Node, rank: int) -> tuple[slice, ...]:
    """What a Slice takes of each axis."""
    given = [value.const_value.numpy().tolist() for value in node.inputs[1:] if value and value.const_value]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else list(range(rank))
    steps = given[3] if len(given) > 3 else [1] * rank
    taken = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        taken[axis] = slice(start, end, step)
    return tuple(taken)
