"""Where tokens that rest for a step are there again: in the keys and values of every attention, and as late as can be behind.

What the step before left of them stands in their place, so nothing is to be made of them: the later they come back, the less is
computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import BiasKeys
from tokenrt.passes.analysis.stream import stream_of
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.methods.contract import Returns
from tokenrt.passes.planning.pools import pools, streams

FROM_LAST: Returns = "from-last-step"

Restored = dict[ir.Node | None, frozenset[ir.Value]]
Stop = tuple[ir.Node | None, ir.Value | None]


def attended(structure: Structure) -> Restored:
    """The keys and values that attentions read: queries are made of the tokens that are computed, and see all others."""
    restored: Restored = {}
    for block in structure.blocks:
        for value in (block.core.key, block.core.value):
            for reader, _ in value.uses():
                restored[reader] = restored.get(reader, frozenset()) | {value}
    return restored


def late(stops: Iterable[Stop], flow: Flow, structure: Structure, shapes: Shapes) -> Restored:
    """Who receives complete rows so that every stop has them: the stop itself where it reads rows, else who is nearest to it."""
    restored: Restored = {}
    todo = [
        (node, value)
        for node, output in stops
        for value in ([output] if output is not None else streams(node, flow, every=True) if node else [])
    ]
    while todo:
        reader, value = todo.pop()
        producer = value.producer()
        if stream_of(value, flow, shapes, structure.stream) or producer not in flow.inputs:
            restored[reader] = restored.get(reader, frozenset()) | {value}
        elif producer is not None:
            todo.extend((producer, step) for step in streams(producer, flow, every=True))
    return restored


def incomplete(flow: Flow, structure: Structure) -> list[ir.Node]:
    """The nodes behind the blocks that make one of the tokens that are computed. Raises: UnsupportedError where a block does."""
    for edit in flow.edits:
        if isinstance(edit, BiasKeys) and edit.node in structure.body:
            raise UnsupportedError(
                f"{edit.node.op_type} node {edit.node.name!r} attends over the tokens of the step alone, and those that rest "
                "have no keys there that a step could hand to the next: it is no block's own attention"
            )
    return [node for node in pools(flow, structure) if any(streams(node, flow, every=False))]


def kept(
    structure: Structure, restored: Mapping[ir.Node | None, frozenset[ir.Value]]
) -> Sequence[tuple[str, ir.Value]]:
    """What a step hands to the next, by name: key_0, value_0, .. of every block, and what comes back behind them, output."""
    found: dict[ir.Value, str] = {}
    for block in structure.blocks:
        found.setdefault(block.core.key, f"key_{block.index}")
        found.setdefault(block.core.value, f"value_{block.index}")
    behind = dict.fromkeys(value for values in restored.values() for value in values if value not in found)
    for number, value in enumerate(sorted(behind, key=lambda value: str(value.name))):
        found[value] = f"output_{number}" if number else "output"
    return [(name, value) for value, name in found.items()]
