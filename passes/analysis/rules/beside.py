"""Tokens of several streams put beside one another for one attention: queries, keys and values, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from tokenrt.passes.analysis.marks import Mark, Marks
from tokenrt.passes.graph.normal.chain import between_activations
from tokenrt.passes.graph.shapes import Shapes

BETWEEN = frozenset(
    "Add Cast Concat Expand Identity Mul Neg Reshape Slice Split Sub Transpose Unsqueeze".split()
) | {
    "RotaryEmbedding",
    "Squeeze",
}
"""What stands between a Concat of tokens and the attention that reads it: layout, rotary positions, a scale."""


def for_attention(node: ir.Node) -> bool:
    """Whether all that is made of a node's output are queries, keys or values: it ends in products of activations alone."""
    todo, seen, ends = [node.outputs[0]], set[ir.Value](), 0
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output():
            return False
        for reader, _ in value.uses():
            if reader.op_type == "Attention" or (reader.op_type == "MatMul" and between_activations(reader)):
                ends += 1
            elif reader.op_type in BETWEEN:
                todo.extend(reader.outputs)
            else:
                return False
    return ends > 0


def beside(node: ir.Node, marks: Sequence[Marks], shapes: Shapes) -> Mark | None:
    """The mark of one stream's tokens behind a Concat that puts others beside all of them; None where it does something else."""
    axis = node.attributes.get_int("axis", 0) % len(shapes.of(node.outputs[0]))
    found = [(place, mark) for place, each in enumerate(marks) for mark in each if mark.axis == axis]
    if len(found) != 1 or not found[0][1].plain or found[0][1].offset or found[0][1].joint:
        return None
    place, mark = found[0]
    sizes = [shapes.of(value)[axis] for value in node.inputs if value is not None]
    return replace(mark, offset=-sum(sizes[:place]), behind=sum(sizes[place + 1 :]))
