"""Which values a value is computed from, and which tokens of a stream no input reaches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.chance import draws
from tokenrt.passes.graph.shapes import Shapes

Places = np.ndarray[Any, np.dtype[np.bool_]]


def readers(value: ir.Value) -> set[ir.Node]:
    """The nodes that read a value."""
    return {node for node, _ in value.uses()}


def learned(value: ir.Value, axis: int, shapes: Shapes) -> Places:
    """[N] of truth: which entries along `axis` depend on no graph input, as class, register and detection tokens."""
    return _learned(value, axis, shapes, {})


def _learned(value: ir.Value, axis: int, shapes: Shapes, known: dict[tuple[ir.Value, int], Places]) -> Places:
    """`known` holds what was answered before: a stream behind residual additions is reached on many ways."""
    if (value, axis) not in known:
        known[value, axis] = _own_learned(value, axis, shapes, known)
    return known[value, axis]


def _own_learned(
    value: ir.Value, axis: int, shapes: Shapes, known: dict[tuple[ir.Value, int], Places]
) -> Places:
    size = shapes.of(value)[axis]
    none = np.zeros(size, np.bool_)
    if not depends_on_input(value):
        return ~none
    node = value.producer()
    if node is None:
        return none
    data = [step for step in node.inputs if step is not None]
    if node.op_type == "Concat" and node.attributes["axis"].value % len(shapes.of(value)) == axis:
        return np.concatenate([_learned(step, axis, shapes, known) for step in data])
    bounds = [step.const_value.numpy().tolist() for step in data[1:] if step.const_value is not None]
    if node.op_type == "Slice" and len(bounds) == len(data) - 1:
        starts, ends = bounds[:2]
        axes = bounds[2] if len(bounds) > 2 else range(len(starts))
        strides = bounds[3] if len(bounds) > 3 else [1] * len(starts)
        axes = [number % len(shapes.of(value)) for number in axes]
        before = _learned(data[0], axis, shapes, known)
        if axis not in axes:
            return before
        place = axes.index(axis)
        return before[starts[place] : ends[place] : strides[place]]
    if node.op_type == "Transpose":
        rank = len(shapes.of(value))
        order = node.attributes["perm"].value if "perm" in node.attributes else list(range(rank - 1, -1, -1))
        return _learned(data[0], list(order)[axis], shapes, known)
    if node.op_type in ("Reshape", "Expand", "Unsqueeze", "Squeeze", "Gather"):
        return none
    same = [step for step in data if shapes.known(step) and len(shapes.of(step)) == len(shapes.of(value))]
    parts = [_learned(step, axis, shapes, known) for step in same if shapes.of(step)[axis] == size]
    return np.logical_and.reduce(parts) if parts else none


def depends_on_input(value: ir.Value) -> bool:
    """Whether any graph input's content (not only its shape) reaches `value`, or numbers that are drawn anew in each run."""
    seen: set[ir.Value] = set()
    todo = [value]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        producer = here.producer()
        if producer is None:
            if here.is_graph_input() and here.const_value is None:
                return True
        elif draws(producer):
            return True
        elif producer.op_type != "Shape":
            todo.extend(step for step in producer.inputs if step is not None)
    return False


def nested(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the branches of an If, in the body of a Loop or Scan, and in theirs."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def between(first: ir.Value, last: ir.Value) -> frozenset[ir.Node]:
    """Nodes on a path from `first` to `last`."""
    down: set[ir.Node] = set()
    todo = [node for node, _ in first.uses()]
    while todo:
        node = todo.pop()
        if node not in down:
            down.add(node)
            todo.extend(reader for value in node.outputs for reader, _ in value.uses())
    up: set[ir.Node] = set()
    producer = last.producer()
    todo = [producer] if producer is not None else []
    while todo:
        node = todo.pop()
        if node in down and node not in up:
            up.add(node)
            todo.extend(
                p for value in node.inputs if value is not None and (p := value.producer()) is not None
            )
    return frozenset(up)


def ancestors(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Everything computed from graph inputs that the values depend on, themselves included."""
    seen: set[ir.Value] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        if value in seen or value.const_value is not None:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is not None:
            todo.extend(step for step in producer.inputs if step is not None)
    return seen
