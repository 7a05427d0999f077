"""Change a model for a while: what is rewritten inside the block is what it was behind it.

A rewrite can so be tried on the graph that the analyses speak of, node by node and value by value, without a copy of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

Uses = tuple[tuple[ir.Node, int], ...]
"""The nodes that read a value, and as which input, in their order."""


@contextmanager
def undone(model: ir.Model) -> Iterator[None]:
    """Put the model back as it was at the start of the block, however the block ends."""
    graphs = [_GraphState.of(graph) for graph in (model.graph, *model.graph.subgraphs())]
    functions, props = dict(model.functions), dict(model.metadata_props)
    try:
        yield
    finally:
        for state in graphs:
            state.put_back()
        for state in graphs:  # A node of a branch may read what lies outside.
            state.put_back_readers()
        for held, was in ((model.functions, functions), (model.metadata_props, props)):
            _refill(held, was)


@dataclass(frozen=True)
class _NodeState:
    """What a node reads and gives."""

    node: ir.Node
    inputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, ir.Attr]
    outputs: tuple[_ValueState, ...]

    @classmethod
    def of(cls, node: ir.Node) -> _NodeState:
        return cls(
            node, tuple(node.inputs), dict(node.attributes), tuple(_ValueState.of(v) for v in node.outputs)
        )

    def put_back(self) -> None:
        node = self.node
        if len(node.inputs) != len(self.inputs):
            node.resize_inputs(len(self.inputs))
        for index, value in enumerate(self.inputs):
            if node.inputs[index] is not value:
                node.replace_input_with(index, value)
        if dict(node.attributes) != self.attributes:
            _refill(node.attributes, self.attributes)
        if len(node.outputs) != len(self.outputs):
            node.resize_outputs(len(self.outputs))  # Those that come again are read by nobody.
        for value, state in zip(node.outputs, self.outputs, strict=True):
            state.put_back(value)


@dataclass(frozen=True)
class _ValueState:
    name: str | None
    shape: ir.Shape | None
    type: ir.TypeProtocol | None

    @classmethod
    def of(cls, value: ir.Value) -> _ValueState:
        return cls(value.name, value.shape, value.type)

    def put_back(self, value: ir.Value) -> None:
        if value.name != self.name:
            value.name = self.name
        value.shape, value.type = self.shape, self.type


@dataclass(frozen=True)
class _GraphState:
    """A graph's own nodes in their order, and what it gives and holds."""

    graph: ir.Graph
    nodes: tuple[_NodeState, ...]
    outputs: tuple[ir.Value, ...]
    initializers: Mapping[str, ir.Value]
    imports: Mapping[str, int]
    readers: Mapping[ir.Value, Uses]

    @classmethod
    def of(cls, graph: ir.Graph) -> _GraphState:
        made = (value for node in graph for value in node.outputs)
        return cls(
            graph,
            tuple(_NodeState.of(node) for node in graph),
            tuple(graph.outputs),
            dict(graph.initializers),
            dict(graph.opset_imports),
            {value: _uses(value) for value in (*graph.inputs, *graph.initializers.values(), *made)},
        )

    def put_back(self) -> None:
        graph, before = self.graph, [state.node for state in self.nodes]
        graph.outputs[:] = self.outputs
        added = [node for node in graph if node not in {*before}]
        for node in added:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        for state in self.nodes:
            state.put_back()
        if [*graph] != before:
            graph.remove([*graph])
            graph.extend(before)
        _refill(graph.initializers, self.initializers)
        _refill(graph.opset_imports, self.imports)

    def put_back_readers(self) -> None:
        """The order of readers, in which messages name them."""
        for value, uses in self.readers.items():
            if _uses(value) != uses:
                for given in (None, value):
                    for node, index in uses:
                        node.replace_input_with(index, given)


def _uses(value: ir.Value) -> Uses:
    return tuple((node, index) for node, index in value.uses())


def _refill(held: Any, was: Mapping[Any, Any]) -> None:
    """A mapping with the entries it had, in their order."""
    if list(held.items()) != list(was.items()):
        held.clear()
        held.update(was)
