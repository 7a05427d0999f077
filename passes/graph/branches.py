"""Replace every If whose condition is the same in every run by the branch it takes, the innermost included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.graph.fold import constants
from tokenrt.passes.graph.functions import STANDARD
from tokenrt.passes.graph.model import substitute
from tokenrt.passes.graph.shapes import infer


def take_branches(model: ir.Model) -> bool:
    """Take the branches in place, until no condition is known any more. Whether there was one.

    A condition is known where it is a constant, or computed of constants and of shapes that inference knows.
    """
    found = False
    while True:
        known = [(node, truth) for node in _choices(model) if (truth := _constant(node)) is not None]
        if not known:
            known = _computed(model)
        # An If inside the branch of another waits for its turn: that branch may go.
        known = [(node, truth) for node, truth in known if not any(_holds(other, node) for other, _ in known)]
        if not known:
            return found
        for node, truth in known:
            _take(model, node, truth)
        found = True


def _choices(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == "If" and node.domain in STANDARD]


def _constant(node: ir.Node) -> bool | None:
    condition = node.inputs[0]
    if condition is None:
        return None
    tensor, maker = condition.const_value, condition.producer()
    if tensor is None and maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        tensor = maker.attributes["value"].as_tensor()
    return None if tensor is None else bool(tensor.numpy().reshape(-1)[0])


def _computed(model: ir.Model) -> list[tuple[ir.Node, bool]]:
    """Ifs of the graph itself whose condition is computed, but always the same."""
    nodes = [node for node in model.graph if node.op_type == "If" and node.domain in STANDARD]
    conditions = [node.inputs[0] for node in nodes if node.inputs[0] is not None]
    if not conditions:
        return []
    try:
        values = constants(model.graph, infer(model, strict=False), conditions)
    except TokenrtError:
        return []
    return [
        (node, bool(values[condition].reshape(-1)[0]))
        for node in nodes
        if (condition := node.inputs[0]) is not None and condition in values
    ]


def _holds(outer: ir.Node, inner: ir.Node) -> bool:
    return outer is not inner and any(
        node is inner
        for attribute in outer.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for node in ir.traversal.RecursiveGraphIterator(attribute.as_graph())
    )


def _take(model: ir.Model, node: ir.Node, truth: bool) -> None:
    """Move the nodes of one branch to where the If stands; its names may be those of the other branch, or of another If."""
    graph, branch = node.graph, node.attributes["then_branch" if truth else "else_branch"].as_graph()
    assert isinstance(graph, ir.Graph)
    moved, results = [*branch], [*branch.outputs]
    initializers = [*branch.initializers.values()]
    taken = _names(model, moved, initializers)
    branch.outputs.clear()
    branch.remove(moved)
    branch.initializers.clear()
    for value in (*initializers, *(value for step in moved for value in step.outputs)):
        if value.name:
            value.name = _fresh(str(value.name), taken)
    for value in initializers:
        graph.register_initializer(value)
    for step in moved:
        step.name = _fresh(step.name or str(step.outputs[0].name), taken)
    graph.insert_before(node, moved)
    for old, result in zip(node.outputs, results, strict=True):
        name = _fresh(f"{old.name}_taken", taken)
        new = ir.Value(name=name, type=old.type or result.type, shape=old.shape or result.shape)
        graph.insert_before(node, ir.Node("", "Identity", [result], outputs=[new], name=name))
        substitute(graph, old, new)
    graph.remove(node, safe=True)


def _names(model: ir.Model, without: list[ir.Node], values: list[ir.Value]) -> set[str]:
    """Every name in use, but for those of these nodes and values."""
    nodes = set(without)

    def used() -> Iterator[str | None]:
        graphs = [model.graph, *_subgraphs(model.graph)]
        for graph in graphs:
            yield from (value.name for value in graph.inputs)
            yield from (value.name for value in graph.initializers.values() if value not in values)
            for step in graph:
                if step not in nodes:
                    yield step.name
                    yield from (value.name for value in step.outputs)

    return {name for name in used() if name}


def _subgraphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()
                yield from _subgraphs(attribute.as_graph())


def _fresh(name: str, taken: set[str]) -> str:
    made, number = name, 0
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made
