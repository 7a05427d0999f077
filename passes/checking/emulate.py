"""The form of a model that ONNX Runtime's CPU runs beside another one, whatever float types the two have.

Its kernels know no bfloat16. A bfloat16 tensor is a float32 tensor with numbers that bfloat16 has, so each is made
float32 and rounded after the node that gives it: what tensor cores do, which multiply bfloat16 and add up in float32.
Inputs of another float type than the other model's are cast at the door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.types import tell_types

FULL, BF16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16
FLOATS = frozenset({FULL, BF16, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


def comparable(before: ir.Model, after: ir.Model) -> tuple[bool, bool]:
    """Give both models, in place, a form that runs on the same float inputs; says which of them were changed."""
    changed = emulate(before), emulate(after)
    kinds = {str(value.name): value.dtype for value in before.graph.inputs if value.dtype in FLOATS}
    return changed[0], _cast_inputs(after, kinds) or changed[1]


def emulate(model: ir.Model) -> bool:
    """Turn a bfloat16 model, in place, into one of float32 that rounds after every node; False for any other."""
    graph = model.graph
    held = [value for value in (*graph.initializers.values(), *graph.inputs) if value.dtype == BF16]
    if not held and not any(map(_touches, graph.all_nodes())):
        return False
    tell_types(model)
    nodes = [node for node in graph.all_nodes() if _touches(node)]
    for value in held:
        value.dtype = FULL
        if value.const_value is not None:
            wide = np.asarray(value.const_value.numpy()).astype(np.float32)
            value.const_value = ir.tensor(wide, name=value.name)
        else:
            _round(graph, value, None)
    for node in nodes:
        _widen(node)
        for value in node.outputs:
            if value.dtype == BF16:
                value.dtype = FULL
                if node.graph is not None and node.op_type != "Constant":
                    _round(node.graph, value, node)
    return True


def _cast_inputs(model: ir.Model, kinds: Mapping[str, ir.DataType | None]) -> bool:
    """Let inputs take the types of `kinds`, with a cast to what the model wants behind."""
    graph, cast_any = model.graph, False
    for value in graph.inputs:
        kind, own = kinds.get(str(value.name)), value.dtype
        if kind is None or own not in FLOATS or own is None or kind == own or not len(graph):
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(own)}, name=f"{value.name}_as_wanted")
        made = cast.outputs[0]
        made.name, made.shape, made.dtype = cast.name, value.shape, own
        _turn(value, made, (cast,))
        graph.insert_before(graph[0], cast)
        value.dtype = kind
        cast_any = True
    return cast_any


def _touches(node: ir.Node) -> bool:
    return any(value.dtype == BF16 for value in node.outputs) or any(_names(node))


def _names(node: ir.Node) -> Iterable[str]:
    """Attributes of the node that name the type, or hold a tensor of it."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            found = attribute.as_tensor().dtype == BF16
        else:
            named = name in ("to", "type", "dtype") and attribute.type == ir.AttributeType.INT
            found = named and attribute.as_int() == int(BF16)
        if found:
            yield name


def _widen(node: ir.Node) -> None:
    for name in [*_names(node)]:
        attribute = node.attributes[name]
        if attribute.type == ir.AttributeType.INT:
            node.attributes[name] = ir.AttrInt64(name, int(FULL))
        else:
            wide = np.asarray(attribute.as_tensor().numpy()).astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))


def _round(graph: ir.Graph | ir.Function, value: ir.Value, giver: ir.Node | None) -> None:
    """Let what reads the value read it rounded to bfloat16; `giver` is None for an input."""
    narrow = ir.node("Cast", [value], attributes={"to": int(BF16)}, name=f"{value.name}_narrow")
    wide = ir.node("Cast", narrow.outputs, attributes={"to": int(FULL)}, name=f"{value.name}_rounded")
    for node, kind in ((narrow, BF16), (wide, FULL)):
        made = node.outputs[0]
        made.name, made.shape, made.dtype = node.name, value.shape, kind
    _turn(value, wide.outputs[0], (narrow,))
    if giver is None:
        graph.insert_before(graph[0], [narrow, wide])
    else:
        graph.insert_after(giver, [narrow, wide])


def _turn(value: ir.Value, made: ir.Value, keep: tuple[ir.Node, ...]) -> None:
    """Let every user of `value` but those in `keep` use `made`; as an output, `made` takes over the name."""
    for user, index in [*value.uses()]:
        if user not in keep:
            user.replace_input_with(index, made)
    if value.is_graph_output() and value.graph is not None:
        outputs = value.graph.outputs
        value.name, made.name = f"{value.name}_raw", value.name
        outputs[[*outputs].index(value)] = made
