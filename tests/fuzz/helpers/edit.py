"""A graph under change: what its values are, new nodes beside old ones, and one value in place of another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT = ir.DataType.FLOAT


class Edit:
    """A model being changed by one change, with the draws of its own seed.

    Every value has its type and shape where ONNX can infer them.
    """

    def __init__(self, proto: onnx.ModelProto, seed: int) -> None:
        self.model = ir.from_proto(_inferred(proto))
        self.graph = self.model.graph
        self.drawn = random.Random(seed)
        self._names = {value.name for value in self.values()} | {node.name for node in self.graph.all_nodes()}
        self._count = 0

    def proto(self) -> onnx.ModelProto:
        """The changed model, without the shapes of what lies inside and without nodes that nobody reads."""
        unread = [node for node in self.graph if not self._read(node)]
        while unread:
            for node in unread:
                self.graph.remove(node, safe=True)
            unread = [node for node in self.graph if not self._read(node)]
        used = [
            value for value in self.graph.initializers.values() if value.uses() or value.is_graph_output()
        ]
        for name in set(self.graph.initializers) - {value.name for value in used}:
            if not self.graph.initializers[name].is_graph_input():
                del self.graph.initializers[name]
        proto = ir.to_proto(self.model)
        del proto.graph.value_info[:]
        return proto

    def _read(self, node: ir.Node) -> bool:
        return any(value.uses() or value.is_graph_output() for value in node.outputs)

    def values(self) -> Iterator[ir.Value]:
        yield from self.graph.inputs
        yield from self.graph.initializers.values()
        for node in self.graph.all_nodes():
            yield from node.outputs

    @property
    def opset(self) -> int:
        return self.model.opset_imports[""]

    def nodes(self, *kinds: str) -> list[ir.Node]:
        """Nodes of the main graph of these operators, in order."""
        return [node for node in self.graph if node.domain == "" and node.op_type in kinds]

    def some(self, places: Sequence[Any]) -> list[Any]:
        """At least one of the places, often all, in their order; none where there is none."""
        if not places:
            return []
        count = len(places) if self.drawn.random() < 0.4 else self.drawn.randint(1, len(places))
        chosen = set(self.drawn.sample(range(len(places)), count))
        return [place for number, place in enumerate(places) if number in chosen]

    def floats(self, *ranks: int) -> list[ir.Value]:
        """Float32 results of nodes with one of these ranks whose shapes are known, but for the batch, and that are read."""
        return [
            value
            for node in self.graph
            for value in node.outputs
            if value.dtype == FLOAT
            and value.shape is not None
            and len(value.shape) in ranks
            and value.uses()
            and constant(value) is None
        ]

    def name(self, hint: str) -> str:
        """A name that nothing has."""
        while (name := f"{hint}_{self._count}") in self._names:
            self._count += 1
        self._names.add(name)
        return name

    def const(self, array: Any, kind: Any = np.float32) -> ir.Value:
        """A new initializer."""
        made = np.asarray(array, kind)
        name = self.name("constant")
        tensor = ir.tensor(made, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(made.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        return self.const(numbers, np.int64)

    def op(
        self, before: ir.Node, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """The result of a new node in front of another."""
        return self.many(before, 1, kind, *inputs, domain=domain, **attributes)[0]

    def many(
        self,
        before: ir.Node,
        count: int,
        kind: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        made = ir.convenience.convert_attributes(attributes) if attributes else []
        outputs = [ir.Value(name=self.name(kind.lower())) for _ in range(count)]
        node = ir.Node(domain, kind, inputs, made, outputs=outputs, name=self.name("node"))
        self.graph.insert_before(before, node)
        return node.outputs

    def reduced(self, before: ir.Node, kind: str, x: ir.Value, axis: int, keep: bool = True) -> ir.Value:
        """A reduction over one axis, its axes an attribute or an input as the opset has it."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(before, kind, x, self.ints(axis), keepdims=int(keep))
        return self.op(before, kind, x, axes=[axis], keepdims=int(keep))

    def replace(
        self, old: ir.Value, new: ir.Value, keep: Callable[[ir.Node], bool] = lambda node: False
    ) -> None:
        """Let every reader of `old`, but for those to `keep`, read `new`; an output keeps its name."""
        if old.is_graph_output():
            old.name, new.name = self.name("was"), old.name
            new.type, new.shape = old.type, old.shape
            for index, value in enumerate(self.graph.outputs):
                if value is old:
                    self.graph.outputs[index] = new
        maker = new.producer()
        for node, index in list(old.uses()):
            if node is not maker and not keep(node):
                node.replace_input_with(index, new)

    def reroute(self, old: ir.Value, made: Callable[[ir.Node, ir.Value], ir.Value]) -> None:
        """Put what `made` makes of a value, in front of its first reader, in the value's place for every reader."""
        node = old.producer()
        assert node is not None
        after = next(iter(node.successors()), None) if not old.uses() else None
        readers = {reader for reader, _ in old.uses()}
        first = after or next(each for each in self.graph if self._inside(each, readers))
        known = set(self.graph)
        new = made(first, old)
        self.replace(old, new, keep=lambda reader: reader not in known and reader not in readers)

    def _inside(self, node: ir.Node, readers: set[ir.Node]) -> bool:
        """Whether a node, or one in a graph it holds, is among the readers."""
        if node in readers:
            return True
        graphs = [
            attribute.as_graph()
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.GRAPH
        ]
        return any(self._inside(inner, readers) for graph in graphs for inner in graph)

    def last(self) -> ir.Node:
        return self.graph[len(self.graph) - 1]


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.shape_inference

    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def constant(value: ir.Value | None) -> Array | None:
    """What a value holds where it is an initializer or the result of a Constant node, else None."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor().numpy()


def scalar(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def dims(value: ir.Value | None) -> list[int | None] | None:
    """The shape, None for the batch where it is free; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def single(value: ir.Value) -> bool:
    """Whether one node reads the value, once, and it is no output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def reader(value: ir.Value) -> ir.Node:
    return next(iter(value.uses()))[0]


def axis_of(value: ir.Value) -> Array | None:
    found = constant(value)
    return None if found is None else found.reshape(-1)
