"""Explicit quantization: what of it is a weight, what of it is a parameter, and the numbers that codes stand for.

A weight is stored as codes of 8 bits or fewer and made floats again in the graph (a DequantizeLinear of a constant,
or a Cast and a Mul by its scale). To the analyses it is a constant like any other, but it stays in the graph as it
is: folded, it would take four times the room, and runtimes that look for the pairs around a product would find none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.functions import STANDARD
from tokenrt.passes.graph.shapes import Shapes

Array = np.ndarray[Any, np.dtype[Any]]

PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
DYNAMIC = "DynamicQuantizeLinear"
CODERS = frozenset({"QuantizeLinear", DYNAMIC})
"""Their first output holds codes of their first input."""

CODES = frozenset(
    kind
    for kind in ir.DataType
    if kind.name.startswith(("INT2", "INT4", "INT8", "UINT2", "UINT4", "UINT8", "FLOAT4", "FLOAT6", "FLOAT8"))
)
"""Types of 8 bits or fewer that weights are stored in."""

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE},
)
MOVED = frozenset(
    "Add Cast CastLike Concat Div Expand Flatten Gather Identity Mul Reshape Slice Split Squeeze Sub Transpose "
    "Unsqueeze".split()
)
"""What may stand between the codes of a weight and the product that reads it."""


def weights(graph: ir.Graph) -> dict[ir.Value, ir.Node]:
    """The values made of constants alone by way of codes, with their nodes, in graph order."""
    found: dict[ir.Value, ir.Node] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.domain not in STANDARD or not all(_fixed(value, found) for value in inputs):
            continue
        later = node.op_type in MOVED and any(value in found for value in inputs)
        if node.op_type in PAIR or later or _decodes(node):
            found.update((value, node) for value in node.outputs)
    return found


def hide(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the constants that codes are kept in or made of, so that nothing folds them; returns them by name.

    `attach` of `tokenrt.passes.graph.model` turns them back.
    """
    graph = model.graph
    read = {node.inputs[0] for node in weights(graph).values()}
    hidden: dict[str, ir.TensorProtocol] = {}
    for name, value in [*graph.initializers.items()]:
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or not (tensor.dtype in CODES or value in read):
            continue
        hidden[str(name)] = tensor
        value.shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
        value.type = ir.TensorType(tensor.dtype)
        del graph.initializers[name]
        value.const_value = None
        if value not in graph.inputs:
            graph.inputs.append(value)
    return hidden


def mark(graph: ir.Graph, shapes: Shapes) -> None:
    """Give every weight behind its codes the constant it is, made only when someone asks for the numbers."""
    for value, node in weights(graph).items():
        if shapes.known(value):
            value.const_value = ir.LazyTensor(
                partial(_tensor, value, node),
                dtype=shapes.types[str(value.name)],
                shape=ir.Shape(shapes.of(value)),
                cache=True,
                name=str(value.name),
            )


def decoded(value: ir.Value) -> ir.Value:
    """The floats that DynamicQuantizeLinear made the codes in `value` of, or else the value itself."""
    node = value.producer()
    if node is None or node.op_type != DYNAMIC or value is not node.outputs[0] or node.inputs[0] is None:
        return value
    return node.inputs[0]


def before(value: ir.Value, stop: ir.Value) -> ir.Value:
    """What stood there before it was quantized, and perhaps made floats again: the way up through such nodes, to `stop`."""
    while value is not stop:
        node = value.producer()
        if (
            node is None
            or node.op_type not in CODERS | PAIR
            or value is not node.outputs[0]
            or node.inputs[0] is None
            or value.const_value is not None
        ):
            break
        value = node.inputs[0]
    return value


def parameter(value: ir.Value) -> bool:
    """Whether a value is a scale or a zero point that was computed of a whole tensor, or a product of such with constants."""
    node = value.producer()
    if value.const_value is not None or node is None:
        return False
    if node.op_type == DYNAMIC:
        return value is not node.outputs[0]
    if node.op_type not in ("Cast", "Identity", "Mul", "Reshape", "Squeeze", "Unsqueeze"):
        return False
    steps = [step for step in node.inputs if step is not None and step.const_value is None]
    return bool(steps) and all(map(parameter, steps))


def rescales(node: ir.Node, index: int, product: ir.Node) -> bool:
    """Whether a Mul makes floats of the result of a MatMulInteger: the other input is the product of both scales."""
    other = node.inputs[1 - index] if node.op_type == "Mul" else None
    if other is None or product.op_type != "MatMulInteger":
        return False
    wanted = [value.producer() for value in product.inputs[:2] if value is not None]
    return sorted(map(id, _scales(other))) == sorted(map(id, wanted))


def _scales(value: ir.Value) -> list[ir.Node | None]:
    """The nodes whose scales are the factors of `value`; None stands for any other factor."""
    node = value.producer()
    if node is not None and node.op_type == DYNAMIC and value is node.outputs[1]:
        return [node]
    if node is None or node.op_type != "Mul":
        return [None]
    return [factor for step in node.inputs if step is not None for factor in _scales(step)]


def _fixed(value: ir.Value, found: dict[ir.Value, ir.Node]) -> bool:
    return value in found or (value.producer() is None and value.const_value is not None)


def _decodes(node: ir.Node) -> bool:
    """Whether it makes floats of the codes of a constant."""
    value = node.inputs[0] if node.inputs else None
    tensor = value.const_value if value is not None else None
    return (
        node.op_type == "Cast"
        and tensor is not None
        and tensor.dtype in CODES
        and ir.DataType(node.attributes["to"].value) in FLOATS
    )


def _tensor(value: ir.Value, node: ir.Node) -> ir.TensorProtocol:
    return ir.tensor(_numbers(value, node), name=str(value.name))


def _numbers(value: ir.Value, node: ir.Node) -> Array:
    """The value, computed by the reference evaluator of ONNX."""
    import onnx.reference

    feeds: dict[str, Any] = {}
    for step in node.inputs:
        if step is not None and step.const_value is not None:
            feeds[str(step.name)] = step.const_value.numpy()
    results: Any = onnx.reference.ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    return np.asarray(results[[*node.outputs].index(value)])
