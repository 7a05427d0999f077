"""How tokens run through a model with given sites, and where all of them must be there again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.blocks import Block, Structure
from tokenrt.passes.flow import Blocked, Flow, follow
from tokenrt.passes.shapes import Shapes

Restored = dict[ir.Node | None, frozenset[ir.Value]]


@dataclass(frozen=True)
class Route:
    """How tokens run through a model with these sites: marks, edits, and who receives restored tokens."""

    sites: tuple[ir.Value, ...]
    flow: Flow
    restored: Restored


def site_value(block: Block, where: str) -> ir.Value | None:
    """The tensor a reduction at this place replaces, or None where the block has no such place."""
    return block.attended if where == "after-attention" else block.output


def route(graph: ir.Graph, shapes: Shapes, structure: Structure, sites: Sequence[ir.Value]) -> Route:
    """Follow the tokens; wherever the tail needs every position, restore at the tap. Raises: UnsupportedError in the body."""
    restored: Restored = {}
    while True:
        flow = follow(
            graph,
            shapes,
            structure.seeds(),
            tokens=structure.tokens,
            protect=structure.protect,
            sites=sites,
            restored=restored,
        )
        reduced = [blocked for blocked in flow.blocked if _behind(blocked, flow, sites)]
        if not reduced:
            return Route(tuple(sites), flow, restored)
        before = sum(len(values) for values in restored.values())
        for blocked in reduced:
            if blocked.kind == "operator" or blocked.node in structure.body:
                raise UnsupportedError(f"the token axis cannot pass {blocked.describe()}")
            for reader, value in _taps(blocked, structure):
                restored[reader] = restored.get(reader, frozenset()) | {value}
        if sum(len(values) for values in restored.values()) == before:
            raise UnsupportedError(f"tokens cannot be restored before {reduced[0].describe()}")


def _behind(blocked: Blocked, flow: Flow, sites: Sequence[ir.Value]) -> bool:
    """Whether a reduction lies before what blocked."""
    if blocked.node is None:
        value = blocked.output
        return value is not None and (value in sites or any(mark.stage for mark in flow.marks.get(value, ())))
    return any(mark.stage for marks in flow.inputs[blocked.node] for mark in marks)


def _taps(blocked: Blocked, structure: Structure) -> list[tuple[ir.Node | None, ir.Value]]:
    """Edges from the body to the tail that lead to what blocked."""
    found: list[tuple[ir.Node | None, ir.Value]] = []
    body_values = {value for node in structure.body for value in node.outputs}
    todo: list[tuple[ir.Node | None, ir.Value]] = []
    if blocked.node is None and blocked.output is not None:
        todo.append((None, blocked.output))
    elif blocked.node is not None:
        todo.extend((blocked.node, value) for value in blocked.node.inputs if value is not None)
    seen: set[ir.Value] = set()
    while todo:
        reader, value = todo.pop()
        if value in body_values:
            found.append((reader, value))
        elif value not in seen and (producer := value.producer()) is not None:
            seen.add(value)
            todo.extend((producer, step) for step in producer.inputs if step is not None)
    return found
