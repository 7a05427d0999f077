"""Sums, products and quotients written another way."""

from __future__ import annotations

import numpy as np

from tests.fuzz.helpers.edit import FLOAT, Edit, constant, dims, scalar, single


def _float(edit: Edit, *kinds: str) -> list:
    return [node for node in edit.nodes(*kinds) if node.outputs[0].dtype == FLOAT and node.outputs[0].uses()]


def commuted(edit: Edit) -> bool:
    found = _float(edit, "Add", "Mul")
    for node in edit.some(found):
        left, right = node.inputs
        node.replace_input_with(0, right)
        node.replace_input_with(1, left)
    return bool(found)


def regrouped_adds(edit: Edit) -> bool:
    """(a + b) + c as a + (b + c)."""
    found = []
    for node in edit.some(_float(edit, "Add")):
        side = next(
            (
                i
                for i in (0, 1)
                if (p := node.inputs[i].producer()) and p.op_type == "Add" and single(node.inputs[i])
            ),
            None,
        )
        if side is None:
            continue
        a, b = node.inputs[side].producer().inputs
        c = node.inputs[1 - side]
        if edit.drawn.random() < 0.5:
            a, b = b, a
        inner = edit.op(node, "Add", b, c)
        node.replace_input_with(0, a)
        node.replace_input_with(1, inner)
        found.append(node)
    return bool(found)


def split_adds(edit: Edit) -> bool:
    """a + b as (a + b/2) + b/2."""
    found = _float(edit, "Add")
    for node in edit.some(found)[:4]:
        side = edit.drawn.randrange(2)
        half = edit.op(node, "Mul", node.inputs[side], edit.const(0.5))
        inner = edit.op(node, "Add", node.inputs[1 - side], half)
        node.replace_input_with(0, inner)
        node.replace_input_with(1, half)
    return bool(found)


def sums(edit: Edit) -> bool:
    """Add as Sum, of three where one Add feeds another."""
    found = _float(edit, "Add")
    for node in edit.some(found):
        parts = list(node.inputs)
        for value in node.inputs:
            maker = value.producer()
            if maker is not None and maker.op_type == "Add" and single(value) and edit.drawn.random() < 0.5:
                parts.remove(value)
                parts += maker.inputs
        edit.replace(node.outputs[0], edit.op(node, "Sum", *parts))
    return bool(found)


def subtracted(edit: Edit) -> bool:
    """a + b as a - (-b), the minus in a constant where b is one."""
    found = _float(edit, "Add")
    for node in edit.some(found)[:5]:
        side = next((i for i in (0, 1) if constant(node.inputs[i]) is not None), edit.drawn.randrange(2))
        array = constant(node.inputs[side])
        minus = edit.const(-array) if array is not None else edit.op(node, "Neg", node.inputs[side])
        edit.replace(node.outputs[0], edit.op(node, "Sub", node.inputs[1 - side], minus))
    return bool(found)


def subtracted_branch(edit: Edit) -> bool:
    """x + (y W + b) as x - (y (-W) - b), in residual sums."""
    found = []
    for node in edit.some(_float(edit, "Add")):
        for side in (0, 1):
            bias = node.inputs[side].producer()
            if bias is None or bias.op_type != "Add" or not single(node.inputs[side]):
                continue
            product = next(
                (v for v in bias.inputs if (p := v.producer()) and p.op_type == "MatMul" and single(v)), None
            )
            offset = next((v for v in bias.inputs if constant(v) is not None), None)
            if product is None or offset is None:
                continue
            maker = product.producer()
            weight = constant(maker.inputs[1])
            if weight is None:
                continue
            negative = edit.op(bias, "MatMul", maker.inputs[0], edit.const(-weight))
            negative = edit.op(bias, "Add", negative, edit.const(-constant(offset)))
            edit.replace(node.outputs[0], edit.op(node, "Sub", node.inputs[1 - side], negative))
            found.append(node)
            break
    return bool(found)


def quotients(edit: Edit) -> bool:
    """x / c as x times 1/c and back; x times the reciprocal of y as x / y and back."""
    found = []
    for node in edit.some(_float(edit, "Div", "Mul")):
        left, right = node.inputs
        number, maker = scalar(right), right.producer()
        if number:
            kind = "Mul" if node.op_type == "Div" else "Div"
            made = edit.op(node, kind, left, edit.const(np.reshape(1 / number, constant(right).shape)))
        elif node.op_type == "Div" and constant(right) is None:
            made = edit.op(node, "Mul", left, edit.op(node, "Reciprocal", right))
        elif maker is not None and maker.op_type == "Reciprocal":
            made = edit.op(node, "Div", left, maker.inputs[0])
        else:
            continue
        edit.replace(node.outputs[0], made)
        found.append(node)
    return bool(found)


def means(edit: Edit) -> bool:
    """A mean as a sum over the count, with the axis kept and squeezed, or counted from the end."""
    found = []
    for node in edit.some(_float(edit, "ReduceMean")):
        given = node.attributes.get("axes")
        axes = (
            list(given.value)
            if given is not None
            else list(constant(node.inputs[1]).reshape(-1))
            if len(node.inputs) > 1
            else []
        )
        sizes = dims(node.inputs[0])
        if len(axes) != 1 or sizes is None or sizes[int(axes[0])] is None:
            continue
        axis, keep = (
            int(axes[0]),
            bool(node.attributes["keepdims"].value) if "keepdims" in node.attributes else True,
        )
        x, way = node.inputs[0], edit.drawn.randrange(3)
        if way == 0:
            made = edit.op(
                node, "Mul", edit.reduced(node, "ReduceSum", x, axis, keep), edit.const(1 / sizes[axis])
            )
        elif way == 1 and not keep:
            made = edit.op(node, "Squeeze", edit.reduced(node, "ReduceMean", x, axis), edit.ints(axis))
        else:
            made = edit.reduced(
                node, "ReduceMean", x, axis - len(sizes) if axis >= 0 else axis + len(sizes), keep
            )
        edit.replace(node.outputs[0], made)
        found.append(node)
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (
        commuted,
        regrouped_adds,
        split_adds,
        sums,
        subtracted,
        subtracted_branch,
        quotients,
        means,
    )
}
