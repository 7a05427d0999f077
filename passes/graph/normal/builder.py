"""New nodes whose dimensions are known at once, and that undo the layout nodes in front of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.model import opset, substitute
from tokenrt.passes.graph.shapes import Dims, Shapes, target
from tokenrt.passes.ops.graph_backend import GraphOps

LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move or regroup axes and keep every entry."""

Array = np.ndarray[Any, np.dtype[Any]]


class Builder:
    """Makes nodes in a graph and remembers the dimensions of what they return; constants are computed at once.

    Nodes stand where they are made, so the graph is sorted once all of them are there. origin: the name of the node that
    they stand for, which theirs begin with.
    """

    origin: str = ""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.graph = model.graph
        self._types = shapes.types
        self._dims = dict(shapes.dims)
        self._op = GraphOps(model.graph, None, opset(model), "normal")
        self._numbers = itertools.count()

    def shapes(self) -> Shapes:
        """What is known now, the new values included; read it again after new ones."""
        return Shapes(self._dims, self._types, False)

    def known(self, value: ir.Value | None) -> bool:
        return value is not None and (value.const_value is not None or str(value.name) in self._dims)

    def dims(self, value: ir.Value) -> Dims:
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        return self._dims[str(value.name)]

    def make(self, dims: Sequence[int], kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """A node of one output with these dimensions."""
        for value in inputs:
            if isinstance(value, ir.Value) and value.dtype is None:
                value.type = ir.TensorType(self._types.get(str(value.name), ir.DataType.FLOAT))
        made: ir.Value = self._op(kind, *inputs, **attributes)
        self._dims[str(made.name)] = tuple(dims)
        maker = made.producer()
        if maker is not None and self.origin:
            maker.name = f"{self.origin}/{maker.name}"
        return made

    def again(self, node: ir.Node, inputs: Sequence[ir.Value | None], dims: Dims, **changed: Any) -> ir.Value:
        """A copy of a node of one output that is read: its name moves to the copy, which reads other inputs."""
        attributes = [*(attr for name, attr in node.attributes.items() if name not in changed)]
        attributes += [ir.AttrInt64(name, number) for name, number in changed.items()]
        outputs = [
            ir.Value(name=f"{value.name}_normal{next(self._numbers)}", type=value.type)
            for value in node.outputs
        ]
        made = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name)
        made.metadata_props.update(node.metadata_props)
        self.graph.append(made)
        self._dims[str(outputs[0].name)] = tuple(dims)
        return outputs[0]

    def reshape(self, value: ir.Value, goal: Sequence[int]) -> ir.Value:
        goal = tuple(goal)
        if self.dims(value) == goal:
            return value
        if value.const_value is not None:
            return self.constant(value.const_value.numpy().reshape(goal), value)
        producer = value.producer()
        if producer is not None and producer.op_type in LAYOUT - {"Transpose"}:
            before = producer.inputs[0]
            if before is not None and self.known(before) and prod(self.dims(before)) == prod(goal):
                return self.reshape(before, goal)
        return self.make(goal, "Reshape", value, np.asarray(target(goal), np.int64))

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        order = [*order]
        if order == sorted(order):
            return value
        if value.const_value is not None:
            return self.constant(value.const_value.numpy().transpose(order), value)
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and self.known(producer.inputs[0]):
            before = producer.inputs[0]
            assert before is not None
            own = permutation(producer, len(order))
            return self.transpose(before, [own[axis] for axis in order])
        dims = self.dims(value)
        return self.make([dims[axis] for axis in order], "Transpose", value, perm=order)

    def expand(self, value: ir.Value, goal: Sequence[int]) -> ir.Value:
        """Repeat axes of length 1; the others have 1 in the target, so that it holds no batch."""
        dims = self.dims(value)
        sizes = [1 if before == after else after for before, after in zip(dims, goal, strict=True)]
        return value if set(sizes) <= {1} else self.make(goal, "Expand", value, np.asarray(sizes, np.int64))

    def constant(self, array: Array, like: ir.Value) -> ir.Value:
        name = f"{like.name}_normal{next(self._numbers)}"
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand for `old`; layout nodes that read it and undo what made it are made anew."""
        if old.is_graph_output() and (new.is_graph_output() or new.producer() is None):
            new = self.make(self.dims(new), "Identity", new)
        substitute(self.graph, old, new)
        if str(new.name) not in self._dims:
            self._dims[str(new.name)] = self._dims[str(old.name)]
        made_by = new.producer()
        if made_by is None or made_by.op_type not in LAYOUT:
            return
        for reader in [node for node, index in new.uses() if node.op_type in LAYOUT and index == 0]:
            result = reader.outputs[0]
            turned = reader.op_type == "Transpose"
            if (
                turned != (made_by.op_type == "Transpose")
                or not self.known(result)
                or result.is_graph_output()
            ):
                continue
            if turned:
                short = self.transpose(new, permutation(reader, len(self.dims(new))))
            else:
                short = self.reshape(new, self.dims(result))
            self.replace(result, short)


def permutation(node: ir.Node, rank: int) -> list[int]:
    """The order of axes that a Transpose gives."""
    given = node.attributes.get("perm")
    return [*(given.value if given is not None else range(rank - 1, -1, -1))]
