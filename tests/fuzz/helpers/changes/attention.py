"""Scores, scales, masks and heads of an attention in other forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tests.fuzz.helpers.edit import Edit, dims, reader, scalar, single

POINTWISE = ("Add", "Mul", "Div", "Sub", "Where", "Cast", "Identity", "Dropout", "Sum")
LAYOUT = ("Transpose", "Reshape", "Identity", "Squeeze")


@dataclass(frozen=True)
class Heads:
    """One attention: its softmax, the product of queries and keys in front, and that with the values behind."""

    softmax: ir.Node
    product: ir.Node
    weighted: ir.Node


def _heads(edit: Edit) -> Iterator[Heads]:
    for softmax in edit.nodes("Softmax"):
        product = _product(softmax.inputs[0])
        result = softmax.outputs[0]
        while single(result) and reader(result).op_type in ("Where", "Dropout", "Identity", "Cast", "Add"):
            result = reader(result).outputs[0]
        below = [node for node, index in result.uses() if node.op_type == "MatMul" and index == 0]
        if product is not None and len(below) == 1 and len(dims(product.inputs[0]) or ()) == 4:
            yield Heads(softmax, product, below[0])


def _product(value: ir.Value | None) -> ir.Node | None:
    """The product that pointwise operators of one shape lead back to."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type == "MatMul":
        return node
    side = _side(node) if node.op_type in POINTWISE else None
    return _product(side) if side is not None else None


def _side(node: ir.Node) -> ir.Value | None:
    """The input of a pointwise operator that comes of the scores."""
    same = (value for value in node.inputs if value is not None and dims(value) == dims(node.outputs[0]))
    return next((value for value in same if _product(value) is not None), None)


def softmax_axis(edit: Edit) -> bool:
    """The last axis counted from the front, or from the end."""
    found = [node for node in edit.nodes("Softmax") if dims(node.inputs[0])]
    for node in edit.some(found):
        given = node.attributes["axis"].value if "axis" in node.attributes else -1
        rank = len(dims(node.inputs[0]))
        node.attributes["axis"] = ir.AttrInt64("axis", given - rank if given >= 0 else given + rank)
    return bool(found)


def scale_moved(edit: Edit) -> bool:
    """The scale on queries, keys or scores, or its root on both sides."""
    found = []
    for heads in edit.some(list(_heads(edit))):
        scale = 1.0
        sides = [
            _scales(heads.softmax.inputs[0], POINTWISE),
            *(_scales(side, LAYOUT) for side in heads.product.inputs),
        ]
        for node, number in (pair for side in sides for pair in side):
            scale *= number if node.op_type == "Mul" else 1 / number
            edit.replace(node.outputs[0], node.inputs[0])
        where, product = edit.drawn.choice("query key both scores divided".split()), heads.product
        for index, side in enumerate(("query", "key")):
            if where in (side, "both"):
                factor = edit.const(scale**0.5 if where == "both" else scale)
                product.replace_input_with(index, edit.op(product, "Mul", product.inputs[index], factor))
        if where == "scores":
            edit.reroute(
                product.outputs[0], lambda before, x, s=scale: edit.op(before, "Mul", x, edit.const(s))
            )
        if where == "divided":
            edit.reroute(
                product.outputs[0], lambda before, x, s=scale: edit.op(before, "Div", x, edit.const(1 / s))
            )
        found.append(heads)
    return bool(found)


def _scales(value: ir.Value, through: tuple[str, ...]) -> list[tuple[ir.Node, float]]:
    """Products and quotients with a number behind these operators: of those around an added mask, the ones in front of it."""
    made: list[tuple[ir.Node, float]] = []
    while (node := value.producer()) is not None and single(value):
        number = scalar(node.inputs[1]) if node.op_type in ("Mul", "Div") else None
        if number is not None and number > 0:
            made.append((node, number))
            value = node.inputs[0]
        elif node.op_type in LAYOUT and node.op_type in through:
            value = node.inputs[0]
        elif node.op_type in ("Add", "Sum") and node.op_type in through and (side := _side(node)) is not None:
            made, value = [], side
        elif node.op_type != "MatMul" and through is POINTWISE:
            return []
        else:
            break
    return made


def where_guard(edit: Edit) -> bool:
    """Weights that are no number as zero, as torch guards rows in which all is hidden; or scores kept by a true condition."""
    found = list(_heads(edit))
    for heads in edit.some(found):
        if edit.drawn.random() < 0.5:
            edit.reroute(
                heads.softmax.outputs[0],
                lambda before, x: edit.op(before, "Where", edit.op(before, "IsNaN", x), edit.const(0.0), x),
            )
        else:
            shape = edit.drawn.choice(([1], [1, 1, 1, 1]))
            edit.reroute(
                heads.softmax.inputs[0],
                lambda before, x, s=shape: edit.op(
                    before, "Where", edit.const(np.ones(s), np.bool_), x, edit.const(-1e9)
                ),
            )
    return bool(found)


def zero_mask(edit: Edit) -> bool:
    """Zeros added to the scores."""
    found = list(_heads(edit))
    for heads in edit.some(found):
        scores = heads.softmax.inputs[0]
        rows, keys = dims(scores)[-2:]
        shape = edit.drawn.choice(([keys], [1, 1, 1, keys], [1, 1, rows, keys], [1, 1, 1, 1], []))
        zeros = edit.const(np.zeros(shape))
        edit.reroute(scores, lambda before, x, zeros=zeros: edit.op(before, "Add", x, zeros))
    return bool(found)


def folded_heads(edit: Edit) -> bool:
    """Products of [B*H,N,D], with a view to [B,H,N,N] between them."""
    found = list(_heads(edit))
    for heads in edit.some(found):
        for node in (heads.product, heads.weighted):
            sizes = [dims(value) for value in (*node.inputs, node.outputs[0])]
            if any(size is None or len(size) != 4 or None in size[1:] for size in sizes):
                return False
            left, right = (
                edit.op(node, "Reshape", value, edit.ints(-1, *size[2:]))
                for value, size in zip(node.inputs, sizes, strict=False)
            )
            made = edit.op(
                node, "Reshape", edit.op(node, "MatMul", left, right), edit.ints(-1, *sizes[2][1:])
            )
            edit.replace(node.outputs[0], made)
    return bool(found)


def turned_keys(edit: Edit) -> bool:
    """A Transpose as two, one after the other."""
    found = [
        node
        for node in edit.nodes("Transpose")
        if "perm" in node.attributes and len(node.attributes["perm"].value) > 2
    ]
    for node in edit.some(found):
        wanted = list(node.attributes["perm"].value)
        first = list(range(len(wanted)))
        edit.drawn.shuffle(first)
        second = [first.index(axis) for axis in wanted]
        made = edit.op(node, "Transpose", edit.op(node, "Transpose", node.inputs[0], perm=first), perm=second)
        edit.replace(node.outputs[0], made)
    return bool(found)


def joined_transposes(edit: Edit) -> bool:
    """Two Transposes as one."""
    found = []
    for node in edit.some(edit.nodes("Transpose")):
        above = node.inputs[0].producer()
        if (
            above is None
            or above.op_type != "Transpose"
            or "perm" not in node.attributes
            or "perm" not in above.attributes
        ):
            continue
        first = list(above.attributes["perm"].value)
        perm = [first[axis] for axis in node.attributes["perm"].value]
        edit.replace(node.outputs[0], edit.op(node, "Transpose", above.inputs[0], perm=perm))
        found.append(node)
    return bool(found)


def einsum(edit: Edit) -> bool:
    """The products as Einsum."""
    found = list(_heads(edit))
    for heads in edit.some(found):
        for node, equation in ((heads.product, "bhnd,bhdm->bhnm"), (heads.weighted, "bhnm,bhmd->bhnd")):
            edit.replace(node.outputs[0], edit.op(node, "Einsum", *node.inputs, equation=equation))
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (
        softmax_axis,
        scale_moved,
        where_guard,
        zero_mask,
        folded_heads,
        turned_keys,
        joined_transposes,
        einsum,
    )
}
