"""What surrounds the graph: opset and IR version, external weights, stated shapes, and an If whose condition is constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tests.fuzz.helpers.edit import Edit, _inferred

EXTERNAL = "fuzz.external"
"""The key of the metadata by which a file is written with its weights beside it."""

OPSETS = (13, 14, 15, 16, 17, 18, 19, 20, 21)


def external_weights(edit: Edit) -> bool:
    edit.model.metadata_props[EXTERNAL] = "yes"
    return True


def ir_version(edit: Edit) -> bool:
    """An older IR version, from which on initializers need not be inputs, or a newer one."""
    edit.model.ir_version = edit.drawn.choice((4, 7, 8, 10))
    return True


def stated_shapes(edit: Edit) -> bool:
    """The shape of every value inside is stated."""
    edit.model.metadata_props[STATED] = "yes"
    return True


STATED = "fuzz.stated"


def opset(edit: Edit) -> bool:
    """Converted by ONNX's own converter, where it can and its result is sound."""
    from onnx import version_converter

    proto = edit.proto()
    wanted = edit.drawn.choice([number for number in OPSETS if number != edit.opset])
    try:
        made = version_converter.convert_version(proto, wanted)
        onnx.checker.check_model(made)
        edit.model = ir.from_proto(_inferred(made))
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError):
        return False
    edit.graph = edit.model.graph
    return True


def branch(edit: Edit) -> bool:
    """What lies between two values, a head, an MLP or some blocks, in an If whose condition is a constant."""
    values = [value for value in edit.floats(2, 3) if value.producer() in set(edit.graph)]
    if len(values) < 2 or edit.nodes("If"):
        return False
    for _ in range(8):
        first, last = sorted(edit.drawn.sample(range(len(values)), 2))
        region = _between(edit, values[first], values[last])
        if len(region) > 1:
            _enclose(edit, region)
            return True
    return False


def head_in_branch(edit: Edit) -> bool:
    """Everything behind a value, in an If whose condition is a constant."""
    values = [value for value in edit.floats(2, 3) if value.producer() in set(edit.graph)][-6:]
    for value in edit.some(values)[:1]:
        region = [node for node in edit.graph if _behind(value, node)]
        if not edit.nodes("If"):
            _enclose(edit, region)
            return True
    return False


def _behind(value: ir.Value, node: ir.Node) -> bool:
    todo, seen = [node], set()
    while todo:
        here = todo.pop()
        if value in here.inputs:
            return True
        for above in here.predecessors():
            if above not in seen:
                seen.add(above)
                todo.append(above)
    return False


def _between(edit: Edit, first: ir.Value, last: ir.Value) -> list[ir.Node]:
    above, todo = set(), [last.producer()]
    while todo:
        node = todo.pop()
        if node not in above:
            above.add(node)
            todo += node.predecessors()
    return [node for node in edit.graph if node in above and _behind(first, node)]


def _enclose(edit: Edit, region: list[ir.Node]) -> None:
    inside = set(region)
    leaving = [
        value
        for node in region
        for value in node.outputs
        if value.is_graph_output() or any(reader not in inside for reader, _ in value.uses())
    ]
    after = [node for node in edit.graph if node not in inside and _needs(node, inside)]
    way = edit.drawn.randrange(3)
    anchor = region[-1]
    if way == 0:
        condition = edit.const(True, np.bool_)
    elif way == 1:
        condition = edit.op(anchor, "Constant", value=ir.tensor(np.asarray(True)))
    else:
        condition = edit.op(anchor, "Greater", edit.const(2.0), edit.const(1.0))
    names = {value: edit.name("branch") for value in leaving}
    results = [ir.Value(name=edit.name("if"), type=value.type, shape=value.shape) for value in leaving]
    other = _copied(edit, region, leaving)
    node = ir.Node("", "If", [condition], outputs=results, name=edit.name("node"))
    edit.graph.insert_after(anchor, node)
    for value, result in zip(leaving, results, strict=True):
        edit.replace(value, result, keep=lambda reader: reader in inside)
        value.name = names[value]
    edit.graph.remove(region)
    first = ir.Graph([], leaving, nodes=region, name=edit.name("then"))
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", first)
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", other)
    edit.graph.remove(after)
    edit.graph.extend(after)


def _needs(node: ir.Node, inside: set[ir.Node]) -> bool:
    todo, seen = [node], set()
    while todo:
        here = todo.pop()
        if here in inside:
            return True
        for above in here.predecessors():
            if above not in seen:
                seen.add(above)
                todo.append(above)
    return False


def _copied(edit: Edit, region: list[ir.Node], leaving: list[ir.Value]) -> ir.Graph:
    """The branch that is never taken: the same nodes again."""
    made: dict[ir.Value, ir.Value] = {}
    nodes = []
    for node in region:
        outputs = []
        for value in node.outputs:
            made[value] = ir.Value(name=edit.name("else"), type=value.type, shape=value.shape)
            outputs.append(made[value])
        inputs = [made.get(value, value) if value is not None else None for value in node.inputs]
        attributes = list(node.attributes.values())
        nodes.append(
            ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=edit.name("node"))
        )
    return ir.Graph([], [made[value] for value in leaving], nodes=nodes, name=edit.name("otherwise"))


CHANGES = {
    change.__name__: change
    for change in (external_weights, ir_version, stated_shapes, opset, branch, head_in_branch)
}
