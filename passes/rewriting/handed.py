"""What a step hands to the next: keys, values and rows of all tokens, of which those that rest stay as they were.

Every one is an input `past_NAME` and an output `present_NAME` of one shape. The first step has none before it: a file of its own
computes all tokens and gives the same outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.interface import PAST, PRESENT, Interface
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.steps import kept
from tokenrt.passes.rewriting.inputs import free_batch, gain
from tokenrt.passes.rewriting.streams import to_rows

if TYPE_CHECKING:
    from tokenrt.passes.analysis.stream import Layout
    from tokenrt.passes.analysis.structure import Structure
    from tokenrt.passes.planning.route import Route


@dataclass(frozen=True)
class Part:
    """One tensor that a step hands on.

    dims: as the host has it, the pictures first; axis: that of its tokens. held: it is a stream, and the host has its rows
    [B,N,C]. heads: how many lie in its first axis beside the pictures, in the model. others: entries of other streams in front
    and behind, of which none rests.
    """

    name: str
    value: ir.Value
    dims: Dims
    axis: int
    held: Layout | None = None
    heads: int = 1
    others: tuple[int, int] = (0, 0)

    def sizes(self, count: int) -> list[int]:
        """The host's axes for `count` tokens, as a Reshape says them."""
        dims = list(self.dims)
        dims[self.axis] = count
        return [-1 if size % BATCH == 0 else size for size in dims]

    def for_host(self, op: GraphOps, value: ir.Value, count: int) -> ir.Value:
        """The model's value of `count` tokens with the pictures apart; rows are rows already."""
        apart: ir.Value = value if self.heads == 1 else op("Reshape", value, self.sizes(count))
        return apart

    def for_model(self, op: GraphOps, value: ir.Value) -> ir.Value:
        """The same value back."""
        folded: ir.Value = value if self.heads == 1 else op("Reshape", value, [-1, *self.dims[2:]])
        return folded


def parts(structure: Structure, path: Route, shapes: Shapes) -> list[Part]:
    """What the steps of a transformer hand on."""
    found, rows = list[Part](), structure.stream.rows
    for name, value in kept(structure, path.restored):
        held, dims = structure.held(value, shapes), shapes.of(value)
        if held is not None:
            found.append(Part(name, value, (rows, structure.tokens, held.channels), 1, held))
            continue
        (mark,), heads = path.flow.marks[value], dims[0] // rows
        folded = heads > 1
        apart = (rows, heads, *dims[1:]) if folded else dims
        found.append(Part(name, value, apart, mark.axis + folded, None, heads, (mark.front, mark.behind)))
    return found


@dataclass
class Handed:
    """The state of one transformer's steps while its graph is rewritten.

    every: what is restored from it; dims [B,N]: of the method's own numbers. gained: inputs of the model, outputs: what it gives.
    """

    op: GraphOps
    method: str
    every: Sequence[Part]
    dims: Dims
    gained: dict[str, ir.Value]
    outputs: dict[str, ir.Value] = field(default_factory=dict)
    _places: dict[tuple[int, Dims], ir.Value] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> Mapping[ir.Value, Part]:
        return {part.value: part for part in self.every}

    def _past(self, name: str, dims: Dims, kind: ir.DataType) -> ir.Value:
        """The input of what the step before handed on."""
        own = f"{PAST}{name}"
        self.gained[own] = gain(self.op.graph, own, _declared(self.op.graph, dims), self.method, kind)
        return self.gained[own]

    def carried(self, names: Iterable[str]) -> dict[str, ir.Value]:
        """The method's own numbers, as the step before left them."""
        return {name: self._past(name, self.dims, ir.DataType.FLOAT) for name in names}

    def complete(self, value: ir.Value, now: ir.Value, index: Value, count: int) -> ir.Value:
        """A value of all tokens: the `count` at `index` [B,K] as they are now, the others as the step before left them."""
        op, part = self.op, self._parts[value]
        here = part.for_host(op, now, count + sum(part.others))
        past = self._past(part.name, part.dims, value.dtype or ir.DataType.FLOAT)
        whole = op("ScatterElements", past, self._place(index, part, here), here, axis=part.axis)
        self.outputs[part.name] = whole
        return part.for_model(op, whole)

    def _place(self, index: Value, part: Part, here: ir.Value) -> ir.Value:
        """Where each entry of `here` belongs along the axis of the tokens."""
        key = part.axis, tuple(part.sizes(0))
        if key not in self._places:
            if any(part.others):
                index = self._with_others(index, part)
            others = [axis for axis in range(1, len(part.dims)) if axis != part.axis]
            wide = self.op("Unsqueeze", index, others)
            self._places[key] = self.op("Expand", wide, self.op("Shape", here))
        return self._places[key]

    def _with_others(self, index: Value, part: Part) -> ir.Value:
        """[B,K] with the places of other streams' entries in front and behind."""
        op, (front, behind), every = self.op, part.others, part.dims[part.axis]
        own = op("Add", index, np.array(front))
        pictures = op("Slice", op("Shape", own), [0], [1])
        ends = [
            [op("Expand", op.constant(places[None]), op("Concat", pictures, [len(places)], axis=0))]
            if len(places)
            else []
            for places in (np.arange(front), np.arange(every - behind, every))
        ]
        joined: ir.Value = op("Concat", *ends[0], own, *ends[1], axis=1)
        return joined

    def tell(self, carried: Mapping[str, ir.Value]) -> None:
        """Add what is handed on to the outputs, the method's own numbers last."""
        self.op.before, self.op.prefix = None, "tokenrt_step"
        dims = {part.name: part.dims for part in self.every}
        for name, value in {**self.outputs, **carried}.items():
            _output(self.op, name, value, dims.get(name, self.dims))


def _declared(graph: ir.Graph, dims: Dims) -> list[int | str]:
    """Dimensions as an input or output says them."""
    return [free_batch(graph) if size % BATCH == 0 else size for size in dims]


def _output(op: GraphOps, name: str, value: ir.Value, dims: Dims) -> None:
    """Add an output `present_NAME`."""
    told = op("Identity", value)
    told.name, told.shape = f"{PRESENT}{name}", ir.Shape(_declared(op.graph, dims))
    op.graph.outputs.append(told)


def whole_step(
    model: ir.Model, every: Sequence[Part], carried: Iterable[str], dims: Dims, interface: Interface
) -> Interface:
    """Let a copy of the model as it was hand on what its steps hand on: all tokens are computed, and none has rested.

    every: parts that name values of the copy; dims [B,N]. Returns the interface it has then.
    """
    graph = model.graph
    op = GraphOps(graph, None, opset(model), "tokenrt_step")
    values, before = {str(value.name): value for node in graph for value in node.outputs}, len(graph.outputs)
    for part in every:
        value = values[str(part.value.name)]
        rows = value if part.held is None else to_rows(op, value, part.held, dims[1])
        _output(op, part.name, part.for_host(op, rows, part.dims[part.axis]), part.dims)
    pictures = op("Slice", op("Shape", graph.outputs[before]), [0], [1])
    for name in carried:
        none = op("Expand", np.zeros((1, 1), np.float32), op("Concat", pictures, [dims[1]], axis=0))
        _output(op, name, none, dims)
    op.add_functions(model)
    return interface.with_outputs(
        (str(value.name), value.dtype or ir.DataType.FLOAT) for value in graph.outputs[before:]
    )
