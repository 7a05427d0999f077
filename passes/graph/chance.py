"""Nodes that draw random numbers anew in each run: which they are, what they reach, and how they pass a folder unharmed.

A folder that takes them for functions of their inputs makes constants of their draws, merges two that look alike into
one, or drops a Dropout that is on. So they are hidden from it: for that time each is an operator of a domain of our own that
reads one more input of the graph, and no two have the same name.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokenrt.passes.graph.functions import describe

if TYPE_CHECKING:
    import onnx

RANDOM = frozenset(
    "Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
"""Operators that draw; a Dropout does so in training mode only."""

STANDARD = frozenset({"", "ai.onnx"})
HIDDEN = "tokenrt.hidden"
MARKER = "tokenrt_hidden_chance"


def draws(node: ir.Node) -> bool:
    """Whether the node draws random numbers. A Dropout whose mode is not known to be off does."""
    if node.op_type not in RANDOM or node.domain not in STANDARD:
        return False
    if node.op_type != "Dropout":
        return True
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    return mode is not None and (mode.const_value is None or bool(mode.const_value.numpy().any()))


def drawn(model: ir.Model) -> dict[str, str]:
    """Outputs of the graph that random numbers reach -> the first node on the way that draws them."""
    reached: dict[ir.Value, ir.Node] = {}
    bodies = {function.identifier(): function for function in model.functions.values()}

    def origin(node: ir.Node) -> ir.Node | None:
        function = bodies.get(node.op_identifier())
        inner = [step for step in function.all_nodes() if draws(step)] if function is not None else []
        inside = [step for step in _nested(node) if draws(step)]
        if draws(node) or inner or inside:
            return node if draws(node) else (inner or inside)[0]
        read = [*node.inputs, *(value for step in _nested(node) for value in step.inputs)]
        return next((reached[value] for value in read if value is not None and value in reached), None)

    for node in model.graph:
        found = origin(node)
        if found is not None:
            reached.update(dict.fromkeys(node.outputs, found))
    return {str(value.name): describe(reached[value]) for value in model.graph.outputs if value in reached}


def hide(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose random nodes no folder knows; the same object where there are none. `show` undoes it."""
    import onnx
    import onnx.shape_inference

    off = _switched_off(proto.graph)
    if not any(_draws(node, off) for node in _nodes(proto.graph)):
        return proto
    # What the hidden nodes give is told beside them: nobody infers the shape of an unknown operator.
    hidden = onnx.ModelProto()
    hidden.CopyFrom(proto)
    told = {value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    known = {value.name for value in hidden.graph.value_info}
    for number, node in enumerate(node for node in _nodes(hidden.graph) if _draws(node, off)):
        node.op_type, node.domain = f"{node.op_type}_{number}", HIDDEN
        node.input.append(MARKER)
        hidden.graph.value_info.extend(
            told[name] for name in node.output if name in told and name not in known
        )
    hidden.graph.input.append(onnx.helper.make_tensor_value_info(MARKER, onnx.TensorProto.FLOAT, []))
    hidden.opset_import.append(onnx.helper.make_opsetid(HIDDEN, 1))
    return hidden


def show(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its random nodes as they were before `hide`."""
    for node in _nodes(proto.graph):
        if node.domain == HIDDEN:
            node.op_type, node.domain = node.op_type.rpartition("_")[0], ""
            del node.input[-1]
    kept = [value for value in proto.graph.input if value.name != MARKER]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    imports = [entry for entry in proto.opset_import if entry.domain != HIDDEN]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    return proto


def _nested(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _switched_off(graph: onnx.GraphProto) -> frozenset[str]:
    """Constants that say no."""
    from onnx import numpy_helper

    tensors = [tensor for tensor in graph.initializer if tensor.data_type == tensor.BOOL]
    tensors += [
        tensor
        for node in _nodes(graph)
        for attribute in node.attribute
        if attribute.HasField("g")
        for tensor in attribute.g.initializer
        if tensor.data_type == tensor.BOOL
    ]
    return frozenset(tensor.name for tensor in tensors if not numpy_helper.to_array(tensor).any())


def _draws(node: onnx.NodeProto, off: Container[str]) -> bool:
    if node.op_type not in RANDOM or node.domain not in STANDARD:
        return False
    return node.op_type != "Dropout" or (
        len(node.input) > 2 and bool(node.input[2]) and node.input[2] not in off
    )
