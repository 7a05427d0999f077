"""Give what the reduction put into a model the form that suits GPUs: other bodies, and a mean over heads that is no product."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tokenrt.errors import ModelError, ShapeError
from tokenrt.passes.graph.functions import Change, inline, label, nodes_of, operator_of
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import Dims, infer
from tokenrt.passes.ops import DOMAIN, OPERATORS

REASON = "fewer launches where comparisons and sums fuse, and sorts do not"
DEAR = "its comparisons would cost more than the launches they save, or its shapes are not known"
ALONE = "it has no other; what is in it has its name in the engine"


def for_gpu(model: ir.Model, *, plugins: bool = False, top_k: int | None = None) -> tuple[Change, ...]:
    """Replace, in place, every node of ours by the body that suits it; what is put in is named after the node.

    plugins: the nodes run as plugins and stay. top_k: the largest K of a sort there; what would need a larger one is counted.
    """
    calls = [
        node
        for node in nodes_of(model)
        if node.domain == DOMAIN and node.op_type in OPERATORS and node.op_identifier() in model.functions
    ]
    if plugins:
        calls = []
    dims = _shapes(model) if calls else {}
    changes = [_exchange(model, node, dims, top_k) for node in calls]
    if calls:
        inline(model, lambda function: function.domain == DOMAIN, reason=REASON)
        for identifier in [key for key in model.functions if key[0] == DOMAIN]:
            del model.functions[identifier]
    changes += [change for node in [*model.graph] if (change := _mean(model.graph, node)) is not None]
    return tuple(changes)


def _shapes(model: ir.Model) -> Mapping[str, Dims]:
    try:
        return infer(model, strict=False).dims
    except (ShapeError, ModelError):
        return {}  # A body for GPUs is chosen where shapes are known.


def _exchange(model: ir.Model, node: ir.Node, dims: Mapping[str, Dims], top_k: int | None) -> Change:
    """Give a call a function of its own; its nodes and values have the name of the call in front."""
    operator, name = OPERATORS[node.op_type], label(node)
    shapes = [
        dims[str(value.name)][1:] for value in node.inputs if value is not None and str(value.name) in dims
    ]
    gpu, reason = operator.gpu, ALONE
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    too_large = top_k is not None and max(attributes.get("keep", (0,))) > top_k
    if gpu is not None and not too_large:
        suits = len(shapes) == len(node.inputs) and gpu.fits(attributes, shapes)
        gpu, reason = (gpu, reason) if suits else (None, DEAR)
    if gpu is None:
        proto = ir.serde.serialize_function(model.functions[node.op_identifier()])
    else:
        proto, reason = operator.function(opset(model), gpu.body), REASON
    function = ir.serde.deserialize_function(proto)
    function.overload = node.overload = name
    for step in function.all_nodes():
        for value in step.outputs:
            value.name = f"{name}/{str(value.name).removeprefix(f'{operator.name}_')}"
        step.name = step.outputs[0].name
    model.functions[node.op_identifier()] = function
    return Change(
        name, operator_of(node), f"given the {'portable body' if gpu is None else 'body for GPUs'}", reason
    )


def _mean(graph: ir.Graph, node: ir.Node) -> Change | None:
    """Write a mean over heads as a sum, which fuses with the keys it is made of; `head_mean` makes it a product for CPUs."""
    row = node.inputs[0].const_value if node.op_type == "MatMul" and node.inputs[0] is not None else None
    if row is None or not str(node.name).startswith("tokenrt_") or row.shape.rank() != 2 or row.shape[0] != 1:
        return None
    chain, share = _chain(node.inputs[1]), row.numpy()
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


def _chain(value: ir.Value | None) -> list[ir.Node]:
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
