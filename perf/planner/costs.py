"""What a model costs, counted on its graph: multiply-accumulates, bytes moved and peak memory, those of reductions included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from tokenrt.passes.analysis.rules.elementwise import RULES
from tokenrt.passes.graph.functions import describe
from tokenrt.passes.planning.flops import COUNTED, cost
from tokenrt.perf.planner.memory import peak
from tokenrt.perf.planner.opened import VIEWS, Opened

PARTLY = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
"""Operators that read no more of their first input than they write."""

ELEMENTWISE = frozenset(name for domain, name in RULES if not domain)


@dataclass(frozen=True)
class Cost:
    """A model's cost for `batch` images.

    macs: multiply-accumulates of products, convolutions and attention. moved: bytes read and written, where every node and every
    group of elementwise nodes that follow one another reads its tensors once and writes those that others read. weights: bytes
    of its constants. peak: bytes of activations alive at once, at `peak_at`. uncounted: products that run in a loop, or whose
    shapes the run alone tells; their work is in no figure.
    """

    batch: int
    macs: int
    moved: int
    weights: int
    peak: int
    peak_at: str
    uncounted: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"uncounted": list(self.uncounted)}


def cost_of(model: ir.Model, batch: int = 1) -> Cost:
    """Count a model as it is, reduced or not; it stays as it is. Raises: ModelError, ShapeError."""
    opened = Opened.of(model)
    most = peak(opened, batch)
    weights = sum(opened.bytes_of(value, batch) for value in opened.graph.initializers.values())
    macs = batch * cost(opened.graph, opened.shapes, {}).macs([])
    return Cost(batch, macs, moved(opened, batch), weights, most.bytes, most.node, tuple(_uncounted(opened)))


def moved(opened: Opened, batch: int) -> int:
    """Bytes that are read and written, as `Cost` says."""
    group = _groups(opened)
    outputs = {*opened.graph.outputs}
    touched: dict[tuple[ir.Node, ir.Value], int] = {}
    for node in opened.graph:
        if node.op_type in VIEWS:
            continue
        for value in opened.reads(node):
            source, read = _behind_views(value), opened.bytes_of(value, batch)
            maker = source.producer()
            if node.op_type in PARTLY and value is node.inputs[0]:
                read = min(read, sum(opened.bytes_of(made, batch) for made in node.outputs))
            if maker is None or group.get(maker) is not group[node]:
                touched[group[node], source] = max(read, touched.get((group[node], source), 0))
        for value in node.outputs:
            if value in outputs or any(group.get(user) is not group[node] for user in value.consumers()):
                touched[group[node], value] = opened.bytes_of(value, batch)
    return sum(touched.values())


def _groups(opened: Opened) -> dict[ir.Node, ir.Node]:
    """The first node of the group of each: elementwise nodes join that of an elementwise one they read."""
    found: dict[ir.Node, ir.Node] = {}
    for node in opened.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        before = [each for each in makers if each in found and each.op_type in ELEMENTWISE]
        found[node] = found[before[0]] if before and node.op_type in ELEMENTWISE else node
    return found


def _behind_views(value: ir.Value) -> ir.Value:
    """The tensor that a value is a view of."""
    maker = value.producer()
    while maker is not None and maker.op_type in VIEWS and maker.inputs[0] is not None:
        value = maker.inputs[0]
        maker = value.producer()
    return value


def _uncounted(opened: Opened) -> Iterator[str]:
    for node in opened.graph.all_nodes():
        known = all(value is None or opened.shapes.known(value) for value in (*node.inputs, *node.outputs))
        if node.op_type in COUNTED and (node.graph is not opened.graph or not known):
            yield describe(node)
