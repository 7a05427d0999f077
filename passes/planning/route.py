"""How tokens run through a model with given sites, and where all of them must be there again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.blocks import Block, Structure
from tokenrt.passes.analysis.flow import Cut, Flow, follow
from tokenrt.passes.analysis.marks import Blocked
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.methods.contract import Returns
from tokenrt.passes.planning.plan import PlannedSite, Where

Restored = dict[ir.Node | None, frozenset[ir.Value]]


@dataclass(frozen=True)
class Route:
    """How tokens run through a model with these sites: marks, edits, and who receives restored tokens."""

    sites: tuple[Cut, ...]
    flow: Flow
    restored: Restored


def cut(block: Block, where: Where) -> Cut | None:
    """The cut a reduction at this place makes, or None where the block has no such place."""
    if where == "around-attention":
        return None if isinstance(block.branch, str) else block.branch.inlet
    value = block.attended if where == "after-attention" else block.output
    return None if value is None else Cut(value)


def missing(block: Block, where: Where) -> str:
    """Why `cut` gives None."""
    if where == "around-attention":
        return str(block.branch)
    return "attention and MLP run side by side: nothing lies between them"


def returns(structure: Structure, when: Returns, sites: Sequence[PlannedSite]) -> Restored:
    """Where the tokens that left must be there again because the method says so."""
    blocks = structure.blocks
    if when == "after-attention":
        branches = [blocks[site.block].branch for site in sites]
        return {b.addition: frozenset((b.outlet,)) for b in branches if not isinstance(b, str)}
    if when == "before-last-block":
        back = [blocks[-1].entry]
    elif when == "before-next-site":
        back = [*(blocks[site.block].entry for site in sites[1:]), blocks[-1].output]
    else:
        back = []
    restored: Restored = {}
    for value in back:
        readers = [*dict.fromkeys(node for node, _ in value.uses())]
        for reader in [*readers, None] if value.is_graph_output() else readers:
            restored[reader] = restored.get(reader, frozenset()) | {value}
    return restored


def route(
    graph: ir.Graph,
    shapes: Shapes,
    structure: Structure,
    sites: Sequence[Cut],
    back: Mapping[ir.Node | None, frozenset[ir.Value]] | None = None,
) -> Route:
    """Follow the tokens; wherever the tail needs every position, restore at the tap.

    back: who receives restored tokens in any case. Raises: UnsupportedError where an operator of the body
    stops the tokens.
    """
    restored: Restored = dict(back or {})
    while True:
        flow = follow(
            graph,
            shapes,
            structure.origins,
            tokens=structure.tokens,
            protect=structure.protect,
            sites=sites,
            restored=restored,
        )
        stops = [*flow.blocked, *_across_rows(structure, flow)]
        reduced = [blocked for blocked in stops if _behind(blocked, flow, sites)]
        if not reduced:
            needed = {
                reader: frozenset(value for value in values if _short(value, reader, flow, sites))
                for reader, values in restored.items()
            }
            return Route(tuple(sites), flow, {reader: values for reader, values in needed.items() if values})
        before = sum(len(values) for values in restored.values())
        for blocked in reduced:
            if blocked.kind == "operator" or blocked.node in structure.body:
                raise UnsupportedError(f"the token axis cannot pass {blocked.describe()}")
            for reader, value in _taps(blocked, structure):
                restored[reader] = restored.get(reader, frozenset()) | {value}
        if sum(len(values) for values in restored.values()) == before:
            raise UnsupportedError(f"tokens cannot be restored before {reduced[0].describe()}")


def _across_rows(structure: Structure, flow: Flow) -> list[Blocked]:
    """Nodes that compute over rows which may have chosen other tokens each: they need every position."""
    stopped = {blocked.node for rows in structure.rows for blocked in rows.blocked}
    found = []
    for rows in structure.rows:
        for node, marks in rows.inputs.items():
            lost = node in stopped or not any(rows.marks.get(value) for value in node.outputs)
            if lost and any(marks) and any(flow.inputs.get(node, ())):
                reason = "it computes over rows of tokens, position by position, and each row may have chosen others"
                found.append(Blocked(node, reason, "grid"))
    return found


def _short(value: ir.Value, reader: ir.Node | None, flow: Flow, sites: Sequence[Cut]) -> bool:
    """Whether tokens have left a value as `reader` would see it."""
    cuts = any(site.value is value and site.reaches(reader) for site in sites)
    return cuts or any(mark.stage for mark in flow.marks.get(value, ()))


def _behind(blocked: Blocked, flow: Flow, sites: Sequence[Cut]) -> bool:
    """Whether a reduction lies before what blocked."""
    if blocked.node is None:
        return blocked.output is not None and _short(blocked.output, None, flow, sites)
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
