"""Outputs whose rows are what learned queries read of a picture, one row a query, and the constant that holds these queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.analysis.flow import Cut, Flow, follow
from tokenrt.passes.analysis.marks import BiasKeys, Mark, ReduceAuxiliary, WeighPool
from tokenrt.passes.analysis.outlets.find import FLOATS, Outlet
from tokenrt.passes.graph.ancestry import ancestors, depends_on_input
from tokenrt.passes.graph.shapes import Shapes

REPEATING = ("Expand", "Tile")


@dataclass(frozen=True)
class Queries:
    """Learned queries: a constant with M entries on `axis`, each of which becomes a row of the output for itself.

    given: what goes into the attention, the constant or what a node makes of it that repeats it for every picture. flow: from
    there.
    """

    value: ir.Value
    axis: int
    given: ir.Value
    flow: Flow


def queries(graph: ir.Graph, shapes: Shapes, outlet: Outlet) -> Queries | str:
    """The constant farthest up whose entries become the rows of an outlet by way of an attention; or why there is none."""
    every = [found for found in _candidates(graph, shapes, outlet) if _asks(found.flow)]
    every.sort(key=lambda found: -len(found.flow.inputs))
    faults = [_fault(found, outlet) for found in every]
    if "" in faults:
        return every[faults.index("")]
    return next(
        iter(faults), "its rows are not what learned queries, a constant of the model, read by attention"
    )


def _candidates(graph: ir.Graph, shapes: Shapes, outlet: Outlet) -> Iterator[Queries]:
    """Constants with as many entries on an axis as the output has rows, and the flow of these entries."""
    for value in _constants(outlet, graph):
        for axis in (axis for axis, size in enumerate(value.shape or ()) if size == outlet.tokens):
            repeated = [
                node.outputs[0] for node, index in value.uses() if node.op_type in REPEATING and not index
            ]
            for given in (value, *(each for each in repeated if shapes.known(each))):
                mark = Mark(axis if given is value else axis + len(shapes.of(given)) - len(value.shape or ()))
                flow = follow(
                    graph, shapes, {given: (mark,)}, tokens=outlet.tokens, protected=(), sites=[Cut(given)]
                )
                yield Queries(value, axis, given, flow)


def _constants(outlet: Outlet, graph: ir.Graph) -> Iterator[ir.Value]:
    """Constants that the output is computed from, in graph order."""
    above = ancestors([outlet.value])
    inputs = (value for node in graph if not above.isdisjoint(node.outputs) for value in node.inputs)
    constants = (value for value in inputs if value is not None and value.const_value is not None)
    yield from (value for value in dict.fromkeys(constants) if value.dtype in FLOATS)


def _asks(flow: Flow) -> bool:
    """Whether tokens go as queries into an attention."""
    return any(
        node.op_type in ("Softmax", "Attention") and seen and seen[0] for node, seen in flow.inputs.items()
    )


def _fault(found: Queries, outlet: Outlet) -> str:
    """Why a row is not one query's alone; empty where it is."""
    flow = found.flow
    for edit in flow.edits:
        if isinstance(edit, BiasKeys | WeighPool):
            return f"its queries read one another at {edit.node.op_type} node {edit.node.name!r}, so that each row is made of all"
        if isinstance(edit, ReduceAuxiliary):
            value = edit.node.inputs[edit.index]
            if value is not None and depends_on_input(value):
                return f"its queries depend on the picture: {edit.node.op_type} node {edit.node.name!r} reads {value.name!r}"
    stop = next((stop for stop in flow.blocked if stop.output is not outlet.value), None)
    if stop is not None:
        return f"its queries cannot be followed: {stop.describe()}"
    reached = flow.marks.get(outlet.value) == (Mark(outlet.axis, stage=1),)
    return "" if reached else "its rows are not its queries one by one"
