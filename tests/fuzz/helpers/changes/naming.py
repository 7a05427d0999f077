"""Names, order and how constants are stored: nothing of this is read by what a graph computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.fuzz.helpers.edit import Edit, constant

ODD = ("a b", "/x/y:0", "größe", "'", '"', "0", "Softmax", "[1,2]", "{n}", "%s", "a\\b", "x" * 200, ".")
"""Beginnings of names as converters and people write them."""


def _odd(edit: Edit, number: int) -> str:
    return f"{edit.drawn.choice(ODD)}{number}"


def rename_values(edit: Edit) -> bool:
    ends = {*edit.graph.inputs, *edit.graph.outputs}
    inner = [value for value in edit.values() if value not in ends and value.name]
    for number, value in enumerate(inner):
        value.name = _odd(edit, number)
    return bool(inner)


def rename_nodes(edit: Edit) -> bool:
    for number, node in enumerate(edit.graph.all_nodes()):
        node.name = _odd(edit, number)
    return True


def nameless_nodes(edit: Edit) -> bool:
    for node in edit.some(list(edit.graph.all_nodes())):
        node.name = ""
    return True


def order(edit: Edit) -> bool:
    """Another topological order."""
    nodes = list(edit.graph)
    waiting = {node: _makers(node, set(nodes)) for node in nodes}
    laid: list[ir.Node] = []
    while waiting:
        ready = [node for node in waiting if waiting[node] <= set(laid)]
        node = edit.drawn.choice(ready)
        laid.append(node)
        del waiting[node]
    edit.graph.remove(nodes)
    edit.graph.extend(laid)
    return laid != nodes


def _makers(node: ir.Node, nodes: set[ir.Node]) -> set[ir.Node]:
    inputs = list(node.inputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inputs += [value for inner in attribute.as_graph().all_nodes() for value in inner.inputs]
            inputs += list(attribute.as_graph().outputs)
    return {
        maker
        for value in inputs
        if value is not None and (maker := value.producer()) in nodes and maker is not node
    }


def constant_nodes(edit: Edit) -> bool:
    """Initializers as Constant nodes."""
    found = [
        value for value in edit.graph.initializers.values() if not value.is_graph_input() and value.uses()
    ]
    for value in edit.some(found):
        made = edit.op(edit.graph[0], "Constant", value=ir.tensor(constant(value)))
        edit.replace(value, made)
    return bool(found)


def lifted_constants(edit: Edit) -> bool:
    """Constant nodes as initializers."""
    found = [node.outputs[0] for node in edit.nodes("Constant") if constant(node.outputs[0]) is not None]
    for value in edit.some(found):
        array = constant(value)
        edit.replace(value, edit.const(array, array.dtype))
    return bool(found)


def constants_as_inputs(edit: Edit) -> bool:
    """Initializers listed among the inputs, as files before IR version 4 had to."""
    found = [value for value in edit.graph.initializers.values() if not value.is_graph_input()]
    for value in edit.some(found):
        edit.graph.inputs.append(value)
    return bool(found)


def unfolded_constants(edit: Edit) -> bool:
    """Float constants, position tables among them, as computations on constants."""
    found = [
        value
        for value in edit.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) > 1
        and value.uses()
    ]
    for value in edit.some(found):
        array, first = constant(value), edit.graph[0]
        axis = edit.drawn.choice([axis for axis in range(array.ndim) if array.shape[axis] > 1] or [0])
        length = array.shape[axis]
        way = edit.drawn.randrange(3)
        if way == 0 and length > 1:
            parts = (edit.const(part) for part in np.split(array, [length // 2], axis))
            made = edit.op(first, "Concat", *parts, axis=axis)
        elif way == 1:
            longer = edit.const(np.concatenate([array, array], axis))
            made = edit.op(first, "Slice", longer, edit.ints(0), edit.ints(length), edit.ints(axis))
        else:
            made = edit.op(first, "Mul", edit.const(array * 2), edit.const(0.5))
        edit.replace(value, made)
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (
        rename_values,
        rename_nodes,
        nameless_nodes,
        order,
        constant_nodes,
        lifted_constants,
        constants_as_inputs,
        unfolded_constants,
    )
}
