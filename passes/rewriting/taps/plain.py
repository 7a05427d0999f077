"""The keys of an attention as they are before exporters turn and scale them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core, scalar
from tokenrt.passes.analysis.marks import Marks
from tokenrt.passes.graph.normal.builder import permutation
from tokenrt.passes.graph.shapes import Dims, Shapes


def plain_keys(
    core: Core, shapes: Shapes, every: Mapping[ir.Value, Marks]
) -> tuple[ir.Value, int, float] | None:
    """Keys as [B,H,N,D] (head axis 1) or [B,N,H,D] (head axis 2), the earliest form before transposes; None where there is none.

    The third result is the part of the scale that was passed on the way; the keys lack it. every: the marks of all tensors.
    """
    value, factor = core.key, 1.0
    dims = shapes.of(value)
    producer = value.producer()
    along, pictures = len(dims) - 2, 0
    while producer is not None and core.key_transposed:
        marks = every.get(value, ())
        plain = along == 3 and pictures == 0 and dims[3:] == (core.width,)
        if plain and len(marks) == 1 and marks[0].axis in (1, 2):
            return value, 3 - marks[0].axis, factor
        step = producer.inputs[0]
        if producer.op_type not in ("Transpose", "Reshape", "Mul") or step is None or not every.get(step):
            break
        if producer.op_type == "Mul":
            number = scalar(producer, 1)
            if number is None:
                break
            factor *= number
        earlier = _before(producer, along, dims, shapes.of(step))
        first = _first_before(producer, pictures, dims, shapes.of(step))
        if earlier is None or first is None:
            break
        along, pictures = earlier, first
        value, dims, producer = step, shapes.of(step), step.producer()
    return None


def _before(node: ir.Node, axis: int, after: Dims, dims: Dims) -> int | None:
    """The axis of the input that is this axis of the output of a Transpose, Reshape or Mul; None where a Reshape hides it.

    Heads may be as many as a head has channels, so the length alone does not tell the two apart.
    """
    if node.op_type == "Transpose":
        return permutation(node, len(after))[axis]
    behind = len(after) - axis
    if node.op_type == "Reshape" and after[axis:] != dims[len(dims) - behind :]:
        return None
    return len(dims) - behind


def _first_before(node: ir.Node, axis: int, after: Dims, dims: Dims) -> int | None:
    """The axis of the input that begins with the pictures, as this one of the output does; None where a Reshape hides it."""
    if node.op_type == "Reshape" and axis and after[: axis + 1] != dims[: axis + 1]:
        return None
    return permutation(node, len(after))[axis] if node.op_type == "Transpose" else axis
