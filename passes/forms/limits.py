"""What a runtime takes only so far: the K of TopK, the version of the operators, the characters in names.

Works on the model it is given. Each change is (node, operator, action, reason).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.errors import UnsupportedError

Told = tuple[str, str, str, str]

UNSAFE = re.compile(r'["\\\x00-\x1f\x7f]')
"""Characters that break a JSON file whose texts are written without escaping."""

CHANGED = {"GroupNormalization": 21}
"""Operators whose meaning, not only their types, changed since opset 20, and when."""

STANDARD = ("", "ai.onnx")


def refuse_large_top_k(model: ir.Model, limit: int) -> None:
    """Refuse a TopK whose K is known and above `limit`, in functions too.

    Raises: UnsupportedError naming the node and its K.
    """
    for node, k in _counts(model):
        if k > limit:
            raise UnsupportedError(
                f"{node.op_type} node {node.name or node.outputs[0].name!r} takes the {k} largest, and the target's "
                f"TopK stops at {limit}: keep fewer tokens, or reduce by merging, which ranks what is removed"
            )


def plain_names(model: ir.Model) -> Iterator[Told]:
    """Replace quotes, backslashes and control characters in the names of nodes and inner values by `_`.

    Raises: UnsupportedError for an input or output of the model, whose name others rely on.
    """
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if UNSAFE.search(value.name or ""):
            raise UnsupportedError(
                f"the model's input or output {value.name!r} has a quote, backslash or control character in its "
                "name, which breaks the files the target writes: rename it where the model is exported"
            )
    nodes = [*model.graph.all_nodes(), *(node for function in model.functions.values() for node in function)]
    values = [value for node in nodes for value in node.outputs] + [*model.graph.initializers.values()]
    taken = {str(value.name) for value in values} | {str(node.name) for node in nodes}
    for node in nodes:
        if UNSAFE.search(node.name or ""):
            old, node.name = str(node.name), _fresh(str(node.name), taken)
            yield old, node.op_type, f"named {node.name}", REASON
    for value in values:
        if UNSAFE.search(value.name or ""):
            old, value.name = str(value.name), _fresh(str(value.name), taken)
            yield old, "tensor", f"named {value.name}", REASON


REASON = "the target writes names into JSON files without escaping them"


def lower_opset(model: ir.Model, limit: int) -> Iterator[Told]:
    """Declare opset `limit` for a newer model when every operator in it means the same there.

    Raises: UnsupportedError naming the first node that does not exist, or means something else, in `limit`.
    """
    declared = model.opset_imports.get("", 0)
    if declared <= limit:
        return
    for node in [*model.graph.all_nodes(), *(item for each in model.functions.values() for item in each)]:
        if node.domain in STANDARD and (why := _newer(node, declared, limit)):
            raise UnsupportedError(
                f"{node.op_type} node {node.name or node.outputs[0].name!r}: {why}, and the target takes opsets up "
                f"to {limit}; this model has {declared}: export it again with --opset {limit}"
            )
    model.opset_imports[""] = limit
    for function in model.functions.values():
        if function.opset_imports.get("", 0) > limit:
            function.opset_imports[""] = limit
    model.ir_version = min(model.ir_version, 10)
    told = f"declared opset {limit} instead of {declared}"
    yield (
        "model",
        "opset",
        told,
        "the target takes no newer one, and every operator here means the same in both",
    )


def _newer(node: ir.Node, declared: int, limit: int) -> str:
    """Why a node cannot be taken for one of opset `limit`; empty when it can."""
    import onnx.defs

    try:
        old = onnx.defs.get_schema(node.op_type, limit, "")
    except onnx.defs.SchemaError:
        return "the operator is newer"
    if CHANGED.get(node.op_type, 0) > limit:
        return f"its meaning changed in opset {CHANGED[node.op_type]}"
    if extra := [name for name in node.attributes if name not in old.attributes]:
        return f"its attribute {extra[0]} is newer"
    given = [index for index, value in enumerate(node.inputs) if value is not None]
    if given and given[-1] >= old.max_input:
        return f"its input {given[-1]} is newer"
    for index, value in enumerate([*node.inputs, *node.outputs]):
        output = index >= len(node.inputs)
        formal = old.outputs if output else old.inputs
        place = min(index - len(node.inputs) if output else index, len(formal) - 1)
        if value is None or value.dtype is None or place < 0:
            continue
        if spelled(value.dtype) not in formal[place].types:
            return f"it takes no {value.dtype.name} there"
    return ""


def spelled(dtype: ir.DataType) -> str:
    """The type as operator schemas write it."""
    names = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}
    return f"tensor({names.get(dtype, dtype.name.lower())})"


def _counts(model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
    """Every TopK with the K it is known to have; one in a function with the K of each call."""
    for node in model.graph.all_nodes():
        if node.op_type == "TopK" and (k := _constant(node.inputs[1])) is not None:
            yield node, k
        function = model.functions.get(node.op_identifier())
        if function is None:
            continue
        for inner in function.all_nodes():
            if inner.op_type != "TopK":
                continue
            k = _constant(inner.inputs[1])
            name = _reference(inner.inputs[1])
            if name is not None and name in node.attributes:
                k = max(node.attributes.get_ints(name) or [0])
            if k is not None:
                yield node, k


def _constant(value: ir.Value | None) -> int | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or not tensor.size else int(tensor.numpy().max())


def _reference(value: ir.Value | None) -> str | None:
    """The attribute of the function a constant takes its value from."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Constant":
        return None
    return next((item.ref_attr_name for item in producer.attributes.values() if item.is_ref()), None)


def _fresh(name: str, taken: set[str]) -> str:
    plain = UNSAFE.sub("_", name)
    unique, count = plain, 1
    while unique in taken:
        unique, count = f"{plain}_{count}", count + 1
    taken.add(unique)
    return unique
