"""Loops of a graph: what a turn is made of, and how many turns there are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MOST = 16
"""Nodes between a Loop and the constant that says its turns, at the most."""


def body(node: ir.Node) -> ir.Graph | None:
    """What one turn of a Loop computes; None where the node is none."""
    return node.attributes["body"].as_graph() if node.op_type == "Loop" else None


def turns(node: ir.Node) -> int | None:
    """The turns of a Loop, where a constant or a difference of two says them."""
    found = _number(node.inputs[0], MOST)
    return None if found is None else max(found, 0)


def _number(value: ir.Value | None, left: int) -> int | None:
    if value is None or left == 0:
        return None
    held = ir.convenience.get_const_tensor(value)
    if held is not None:
        array = np.asarray(held.numpy())
        return int(array.reshape(-1)[0]) if array.size == 1 else None
    node = value.producer()
    if node is None:
        return None
    if node.op_type in ("Sub", "Add"):
        one, other = (_number(part, left - 1) for part in node.inputs)
        if one is None or other is None:
            return None
        return one - other if node.op_type == "Sub" else one + other
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"):
        return _number(node.inputs[0], left - 1)
    return None
