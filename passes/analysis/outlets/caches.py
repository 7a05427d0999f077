"""The key-value cache of a language model's prefill: outputs that hold the keys or values of one block for each token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from tokenrt.passes.analysis.structure import Block, Structure
from tokenrt.passes.graph.shapes import Shapes

LAYOUT = frozenset("Cast Expand Gather Identity Mul Reshape Slice Squeeze Transpose Unsqueeze".split())
"""Operators between what is cached and what attention reads: heads that are repeated, axes that are turned, a scale."""

Part = Literal["key", "value"]


@dataclass(frozen=True)
class Cache:
    """One output [B,H,N,D] with the keys, behind their rotation, or the values of a block."""

    output: ir.Value
    block: int
    part: Part
    axis: int


def caches(graph: ir.Graph, structure: Structure, shapes: Shapes) -> tuple[Cache, ...]:
    """The caches of a transformer, in the order of the outputs; found by what they are of, not by name."""
    found = []
    made = {value: (block, part) for block in structure.blocks for part, value in _read(block)}
    for output in graph.outputs:
        marks = structure.flow.marks.get(output, ())
        if output in made and len(marks) == 1 and marks[0].plain and len(shapes.of(output)) == 4:
            block, part = made[output]
            found.append(Cache(output, block.index, part, marks[0].axis))
    return tuple(found)


def windows(graph: ir.Graph, structure: Structure, shapes: Shapes) -> tuple[Cache, ...]:
    """Outputs that hold the last entries of a block's keys or values: as much as a window shows the next token."""
    found = []
    made = {value: (block, part) for block in structure.blocks for part, value in _read(block)}
    for output in graph.outputs:
        node = output.producer()
        if node is None or node.op_type != "Slice" or output in made or node.inputs[0] not in made:
            continue
        marks, bound = structure.flow.marks.get(node.inputs[0], ()), node.inputs[1]
        start = None if bound is None else bound.const_value
        if len(marks) != 1 or not marks[0].plain or start is None or start.size != 1:
            continue
        held = shapes.of(output)[marks[0].axis]
        if start.numpy().item() % structure.tokens == structure.tokens - held > 0:
            block, part = made[node.inputs[0]]
            found.append(Cache(output, block.index, part, marks[0].axis))
    return tuple(found)


def _read(block: Block) -> Iterator[tuple[Part, ir.Value]]:
    """What the keys and values of an attention are other layouts of."""
    reads: dict[Part, ir.Value] = {"key": block.core.key, "value": block.core.value}
    for part, value in reads.items():
        step: ir.Value | None = value
        while step is not None:
            yield part, step
            node = step.producer()
            step = node.inputs[0] if node is not None and node.op_type in LAYOUT else None
