"""Give what the reduction put into a model the form that suits GPUs: other bodies, and what fuses in place of what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import onnx_ir as ir

from tokenrt.errors import ModelError, ShapeError
from tokenrt.passes.forms.fused import fuse
from tokenrt.passes.forms.pairs import Refuses, sizes
from tokenrt.passes.forms.precision import INSERTED
from tokenrt.passes.graph.functions import Change, inline, label, nodes_of, operator_of
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import Dims, Shapes, infer
from tokenrt.passes.ops import DOMAIN, OPERATORS

REASON = "fewer launches where comparisons and sums fuse, and sorts do not"
DEAR = "its comparisons would cost more than the launches they save, or its shapes are not known"
ALONE = "it has no other; what is in it has its name in the engine"


def for_gpu(
    model: ir.Model, *, stay: Set[ir.Node] = frozenset(), top_k: int | None = None
) -> tuple[Change, ...]:
    """Replace, in place, every node of ours by the body that suits it; what is put in is named after the node.

    stay: the nodes that run as plugins. top_k: the largest K of a sort there; what would need a larger one is counted.
    """
    calls = [node for node in _calls(model) if node not in stay]
    if not calls and not any(str(node.name).startswith(INSERTED) for node in model.graph):
        return ()
    changes: list[Change] = []
    if calls:
        dims = shapes_of(model).dims
        changes = [_exchange(model, node, dims, top_k) for node in calls]
        given = {node.op_identifier() for node in calls}
        inline(model, lambda function: function.identifier() in given, reason=REASON)
        used = {node.op_identifier() for node in stay}
        for identifier in [key for key in model.functions if key[0] == DOMAIN and key not in used]:
            del model.functions[identifier]
    return (*changes, *fuse(model, shapes_of(model)))


def _calls(model: ir.Model) -> Iterator[ir.Node]:
    for node in nodes_of(model):
        if node.domain == DOMAIN and node.op_type in OPERATORS and node.op_identifier() in model.functions:
            yield node


def beyond_plugins(model: ir.Model, refuses: Refuses) -> dict[ir.Node, str]:
    """The nodes of ours that no plugin takes, each with the reason."""
    shapes = shapes_of(model)
    found = {}
    for node in nodes_of(model):
        if node.domain != DOMAIN or node.op_type not in OPERATORS:
            continue
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        if reason := refuses(node.op_type, [sizes(shapes, value) for value in node.inputs], attributes):
            found[node] = reason
    return found


def shapes_of(model: ir.Model) -> Shapes:
    """The shapes of a model, as far as they can be told."""
    try:
        return infer(model, strict=False)
    except (ShapeError, ModelError):
        return Shapes({}, {}, False)  # A body for GPUs is chosen where shapes are known.


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
        proto, reason = operator.function(opset(model), gpu.body(attributes, shapes)), REASON
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
