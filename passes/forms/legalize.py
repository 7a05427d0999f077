"""Give a model the form a runtime accepts: which functions and Attention nodes stay, what replaces others.

What the runtime takes is data (`Accepts`, read from a target's profile). Everything here works on the model
it is given: pass a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.forms import limits
from tokenrt.passes.forms.bodies import beyond_plugins, for_gpu, shapes_of
from tokenrt.passes.forms.decompose import FORMS, Parts, decompose, read
from tokenrt.passes.forms.pairs import Refuses, join
from tokenrt.passes.graph.functions import (
    STANDARD,
    Change,
    describe,
    inline,
    label,
    nodes_of,
    operator_of,
)
from tokenrt.passes.ops import DOMAIN

PLUGIN = {"plugin_version": "1", "plugin_namespace": DOMAIN}
"""How TensorRT finds the plugin of a node; before 10.10 it does not read the node's domain."""


def takes_all(
    operator: str, shapes: Sequence[Sequence[int | None] | None], attributes: Mapping[str, Any]
) -> str:
    """A plugin library without limits."""
    return ""


@dataclass(frozen=True)
class Accepts:
    """What a runtime takes. The default takes everything."""

    functions: bool = True
    nested_attributes: bool = True
    """A function may pass one of its own attributes on to a function it calls."""
    optional_values: bool = True
    """A function may be called without some of its inputs or outputs."""
    empty_constants: bool = True
    """A constant without elements is taken, beside a convolution without bias too."""
    plugins: bool = True
    plugin_wins: bool = True
    """A node with a plugin and a function body runs the plugin."""
    plugin_refuses: Refuses = takes_all
    """What its plugin refuses runs by its function body."""
    contrib: bool = True
    """Operators outside the ONNX standard (`com.microsoft`) are known."""
    attention: frozenset[str] = frozenset({"fp32", "fp16", "bf16"})
    """Precisions the ONNX Attention operator is taken in."""
    attention_flat: bool = True
    """The 3-D form, heads side by side in the last axis, is taken."""
    attention_width: tuple[int, int] | None = None
    """Smallest and largest head width D."""
    attention_single_query_heads: int = 1
    """Fewest heads an Attention node with one query token may have."""
    attention_forms: frozenset[str] = frozenset(FORMS)
    """Optional parts of the Attention operator that are taken; `FORMS` lists them."""
    opset: int | None = None
    """Highest version of the standard operators."""
    top_k: int | None = None
    """Largest K of TopK."""
    gpu: bool = False
    """Compiles for a GPU and fuses: comparisons and sums join what they read, a sort or a scatter is a launch of its own."""
    any_names: bool = True
    """Names may hold quotes, backslashes and control characters."""


def legalize(
    model: ir.Model, accepts: Accepts, *, all_attention: bool = False, bare: bool = False
) -> tuple[Change, ...]:
    """Change `model` in place until `accepts` covers it.

    all_attention: leave no Attention node. bare: the plugin library is loaded there, so the tokenrt nodes are to
    run as plugins, but for those that their plugin would refuse.

    Raises: UnsupportedError naming the node that neither the runtime takes nor this pass can replace.
    """
    changes = list(as_plugins(model, accepts)) if bare else []
    changes += [
        *(for_gpu(model, top_k=accepts.top_k) if accepts.gpu and not bare else ()),
        *_functions(model, accepts),
        *_biases(model, accepts),
    ]
    wanted = [(node, *_verdict(node, accepts, all_attention)) for node in _attention_nodes(model)]
    if any(parts is None for _, parts, _ in wanted):
        changes += _inline_attention(model)
        _infer(model)
        wanted = [(node, *_verdict(node, accepts, all_attention)) for node in _attention_nodes(model)]
    names = {str(value.name) for value in _values(model)}
    for node, parts, reason in wanted:
        if parts is None:
            raise UnsupportedError(
                f"{describe(node)}: the head width cannot be told from the shapes in the model; "
                "run shape inference on it, or fix its dynamic inputs with --shape"
            )
        if reason:
            decompose(node, parts, names, describe(node))
            changes.append(Change(label(node), "Attention", "split into MatMul, Softmax and MatMul", reason))
    _refuse_foreign(model, accepts)
    if accepts.top_k is not None:
        limits.refuse_large_top_k(model, accepts.top_k)
    if not accepts.any_names:
        changes += [Change(*renamed) for renamed in limits.plain_names(model)]
    if accepts.opset is not None:
        changes += [Change(*lowered) for lowered in limits.lower_opset(model, accepts.opset)]
    return tuple(changes)


def _bare_nodes(model: ir.Model, reason: str) -> tuple[Change, ...]:
    """Take the bodies of the tokenrt nodes away, in place, and name their plugin on each node."""
    dropped = {identifier for identifier in model.functions if identifier[0] == DOMAIN}
    changes = []
    for node in nodes_of(model):
        if node.op_identifier() in dropped:
            changes.append(Change(label(node), operator_of(node), "left without a body", reason))
            for name, value in PLUGIN.items():
                node.attributes[name] = ir.AttrString(name, value)
    for identifier in dropped:
        del model.functions[identifier]
    return tuple(changes)


WINS = "the target would take a function body rather than the plugin"


def as_plugins(model: ir.Model, accepts: Accepts, reason: str = WINS) -> Iterator[Change]:
    """Give the tokenrt nodes, in place, the form in which they run as plugins.

    Matching and merging are joined, bodies go where they would win, and what no plugin takes becomes standard operators.
    reason: why bodies go, for the changes told.

    Raises: UnsupportedError where there are no plugins, and for a node without a body that no plugin takes.
    """
    if not accepts.plugins:
        raise UnsupportedError(
            "the target loads no plugin library, so the tokenrt nodes cannot run as plugins there: leave --plugin out"
        )
    yield from join(model, shapes_of(model), accepts.plugin_refuses)
    beyond = beyond_plugins(model, accepts.plugin_refuses)
    for node, reason in beyond.items():
        if node.op_identifier() not in model.functions:
            raise UnsupportedError(
                f"{describe(node)} has no function body in the model, and its plugin does not take it: {reason}; use the model "
                "as `tokenrt reduce` wrote it, not one lowered with --plugin"
            )
        yield Change(label(node), operator_of(node), "left to its function", reason)
    stay = {node for node in nodes_of(model) if node.domain == DOMAIN and node not in beyond}
    if beyond or accepts.gpu:
        yield from for_gpu(model, stay=stay, top_k=accepts.top_k)
    if not accepts.plugin_wins:
        yield from _bare_nodes(model, reason)


def _functions(model: ir.Model, accepts: Accepts) -> Iterator[Change]:
    if not accepts.functions:
        yield from inline(model, reason="the target takes no functions")
        return
    if not accepts.nested_attributes and (inner := _called_with_references(model)):
        yield from inline(
            model,
            lambda function: function.identifier() in inner,
            reason="a function hands it an attribute of its own, which crashes the target's parser",
        )
    if not accepts.optional_values and (partial := _called_in_part(model)):
        yield from inline(
            model,
            lambda function: function.identifier() in partial,
            reason="it is called without some inputs or outputs, which the target's parser refuses",
        )


def _biases(model: ir.Model, accepts: Accepts) -> Iterator[Change]:
    if accepts.empty_constants or not any(map(_holds_nothing, nodes_of(model))):
        return
    for node in [*model.graph.all_nodes()]:
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in STANDARD:
            continue
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            continue
        weight = node.inputs[1]
        if weight is None or weight.shape is None or weight.dtype is None or node.graph is None:
            continue
        channels = weight.shape[0]
        if node.op_type == "ConvTranspose" and isinstance(weight.shape[1], int):
            channels = weight.shape[1] * node.attributes.get_int("group", 1)
        if not isinstance(channels, int):
            continue
        zeros = ir.tensor(np.zeros(channels, weight.dtype.numpy()), dtype=weight.dtype)
        bias = ir.node("Constant", [], attributes={"value": zeros}, name=f"{label(node)}_zero_bias")
        bias.outputs[0].name = bias.name
        node.graph.insert_before(node, bias)
        node.resize_inputs(3)
        node.replace_input_with(2, bias.outputs[0])
        reason = "the target's parser takes its missing bias for the empty constants of the model"
        yield Change(label(node), operator_of(node), "given a bias of zeros", reason)


def _holds_nothing(node: ir.Node) -> bool:
    """Whether an attribute of the node is a list or tensor without elements."""
    lists = (ir.AttributeType.INTS, ir.AttributeType.FLOATS)
    return any(
        (attribute.type in lists and not len(attribute.value))
        or (attribute.type == ir.AttributeType.TENSOR and not attribute.as_tensor().size)
        for attribute in node.attributes.values()
        if not attribute.is_ref()
    )


def _called_with_references(model: ir.Model) -> set[ir.OperatorIdentifier]:
    return {
        node.op_identifier()
        for function in model.functions.values()
        for node in function.all_nodes()
        if node.op_identifier() in model.functions
        and any(attribute.is_ref() for attribute in node.attributes.values())
    }


def _called_in_part(model: ir.Model) -> set[ir.OperatorIdentifier]:
    partial = set()
    for node in nodes_of(model):
        function = model.functions.get(node.op_identifier())
        if function is not None and (
            len(node.inputs) < len(function.inputs)
            or any(value is None for value in node.inputs)
            or len(node.outputs) < len(function.outputs)
            or any(not value.name for value in node.outputs)
        ):
            partial.add(node.op_identifier())
    return partial


def _inline_attention(model: ir.Model) -> list[Change]:
    """Bring Attention nodes out of function bodies, where nothing tells their shapes."""

    def holds(function: ir.Function) -> bool:
        called = (model.functions.get(node.op_identifier()) for node in function.all_nodes())
        return any(map(_is_attention, function.all_nodes())) or any(map(holds, filter(None, called)))

    return inline(model, holds, reason="it holds an Attention node whose shapes are needed")


def _verdict(node: ir.Node, accepts: Accepts, every: bool) -> tuple[Parts | None, str]:
    """What is known of an Attention node, and why it has to go; an empty reason means it may stay."""
    if not every and accepts == Accepts():
        return Parts(), ""
    parts = read(node)
    if parts is None:
        return None, ""
    if every:
        return parts, "the builder found no kernel for it, or crashed where it was one node"
    if parts.precision not in accepts.attention:
        return parts, f"the target has no {parts.precision} kernel for it"
    if refused := parts.forms - accepts.attention_forms:
        return parts, f"the target does not take it with {', '.join(FORMS[form] for form in sorted(refused))}"
    if accepts.attention_width is not None:
        low, high = accepts.attention_width
        if not low <= parts.width <= high:
            return parts, f"the target has kernels for head widths {low} to {high}, this is {parts.width}"
    if parts.flat and not accepts.attention_flat:
        return parts, "the target takes queries, keys and values with an axis of heads only"
    if parts.queries == 1 and parts.heads < accepts.attention_single_query_heads:
        least = accepts.attention_single_query_heads
        return parts, f"the target takes one query token with {least} heads or more, this has {parts.heads}"
    return parts, ""


def _refuse_foreign(model: ir.Model, accepts: Accepts) -> None:
    for node in nodes_of(model):
        if node.domain in STANDARD or node.op_identifier() in model.functions:
            continue
        if node.domain == DOMAIN and not accepts.plugins:
            raise UnsupportedError(
                f"{describe(node)} has no function body in the model, and the target has no plugins: "
                "use the model as `tokenrt reduce` wrote it, not one lowered with --plugin"
            )
        if node.domain != DOMAIN and not accepts.contrib:
            raise UnsupportedError(
                f"{describe(node)} is not a standard ONNX operator and the target does not know it: use the "
                "model from before ONNX Runtime's transformer optimizer, which fuses standard operators into "
                "such nodes"
            )


def _infer(model: ir.Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _attention_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in nodes_of(model) if _is_attention(node)]


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "Attention" and node.domain in STANDARD


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in nodes_of(model):
        yield from node.outputs


def rows(changes: tuple[Change, ...]) -> Any:
    """The changes as a rich table, calls of one kind with one reason on one line."""
    from rich.table import Table

    groups: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        groups.setdefault((change.operator, change.action, change.reason), []).append(change.node)
    table = Table("operator", "nodes", "change", "why", box=None, pad_edge=False)
    for (operator, action, reason), nodes in groups.items():
        table.add_row(operator, nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes", action, reason)
    return table
