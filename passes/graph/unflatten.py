"""Take a softmax out of the matrix it was flattened to: what onnx.version_converter writes for files older than opset 13.

There a softmax ran over all axes from one on, so the converter flattens [B,H,N,N] to [B*H*N,N], and back behind it. Rows
stay rows on both ways, so a softmax over the last axis gives the same without them.
"""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.graph.model import substitute
from tokenrt.passes.graph.shapes import Shapes

FLATTENING = frozenset({"Flatten", "Reshape"})
OVER_ROWS = frozenset({"Softmax", "LogSoftmax"})


def unflatten(graph: ir.Graph, shapes: Shapes) -> None:
    """Let every such softmax read what was flattened, in place."""
    for node in [*graph]:
        back = _back(node, shapes)
        if back is None:
            continue
        data, value = node.inputs[0].producer().inputs[0], back.outputs[0]
        name = f"{node.outputs[0].name}_rows"
        new = ir.Value(name=name, type=value.type, shape=value.shape)
        rows = ir.Node("", node.op_type, [data], [ir.AttrInt64("axis", -1)], outputs=[new], name=name)
        graph.insert_before(node, rows)
        substitute(graph, value, new)


def _back(node: ir.Node, shapes: Shapes) -> ir.Node | None:
    """The Reshape that undoes the flattening before a softmax, where it does exactly that and nothing else reads between."""
    if node.op_type not in OVER_ROWS or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return None
    flattening, readers = node.inputs[0].producer(), [*node.outputs[0].uses()]
    if flattening is None or flattening.op_type not in FLATTENING or flattening.inputs[0] is None:
        return None
    if len(readers) != 1 or node.outputs[0].is_graph_output():
        return None
    back, place = readers[0]
    if back.op_type != "Reshape" or place != 0:
        return None
    data, flat, value = flattening.inputs[0], node.inputs[0], back.outputs[0]
    if not (shapes.known(data) and shapes.known(flat) and shapes.known(value)):
        return None
    rank = len(shapes.of(flat))
    axis = node.attributes["axis"].value if "axis" in node.attributes else -1
    same = shapes.of(data) == shapes.of(value) and shapes.of(data)[-1:] == shapes.of(flat)[-1:]
    return back if same and rank and axis % rank == rank - 1 else None
