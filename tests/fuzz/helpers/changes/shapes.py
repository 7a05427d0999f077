"""Shapes, cuts and joins in other forms: targets of Reshape, Slice and Gather and Split, the class token's Expand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.fuzz.helpers.edit import Edit, attribute, constant, dims, scalar


def _plain(node: ir.Node) -> list[int] | None:
    """The constant target of a Reshape, zeros filled in from its input where that is known."""
    target, sizes = constant(node.inputs[1]), dims(node.inputs[0])
    if target is None or attribute(node, "allowzero", 0) or sizes is None:
        return None
    return [int(number) for number in target]


def shape_arithmetic(edit: Edit) -> bool:
    """A constant Reshape target computed from the shape of what is reshaped."""
    found = [node for node in edit.nodes("Reshape") if _plain(node) is not None]
    for node in edit.some(found):
        x, sizes, target = node.inputs[0], dims(node.inputs[0]), _plain(node)
        shape = edit.op(node, "Shape", x)
        parts = []
        for axis, number in enumerate(target):
            source = (
                axis if number == 0 else next((i for i, size in enumerate(sizes) if size == number), None)
            )
            if source is None or (number and edit.drawn.random() < 0.3):
                parts.append(edit.ints(number))
                continue
            one = edit.op(node, "Gather", shape, edit.const(source, np.int64), axis=0)
            if edit.drawn.random() < 0.3:
                one = edit.op(
                    node, "Div", edit.op(node, "Mul", one, edit.const(2, np.int64)), edit.const(2, np.int64)
                )
            parts.append(edit.op(node, "Unsqueeze", one, edit.ints(0)))
        node.replace_input_with(1, edit.op(node, "Concat", *parts, axis=0))
    return bool(found)


def target_spelled(edit: Edit) -> bool:
    """A constant Reshape target with 0 for what stays, -1 for one axis, or as a Constant node."""
    found = [node for node in edit.nodes("Reshape") if _plain(node) is not None]
    for node in edit.some(found):
        sizes, target, result = dims(node.inputs[0]), _plain(node), dims(node.outputs[0])
        if result is None or len(result) != len(target):
            continue
        known = [size if size is not None else number for size, number in zip(result, target, strict=True)]
        free = [axis for axis, size in enumerate(result) if size is None]
        spelled = list(known)
        if not free and -1 not in spelled:
            spelled[edit.drawn.randrange(len(spelled))] = -1
        for axis in range(min(len(spelled), len(sizes))):
            same = (
                sizes[axis] == result[axis] if sizes[axis] is not None else result[axis] is None and axis == 0
            )
            if same and spelled[axis] > 0 and edit.drawn.random() < 0.5:
                spelled[axis] = 0
        made = np.asarray(spelled, np.int64)
        if edit.drawn.random() < 0.5:
            node.replace_input_with(1, edit.op(node, "Constant", value=ir.tensor(made)))
        else:
            node.replace_input_with(1, edit.const(made, np.int64))
    return bool(found)


def cut_by_split(edit: Edit) -> bool:
    """A Slice of one axis as one part of a Split."""
    found = []
    for node in edit.some(edit.nodes("Slice")):
        if len(node.inputs) < 4 or dims(node.inputs[0]) is None:
            continue
        given = [constant(value) for value in node.inputs[1:]]
        if any(value is None or value.size != 1 for value in given):
            continue
        start, end, axis, *step = (int(value.reshape(())) for value in given)
        length = dims(node.inputs[0])[axis]
        if length is None or step not in ([], [1]):
            continue
        start, end, _ = slice(start, end).indices(length)
        sizes = [start, end - start, length - end]
        kept = [(number, size) for number, size in enumerate(sizes) if size]
        if end <= start or len(kept) < 2:
            continue
        parts = edit.many(
            node, len(kept), "Split", node.inputs[0], edit.ints(*(size for _, size in kept)), axis=axis
        )
        edit.replace(node.outputs[0], parts[[number for number, _ in kept].index(1)])
        found.append(node)
    return bool(found)


def split_by_cut(edit: Edit) -> bool:
    """The parts of a Split as Slices, or as Gathers of ranges."""
    found = []
    for node in edit.some(edit.nodes("Split")):
        axis, sizes = attribute(node, "axis", 0), [dims(value) for value in node.outputs]
        if any(size is None or size[axis] is None for size in sizes):
            continue
        start = 0
        for value, size in zip(list(node.outputs), sizes, strict=True):
            end = start + size[axis]
            if edit.drawn.random() < 0.7:
                made = edit.op(
                    node, "Slice", node.inputs[0], edit.ints(start), edit.ints(end), edit.ints(axis)
                )
            else:
                made = edit.op(node, "Gather", node.inputs[0], edit.ints(*range(start, end)), axis=axis)
            edit.replace(value, made)
            start = end
        found.append(node)
    return bool(found)


def gather_by_cut(edit: Edit) -> bool:
    """One entry by Gather as Slice and Squeeze, or by Split."""
    found = []
    for node in edit.some(edit.nodes("Gather")):
        number, sizes = scalar(node.inputs[1]), dims(node.inputs[0])
        axis = attribute(node, "axis", 0)
        if (
            number is None
            or constant(node.inputs[1]).ndim
            or sizes is None
            or sizes[axis] is None
            or constant(node.inputs[0]) is not None
        ):
            continue
        place = int(number) % sizes[axis]
        cut = edit.op(node, "Slice", node.inputs[0], edit.ints(place), edit.ints(place + 1), edit.ints(axis))
        edit.replace(node.outputs[0], edit.op(node, "Squeeze", cut, edit.ints(axis)))
        found.append(node)
    return bool(found)


def cut_by_gather(edit: Edit) -> bool:
    """A Slice of one axis as a Gather of its places."""
    found = []
    for node in edit.some(edit.nodes("Slice")):
        given = [constant(value) for value in node.inputs[1:]]
        sizes = dims(node.inputs[0])
        if len(given) < 3 or sizes is None or any(value is None or value.size != 1 for value in given):
            continue
        start, end, axis, *step = (int(value.reshape(())) for value in given)
        if sizes[axis] is None:
            continue
        places = range(sizes[axis])[start : min(end, sizes[axis]) : step[0] if step else 1]
        if len(places) == 0:
            continue
        edit.replace(node.outputs[0], edit.op(node, "Gather", node.inputs[0], edit.ints(*places), axis=axis))
        found.append(node)
    return bool(found)


def class_token(edit: Edit) -> bool:
    """A constant repeated for each picture: by Expand, Tile, an Add of zeros, or Where."""
    found = []
    for node in edit.nodes("Expand"):
        table, sizes = constant(node.inputs[0]), dims(node.outputs[0])
        if (
            table is None
            or sizes is None
            or len(sizes) != 3
            or sizes[0] is not None
            or table.shape != (1, *sizes[1:])
        ):
            continue
        shape = node.inputs[1]
        way = edit.drawn.randrange(3)
        if way == 0:
            batch = edit.op(node, "Slice", shape, edit.ints(0), edit.ints(1), edit.ints(0))
            made = edit.op(
                node, "Tile", node.inputs[0], edit.op(node, "Concat", batch, edit.ints(1, 1), axis=0)
            )
        elif way == 1:
            full = [
                edit.op(node, "Slice", shape, edit.ints(0), edit.ints(1), edit.ints(0)),
                edit.ints(*table.shape[1:]),
            ]
            zeros = edit.op(node, "ConstantOfShape", edit.op(node, "Concat", *full, axis=0))
            made = edit.op(node, "Add", zeros, node.inputs[0])
        else:
            batch = edit.op(node, "Slice", shape, edit.ints(0), edit.ints(1), edit.ints(0))
            target = edit.op(node, "Concat", batch, edit.ints(1, table.shape[2]), axis=0)
            made = edit.op(node, "Expand", edit.const(table.reshape(-1)), target)
        edit.replace(node.outputs[0], made)
        found.append(node)
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (
        shape_arithmetic,
        target_spelled,
        cut_by_split,
        split_by_cut,
        gather_by_cut,
        cut_by_gather,
        class_token,
    )
}
