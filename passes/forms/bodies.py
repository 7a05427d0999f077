"""Give what the reduction put into a model the form that suits GPUs: other bodies, and a mean over heads that is no product."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.functions import Change, label, nodes_of, operator_of
from tokenrt.passes.graph.model import opset
from tokenrt.passes.ops import DOMAIN, OPERATORS

REASON = "fewer launches where comparisons and sums fuse, and sorts do not"


def for_gpu(model: ir.Model) -> tuple[Change, ...]:
    """Exchange bodies in place. A function serves all nodes of its operator, so one that does not fit keeps the portable body."""
    changes: list[Change] = []
    for identifier in [key for key in model.functions if key[0] == DOMAIN and key[1] in OPERATORS]:
        operator = OPERATORS[identifier[1]]
        nodes = [node for node in nodes_of(model) if node.op_identifier() == identifier]
        if operator.gpu is None or not all(operator.gpu.fits(_attributes(node)) for node in nodes):
            continue
        function = ir.serde.deserialize_function(operator.function(opset(model), operator.gpu.body))
        if _operators(function) == _operators(model.functions[identifier]):
            continue  # It has been exchanged before.
        model.functions[identifier] = function
        changes += [
            Change(label(node), operator_of(node), "given the body for GPUs", REASON) for node in nodes
        ]
    changes += [change for node in [*model.graph] if (change := _mean(model.graph, node)) is not None]
    return tuple(changes)


def _mean(graph: ir.Graph, node: ir.Node) -> Change | None:
    """Write a mean over heads as a sum, which fuses with the keys it is made of; `head_mean` makes it a product for CPUs."""
    row = node.inputs[0].const_value if node.op_type == "MatMul" and node.inputs[0] is not None else None
    if row is None or not str(node.name).startswith("tokenrt_") or row.shape.rank() != 2 or row.shape[0] != 1:
        return None
    chain, share = _behind(node.inputs[1]), row.numpy()
    readers = [reader for reader, _ in node.outputs[0].uses()]
    keys = chain[-1].inputs[0] if chain and chain[-1].op_type == "Reshape" else None
    if (
        keys is None
        or not (share == share[0, 0]).all()
        or [reader.op_type for reader in readers] != ["Reshape"]
    ):
        return None
    cast = [step for step in chain if step.op_type == "Cast"]
    made = (
        [ir.node("Cast", [keys], {"to": cast[0].attributes["to"].as_int()}, name=f"{node.name}_float")]
        if cast
        else []
    )
    wide = made[-1].outputs[0] if made else keys
    axes, scale = (
        ir.Value(name=f"{node.name}_{name}", const_value=ir.tensor(array, name=f"{node.name}_{name}"))
        for name, array in (("axes", np.array([1])), ("scale", share[0, 0].reshape(())))
    )
    for value in (axes, scale):
        graph.register_initializer(value)
    made.append(ir.node("ReduceSum", [wide, axes], {"keepdims": 0}, name=f"{node.name}_sum"))
    made.append(ir.node("Mul", [made[-1].outputs[0], scale], name=f"{node.name}_mean"))
    for step in made:
        step.outputs[0].name = f"{step.name}_out"
    graph.insert_before(node, made)
    (reader,) = readers
    ir.convenience.replace_all_uses_with(reader.outputs, made[-1].outputs)
    for gone in (reader, node, *chain):
        if not any(value.uses() for value in gone.outputs):
            graph.remove(gone, safe=True)
    return Change(label(node), "MatMul", "mean over heads as a sum", REASON)


def _behind(value: ir.Value | None) -> list[ir.Node]:
    """The casts and the Reshape that a value comes of, the last one first."""
    chain: list[ir.Node] = []
    while (
        value is not None and (step := value.producer()) is not None and step.op_type in ("Cast", "Reshape")
    ):
        chain.append(step)
        if step.op_type == "Reshape":
            break
        value = step.inputs[0]
    return chain


def _operators(function: ir.Function) -> list[str]:
    return [node.op_type for node in function]


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
