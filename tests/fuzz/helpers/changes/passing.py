"""Operators put into a graph that hand on what they get: alone, or in pairs that undo each other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.fuzz.helpers.edit import FLOAT, Edit, dims


def identity(edit: Edit) -> bool:
    """In front of all readers of a value, or of one."""
    found = edit.floats(2, 3, 4)
    for value in edit.some(found)[:12]:
        if edit.drawn.random() < 0.5:
            edit.reroute(value, lambda before, x: edit.op(before, "Identity", x))
        else:
            node, index = edit.drawn.choice(list(value.uses()))
            if node.graph is edit.graph:
                node.replace_input_with(index, edit.op(node, "Identity", value))
    return bool(found)


def dropout(edit: Edit) -> bool:
    """Without training mode it changes nothing."""
    found = edit.floats(2, 3, 4)
    for value in edit.some(found)[:6]:
        edit.reroute(value, lambda before, x: edit.op(before, "Dropout", x))
    return bool(found)


def cast_pair(edit: Edit) -> bool:
    """To float and to float again, or over double."""
    found = edit.floats(2, 3, 4)
    between = edit.drawn.choice((FLOAT, ir.DataType.DOUBLE))
    for value in edit.some(found)[:6]:
        edit.reroute(
            value,
            lambda before, x: edit.op(
                before, "Cast", edit.op(before, "Cast", x, to=int(between)), to=int(FLOAT)
            ),
        )
    return bool(found)


def transpose_pair(edit: Edit) -> bool:
    found = edit.floats(2, 3, 4)
    for value in edit.some(found)[:4]:
        turn = list(range(len(value.shape)))
        edit.drawn.shuffle(turn)
        back = [turn.index(axis) for axis in range(len(turn))]
        edit.reroute(
            value,
            lambda before, x, turn=turn, back=back: edit.op(
                before, "Transpose", edit.op(before, "Transpose", x, perm=turn), perm=back
            ),
        )
    return bool(found)


def squeeze_pair(edit: Edit) -> bool:
    found = edit.floats(2, 3)
    for value in edit.some(found)[:4]:
        axis = edit.drawn.randint(0, len(value.shape))
        edit.reroute(
            value,
            lambda before, x, axis=axis: edit.op(
                before, "Squeeze", edit.op(before, "Unsqueeze", x, edit.ints(axis)), edit.ints(axis)
            ),
        )
    return bool(found)


def halves(edit: Edit) -> bool:
    """Cut in two along an axis, by Slice or by Split, and joined again."""
    found = edit.floats(3, 4)
    for value in edit.some(found)[:3]:
        axes = [axis for axis, size in enumerate(dims(value) or ()) if size is not None and size > 1]
        if not axes:
            continue
        axis = edit.drawn.choice(axes)
        length = dims(value)[axis]
        edit.reroute(value, lambda before, x, a=axis, n=length: _joined(edit, before, x, a, n))
    return bool(found)


def _joined(edit: Edit, before: ir.Node, x: ir.Value, axis: int, length: int) -> ir.Value:
    cut = edit.drawn.randint(1, length - 1)
    if edit.drawn.random() < 0.5:
        parts = list(edit.many(before, 2, "Split", x, edit.ints(cut, length - cut), axis=axis))
    else:
        parts = [
            edit.op(before, "Slice", x, edit.ints(start), edit.ints(end), edit.ints(axis))
            for start, end in ((0, cut), (cut, length))
        ]
    return edit.op(before, "Concat", *parts, axis=axis)


def flatten(edit: Edit) -> bool:
    """Flatten of [B,C] leaves it as it is."""
    found = edit.floats(2)
    for value in edit.some(found):
        edit.reroute(value, lambda before, x: edit.op(before, "Flatten", x, axis=1))
    return bool(found)


def add_zeros(edit: Edit) -> bool:
    """A number, or zeros of the last axis or of the last two."""
    found = edit.floats(3, 4)
    for value in edit.some(found)[:5]:
        sizes = dims(value)
        tails = [[], *([sizes[-1:]] if sizes[-1] else []), *([sizes[-2:]] if sizes[-1] and sizes[-2] else [])]
        zeros = edit.const(np.zeros(edit.drawn.choice(tails)))
        edit.reroute(value, lambda before, x, zeros=zeros: edit.op(before, "Add", x, zeros))
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (identity, dropout, cast_pair, transpose_pair, squeeze_pair, halves, flatten, add_zeros)
}
