"""A model as a runtime computes it: functions inlined, and the bytes of every tensor for a number of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from tokenrt.passes.graph.functions import inline
from tokenrt.passes.graph.shapes import BATCH, Shapes, infer, named

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose output is their first input under another shape, which runtimes do not move."""


@dataclass(frozen=True)
class Opened:
    """A model without functions, and what inference knows of it."""

    model: ir.Model
    shapes: Shapes

    @classmethod
    def of(cls, model: ir.Model) -> Opened:
        """A copy is opened; the model stays as it is. Raises: ModelError, ShapeError."""
        copy = model.clone()
        inline(copy, reason="what is counted is what runs")
        return cls(copy, infer(copy, strict=False))

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def told(self) -> ir.Model:
        """The model with the shape of every tensor written into it, which runtimes do not find out behind every function."""
        for value in (value for node in self.graph for value in node.outputs):
            if self.shapes.known(value) and value.type is None:
                value.type = ir.TensorType(self.shapes.types[str(value.name)])
            if self.shapes.known(value):
                value.shape = ir.Shape(named(self.shapes.of(value)))
        return self.model

    @property
    def given(self) -> set[ir.Value]:
        """Inputs and constants: what no node makes."""
        return {*self.graph.inputs, *self.graph.initializers.values()}

    def bytes_of(self, value: ir.Value, batch: int) -> int:
        """Bytes of a tensor for so many images; 0 where its shape is known to the run alone."""
        if not self.shapes.known(value):
            return 0
        dims = self.shapes.of(value)
        kind = self.shapes.types.get(str(value.name), value.dtype)
        images = [size // BATCH * batch if size and size % BATCH == 0 else size for size in dims]
        return int(prod(images) * (4 if kind is None else kind.itemsize))

    def reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """What a node reads, inside its subgraphs too, each once."""
        inner = [
            each
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.GRAPH
            for each in attribute.as_graph().all_nodes()
        ]
        made = {value for each in inner for value in each.outputs}
        every = (value for each in (node, *inner) for value in each.inputs)
        yield from dict.fromkeys(value for value in every if value is not None and value not in made)
