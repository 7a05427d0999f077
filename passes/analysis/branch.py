"""The attention branch of a block: where it leaves the residual stream, where it comes back to it, and where the block ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.flow import Cut, Flow
from tokenrt.passes.analysis.residual import ADDITIONS
from tokenrt.passes.analysis.stream import LAYOUT, Layout, stream_of
from tokenrt.passes.graph.ancestry import readers
from tokenrt.passes.graph.quantization import before
from tokenrt.passes.graph.shapes import Shapes

PRODUCTS = frozenset({"FusedMatMul", "Gemm", "MatMul", "MatMulInteger"})


@dataclass(frozen=True)
class Branch:
    """One attention branch: tokens can leave at `inlet` and must be back where `addition` reads `outlet`.

    inlet: the value that queries, keys and values are products of (behind the norm, where one lies in front),
    and those of its readers that lead to them.
    """

    inlet: Cut
    outlet: ir.Value
    addition: ir.Node


def branch(
    core: Core, entry: ir.Value, attended: ir.Value, flow: Flow, shapes: Shapes, stream: Layout
) -> Branch | str:
    """The branch of an attention between the stream's `entry` and its `attended` value, or why it has none of its own."""
    addition = attended.producer()
    steps = [] if addition is None else [value for value in addition.inputs if value is not None]
    outlet = next((value for value in steps if core.node in _above((value,), entry, flow)), None)
    if addition is None or outlet is None or stream_of(outlet, flow, shapes, stream) is None:
        return "the attention's result is no plain stream of tokens [B,N,C] where it is added"
    inlet = _inlet(core, entry, flow, shapes, stream)
    if inlet is None:
        return "queries, keys and values are not made of one plain stream of tokens [B,N,C]"
    inside = _above((outlet,), inlet, flow)
    if inlet is not entry and any(entry in node.inputs for node in inside):
        return "the attention reads the residual stream beside its norm"
    for node in inside:
        for value in node.outputs:
            outside = value.is_graph_output() or any(
                not _of_others(reader, value, flow) for reader in readers(value) - inside
            )
            if value is not outlet and flow.marks.get(value) and outside:
                return f"{value.name!r} is made inside the attention and read outside it"
    return Branch(Cut(inlet, frozenset(node for node, _ in inlet.uses() if node in inside)), outlet, addition)


def _of_others(reader: ir.Node, value: ir.Value, flow: Flow) -> bool:
    """Whether a node takes of a joint value the entries of other streams alone."""
    joint = any(mark.joint for mark in flow.marks.get(value, ()))
    return joint and reader.op_type in ("Slice", "Split") and not any(map(flow.marks.get, reader.outputs))


def _inlet(core: Core, entry: ir.Value, flow: Flow, shapes: Shapes, stream: Layout) -> ir.Value | None:
    """What the first products behind `entry` are made of, if all the others are made of it too."""
    ends = (core.query, core.key, core.value)
    products = [node for node in _above(ends, entry, flow) if node.op_type in PRODUCTS]
    found = [before(data, entry) for node in products if (data := node.inputs[0]) is not None] or [*ends]
    above = {data: _above((data,), entry, flow) for data in found}
    first = next(
        (
            data
            for data in found
            if all(data is other or _leads(data, nodes) for other, nodes in above.items())
        ),
        None,
    )
    while first is not None and stream_of(first, flow, shapes, stream) is None:
        producer = first.producer()
        first = producer.inputs[0] if producer is not None and producer.op_type in LAYOUT else None
    return first


def _leads(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return any(reader in nodes for reader, _ in value.uses())


def _above(values: Iterable[ir.Value], stop: ir.Value, flow: Flow) -> set[ir.Node]:
    """Nodes on the token axis that the values come of, up to the readers of `stop`."""
    found: set[ir.Node] = set()
    todo = [value for value in values if value is not stop]
    while todo:
        node = todo.pop().producer()
        if node is not None and node in flow.inputs and node not in found:
            found.add(node)
            todo.extend(value for value in node.inputs if value is not None and value is not stop)
    return found


def block_output(
    attended: ir.Value,
    flow: Flow,
    order: Mapping[ir.Node, int],
    attentions: frozenset[ir.Node],
    others: frozenset[ir.Value],
) -> tuple[ir.Value, bool]:
    """The next cut where two branches of the stream are added, and whether the MLP reads the attended value.

    others: where the results of attentions over another axis are added, which are part of the block.
    """
    reached, live, sequential = {attended}, {attended: readers(attended)}, True
    queue = sorted(live[attended], key=order.__getitem__)
    while queue:
        node = queue.pop(0)
        if node in attentions:
            break
        for value in node.inputs:
            if value in live:
                live[value].discard(node)
                if not live[value]:
                    del live[value]
        streams = [value for value in node.inputs if value is not None and flow.marks.get(value)]
        outside = any(value not in reached for value in streams)
        for value in node.outputs:
            reached.add(value)
            found = readers(value)
            if found:
                live[value] = found
            queue = sorted({*queue, *found}, key=order.__getitem__)
        if node.op_type in ADDITIONS and len(streams) > 1 and node.outputs[0] not in others:
            if outside:
                return node.outputs[0], False
            if set(live) <= {node.outputs[0]}:
                return node.outputs[0], sequential
    return attended, sequential
