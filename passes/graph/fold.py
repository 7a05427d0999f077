"""Fold what no input's content reaches: shape arithmetic, and masks that are the same for every image.

Such a value is evaluated for two batch sizes. Equal results are a constant; results that differ only in how
often they repeat along the batch are one row that broadcasting repeats anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.chance import RANDOM
from tokenrt.passes.graph.quantization import weights
from tokenrt.passes.graph.shapes import BATCH, Shapes

Array = np.ndarray[Any, np.dtype[Any]]

BATCHES = (5, 12)
"""Two batch sizes without common divisors: a constant under both does not depend on the batch."""

LARGEST = 2**24
"""Entries past which a value is left alone."""

BROADCASTING = frozenset("Add And Div Equal Max Min Mul Or Pow Sub Where".split())


def fold(model: ir.Model, shapes: Shapes) -> None:
    """Replace batch-independent values by constants, and drop masks that hide nothing; quantized weights stay."""
    graph = model.graph
    found: dict[ir.Value, tuple[Array, ...]] = {}
    kept = {*weights(graph).values()}
    for node in [*graph]:
        results = None if node in kept else _evaluate(node, found, shapes)
        if results is None:
            continue
        for value, arrays in zip(node.outputs, results, strict=True):
            found[value] = arrays
            if all(np.array_equal(arrays[0], other) for other in arrays[1:]) and not value.is_graph_output():
                value.replace_all_uses_with(_constant(graph, value, arrays[0]))
            elif all(
                len(array) == batch and (array == array[:1]).all()
                for batch, array in zip(BATCHES, arrays, strict=True)
                if array.ndim
            ):
                _broadcast(graph, value, arrays[0], found, shapes)
    for node in [*graph]:
        _drop_neutral(node, shapes)


def constants(graph: ir.Graph, shapes: Shapes, wanted: Iterable[ir.Value]) -> dict[ir.Value, Array]:
    """Those of the wanted values that are the same in every run. Changes nothing."""
    needed, todo = set[ir.Node](), [*wanted]
    ends = {*todo}
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in needed:
            needed.add(node)
            todo.extend(value for value in node.inputs if value is not None and node.op_type != "Shape")
    found: dict[ir.Value, tuple[Array, ...]] = {}
    for node in graph:
        results = _evaluate(node, found, shapes) if node in needed else None
        found.update(zip(node.outputs, results, strict=True) if results is not None else ())
    return {
        value: arrays[0]
        for value, arrays in found.items()
        if value in ends and all(np.array_equal(arrays[0], other) for other in arrays[1:])
    }


def _evaluate(
    node: ir.Node, found: dict[ir.Value, tuple[Array, ...]], shapes: Shapes
) -> list[tuple[Array, ...]] | None:
    """Outputs for every batch size, or None where an input's content is needed."""
    if (
        node.op_type in RANDOM
        or node.domain not in ("", "ai.onnx")
        or any(attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values())
    ):
        return None
    if node.op_type == "Shape":
        data = node.inputs[0]
        if data is None or not shapes.known(data):
            return None
        rank = len(shapes.of(data))
        start, end = (
            node.attributes[key].value if key in node.attributes else given
            for key, given in (("start", 0), ("end", rank))
        )
        sizes = [
            np.asarray([_at(size, batch) for size in shapes.of(data)[start:end]], np.int64)
            for batch in BATCHES
        ]
        return [tuple(sizes)]
    inputs: list[tuple[Array, ...] | None] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
        elif value in found:
            inputs.append(found[value])
        elif value.const_value is not None and value.const_value.size <= LARGEST:
            inputs.append((value.const_value.numpy(),) * len(BATCHES))
        else:
            return None
    known = [shapes.of(value) for value in node.outputs if shapes.known(value)]
    if any(np.prod([_at(size, max(BATCHES)) for size in dims]) > LARGEST for dims in known):
        return None
    return _run(node, inputs)


def _run(node: ir.Node, inputs: list[tuple[Array, ...] | None]) -> list[tuple[Array, ...]] | None:
    import onnx.reference

    runs: list[list[Array]] = []
    for place in range(len(BATCHES)):
        feeds = {
            str(value.name): arrays[place]
            for value, arrays in zip(node.inputs, inputs, strict=True)
            if value is not None and arrays is not None
        }
        try:
            results: Any = onnx.reference.ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
            runs.append(list(results))
        except Exception:  # the reference lacks a few operators; what it cannot evaluate stays as it is
            return None
    return [tuple(np.asarray(run[output]) for run in runs) for output in range(len(node.outputs))]


def _broadcast(
    graph: ir.Graph, value: ir.Value, array: Array, found: dict[ir.Value, tuple[Array, ...]], shapes: Shapes
) -> None:
    """Where another input brings the batch, one row is enough."""
    for node, index in [*value.uses()]:
        others = [other for place, other in enumerate(node.inputs) if place != index and other is not None]
        carries = any(
            other not in found
            and shapes.known(other)
            and shapes.of(other)[:1]
            and shapes.of(other)[0] % BATCH == 0
            for other in others
        )
        if (node.op_type in BROADCASTING and carries) or (node.op_type == "Attention" and index == 3):
            node.replace_input_with(index, _constant(graph, value, array[:1]))


def _drop_neutral(node: ir.Node, shapes: Shapes) -> None:
    """Adding zeros, or a mask that shows everything, changes nothing."""
    if (
        node.op_type == "Attention"
        and len(node.inputs) == 4
        and (mask := node.inputs[3]) is not None
        and mask.const_value is not None
    ):
        numbers = mask.const_value.numpy()
        if numbers.all() if numbers.dtype == np.bool_ else not numbers.any():
            node.resize_inputs(3)
    if node.op_type != "Add" or node.outputs[0].is_graph_output():
        return
    for here, other in ((0, 1), (1, 0)):
        value, kept = node.inputs[here], node.inputs[other]
        if (
            value is None
            or kept is None
            or value.const_value is None
            or not shapes.known(kept)
            or not shapes.known(node.outputs[0])
        ):
            continue
        same = shapes.of(kept) == shapes.of(node.outputs[0])
        if same and value.const_value.size <= LARGEST and not value.const_value.numpy().any():
            node.outputs[0].replace_all_uses_with(kept)
            return


def _at(size: int, batch: int) -> int:
    return size // BATCH * batch if size % BATCH == 0 else size


def _constant(graph: ir.Graph, value: ir.Value, array: Array) -> ir.Value:
    stem = f"{value.name}_folded"
    name = next(n for n in (stem, *(f"{stem}_{k}" for k in range(99))) if n not in graph.initializers)
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    constant = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(constant)
    return constant
