"""Operators that move, split, join or pick axes, and the integer constants in them that hold a token count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.marks import (
    Edit,
    Mark,
    Marks,
    ReduceAuxiliary,
    Reorder,
    SetInput,
    Shorten,
    Step,
    spans,
)
from tokenrt.passes.analysis.rules.beside import beside, for_attention
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes

END = 2**31 - 1


def transpose(step: Step) -> None:
    rank = step.rank(0)
    order = list(step.attribute("perm", range(rank - 1, -1, -1)))
    step.set(mark.at(order.index(mark.axis)) for mark in step.marks[0])


def reshape(step: Step) -> None:
    """An axis is a stride and a length; it survives where one output axis holds exactly that stride and length.

    Tokens may come to lie on two axes that follow each other, rows and columns of a grid, and back on one. Where they leave in
    whole units, those of a unit may come to lie side by side in the channels.
    """
    source, goal = step.dims(0), step.out_dims()
    marks = [mark for span in spans(step.marks[0]) for mark in regroup(step, span, source, goal)]
    step.set(marks)
    if step.node.op_type == "Reshape" and any(mark.stage for mark in marks):
        step.edit(SetInput(step.node, 1, lambda counts: resized(goal, marks, counts)))


def regroup(step: Step, span: Marks, source: Dims, goal: Dims) -> Marks:
    """Where a token axis ends after a Reshape, with the axes folded around it."""
    found = moved(span, source, goal, step.tokens) or _joined(step, span, source, goal)
    if found is None:
        raise step.block("it splits the token axis into a grid or into windows", "grid")
    return found


def moved(span: Marks, source: Dims, goal: Dims, tokens: int) -> Marks | None:
    """The marks of a token axis of `source` on `goal`, which holds the same entries; None where the axis falls apart."""
    first, last = span[0], span[-1]
    if first.lead:
        kept = (axis for axis, size in enumerate(goal) if (size, prod(goal[axis:])) == _whole(first, source))
        return next(((first.at(axis),) for axis in kept), None)
    length = first.entries(tokens)
    stride = prod(source[last.axis + 1 :]) * last.inner
    for axis, size in enumerate(goal):
        right = prod(goal[axis + 1 :])
        if right and size % length == 0 and stride % right == 0 and (right * size) % (stride * length) == 0:
            outer = right * size // (stride * length)
            return (replace(first, axis=axis, outer=outer, inner=stride // right, grid=None, part=0),)
    for axis, (rows, columns) in enumerate(pairwise(goal)):
        square = rows > 1 < columns and rows * columns == length and first.single and not first.joint
        if square and prod(goal[axis + 2 :]) == stride:
            lead = replace(first, axis=axis, outer=1, inner=1, grid=(rows, columns), part=0)
            return lead, replace(lead, axis=axis + 1, part=1)
    return None


def _whole(mark: Mark, source: Dims) -> tuple[int, int]:
    """The entries of an axis that has to stay as it is, and those from there on."""
    return source[mark.axis], prod(source[mark.axis :])


def _joined(step: Step, span: Marks, source: Dims, goal: Dims) -> Marks | None:
    """The mark of an axis of units that leave as a whole, [N,C] as [N/U, U*C]; None where it is none."""
    (mark, *rest) = span
    stride, size = prod(source[mark.axis + 1 :]), goal[-2] if len(goal) > 1 else 0
    length = mark.entries(step.tokens)
    alone = mark.outer == mark.inner == 1 and not (rest or mark.grid or mark.offset or mark.joint)
    if not alone or not size or length % size:
        return None
    unit = length // size * mark.unit
    alike = prod(goal[:-2]) == prod(source[: mark.axis]) and goal[-1] == length // size * stride
    whole = mark.order is None and unit > mark.unit and step.unit % unit == 0
    return (replace(mark, axis=len(goal) - 2, unit=unit),) if alike and whole else None


def resized(goal: Dims, marks: Sequence[Mark], counts: Sequence[int]) -> list[int]:
    """The Reshape target once each marked axis has the length its count gives; -1 for the batch."""
    sizes = list(goal)
    for mark in marks:
        sizes[mark.axis] = mark.size(counts)
    return [-1 if size % BATCH == 0 else size for size in sizes]


def expand(step: Step) -> None:
    """Broadcasting keeps marked axes; the target's entry for them becomes 1."""
    goal, shift = step.out_dims(), len(step.out_dims()) - step.rank(0)
    marks = [mark.at(mark.axis + shift) for mark in step.marks[0]]
    step.set(marks)
    if not any(mark.stage for mark in marks):
        return
    source = (1,) * shift + step.dims(0)
    sizes = [1 if before == after else after for before, after in zip(source, goal, strict=True)]
    if any(size % BATCH == 0 for size in sizes):
        raise step.block("it repeats along a dynamic batch; fix the batch with --shape")
    step.edit(SetInput(step.node, 1, fixed(sizes)))


def squeeze(step: Step) -> None:
    rank = step.rank(0)
    gone = (
        {axis % rank for axis in step.integers(1)}
        if step.has(1)
        else {a for a, size in enumerate(step.dims(0)) if size == 1}
    )
    step.set(mark.at(mark.axis - sum(axis < mark.axis for axis in gone)) for mark in step.marks[0])


def unsqueeze(step: Step) -> None:
    rank = len(step.out_dims())
    new = {axis % rank for axis in step.integers(1)}
    old = [axis for axis in range(rank) if axis not in new]
    step.set(mark.at(old[mark.axis]) for mark in step.marks[0])


def concat(step: Step) -> None:
    """Along the token axis, protected tokens may come back in front, others beside them for an attention; else inputs agree.

    What stands in front of tokens that another axis is folded into, leads them.
    """
    rank = len(step.out_dims())
    axis = step.attribute("axis", 0) % rank
    along = [index for index in range(len(step.marks)) if step.mark(index, axis)]
    merged = step.merge((mark.axis, mark) for marks in step.marks for mark in marks if mark.axis != axis)
    if along:
        last = len(step.marks) - 1
        mark = step.mark(last, axis)
        before = sum(step.dims(index)[axis] for index in range(last))
        folded = mark is not None and mark.grid is None and mark.inner * mark.outer > 1 and not mark.lead
        if along == [last] and mark is not None and folded and mark.single and mark.offset in (0, before):
            merged.append(replace(mark, lead=before))
        elif along == [last] and mark is not None and mark.plain and before <= mark.offset:
            merged.append(replace(mark, offset=mark.offset - before))
        else:
            mark = beside(step.node, step.marks, step.shapes) if for_attention(step.node) else None
            if mark is None:
                raise step.block("it joins tokens with other tokens along the token axis", "grid")
            merged.append(mark)
    for index in range(len(step.marks)):
        own = {mark.axis for mark in step.marks[index]}
        axes = tuple(
            (m.axis, m)
            for m in merged
            if m.axis != axis and m.axis not in own and step.dims(index)[m.axis] != 1
        )
        if axes and any(mark.stage for _, mark in axes):
            step.edit(_beside(step, index, axes))
    step.set(merged)


def _beside(step: Step, index: int, axes: tuple[tuple[int, Mark], ...]) -> Edit:
    """How an input with an entry for each token follows those of the others."""
    ((axis, mark), *more) = axes
    if mark.outer == mark.inner == 1:
        return ReduceAuxiliary(step.node, index, axes, "place")
    value = step.node.inputs[index]
    if more or value is None or not repeated(value, mark.at(axis), step.tokens, step.shapes):
        raise step.block(
            f"input {index} has an entry for each token on axis {axis}, which other axes are folded into"
        )
    return Shorten(step.node, index, mark.at(axis))


def repeated(value: ir.Value, mark: Mark, tokens: int, shapes: Shapes) -> bool:
    """Whether a value holds the same for every token along the axis of `mark`, as a Tile or an Expand has made it."""
    node = value.producer()
    data = node.inputs[0] if node is not None and node.inputs else None
    if node is None or data is None or not shapes.known(data):
        return False
    before, after = shapes.of(data), shapes.of(value)
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        earlier = moved((mark,), after, before, tokens)
        return earlier is not None and len(earlier) == 1 and repeated(data, earlier[0], tokens, shapes)
    if node.op_type == "Identity":
        return repeated(data, mark, tokens, shapes)
    own = mark.axis - (len(after) - len(before))
    entries = before[own] if own >= 0 else 1
    repeats = node.op_type in ("Tile", "Expand") and mark.outer == 1 and mark.inner % entries == 0
    return repeats and mark.grid is None and mark.single


def split(step: Step) -> None:
    """Along the token axis, only leading protected tokens may be split off, or tokens of other streams."""
    axis = step.attribute("axis", 0) % step.rank(0)
    mark = step.mark(0, axis)
    others = [other for other in step.marks[0] if other.axis != axis]
    sizes = [step.out_dims(index)[axis] for index in range(len(step.outputs))]
    before = sum(sizes[:-1])
    if mark and mark.joint:
        _parted(step, mark, others, sizes)
        return
    if mark and not (_leads(step, mark, before) or (mark.plain and mark.offset + before <= step.leading)):
        ends = [mark.offset + sum(sizes[: index + 1]) for index in range(len(sizes))]
        parts = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        raise step.block("it splits the token axis behind the protected tokens", "grid", _told(mark, parts))
    for index in range(len(sizes)):
        tail = mark and index == len(sizes) - 1
        step.set([*others, _without(mark, before)] if mark and tail else others, index)
    if mark and mark.stage:
        if not step.has(1):
            raise step.block("it splits the token axis into equal parts", "grid")
        step.edit(SetInput(step.node, 1, lambda counts: [*sizes[:-1], mark.size(counts) - before]))


def _leads(step: Step, mark: Mark, before: int) -> bool:
    """Whether the first `before` entries are those that lead the others, and stay where they are."""
    return bool(mark.lead) and before == mark.lead and mark.offset <= step.leading


def _without(mark: Mark, before: int) -> Mark:
    """The mark of an axis without its first entries."""
    return replace(mark, lead=0) if mark.lead else replace(mark, offset=mark.offset + before)


def _told(mark: Mark, parts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """The tokens that are read apart; of those that others are folded into only what leads them can be told."""
    return [range(mark.offset)] if mark.lead and mark.offset else parts if mark.plain else ()


def _parted(step: Step, mark: Mark, others: Sequence[Mark], sizes: Sequence[int]) -> None:
    """Split what stands beside one another again, each part of one kind."""
    start, place = 0, -1
    for index, size in enumerate(sizes):
        whole = _own(step, mark, start, start + size)
        place = index if whole else place
        step.set([*others, *([replace(mark, offset=0, behind=0)] if whole else [])], index)
        start += size
    if mark.stage:
        if not step.has(1):
            raise step.block("it splits the token axis into equal parts", "grid")
        rest = [*sizes]
        step.edit(
            SetInput(step.node, 1, lambda counts: [*rest[:place], counts[mark.stage], *rest[place + 1 :]])
        )


def _own(step: Step, mark: Mark, first: int, last: int) -> bool:
    """Whether entries first to last are all tokens of the stream, and not all of others. Raises: Blocked where they are parts."""
    end = mark.front + step.tokens
    if mark.plain and (first, last) == (mark.front, end):
        return True
    if not mark.plain or not (last <= mark.front or first >= end):
        raise step.block(f"it takes tokens {first} to {last} by position, of this stream and others", "grid")
    return False


def slice_(step: Step) -> None:
    """On the token axis: drop leading protected tokens, or take only protected ones."""
    dims = step.dims(0)
    starts, ends = step.integers(1), step.integers(2)
    axes = [axis % len(dims) for axis in step.integers(3)] if step.has(3) else list(range(len(starts)))
    steps = step.integers(4) if step.has(4) else [1] * len(starts)
    marks = list(step.marks[0])
    bounds = [*zip(starts, ends, strict=True)]
    for place, (start, end, axis, stride) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        mark = step.mark(0, axis)
        if mark is None:
            continue
        first, last, _ = slice(start, end, stride).indices(dims[axis])
        marks.remove(mark)
        bound = (start, end)
        if mark.joint and stride == 1:
            length = dims[axis]
            if _own(step, mark, first, last):
                marks.append(replace(mark, offset=0, behind=0))
                bound = (first, last - length if last < length else END)
            elif first >= mark.front:
                bound = (first - length, last - length if last < length else END)
            if mark.stage:
                bounds[place] = bound
            continue
        ranks = step.ranks(mark, range(first, last)) if stride == 1 else None
        free = _leads(step, mark, first) or (mark.plain and mark.offset + first <= step.leading)
        if stride == 1 and last == dims[axis] and free:
            marks.append(_without(mark, first))
            bound = (first if start < 0 else start, END)
        elif ranks is None:
            picked = [mark.offset + entry for entry in range(first, last, stride)]
            reason = f"it takes tokens {first} to {last} by position"
            raise step.block(reason, "grid", _told(mark, [picked]))
        elif ranks:
            bound = (ranks[0], ranks[-1] + 1 or END)
        if mark.stage:
            bounds[place] = bound
    for index, (old, new) in enumerate(zip((starts, ends), zip(*bounds, strict=True), strict=True), 1):
        if old != [*new]:
            step.edit(SetInput(step.node, index, fixed(new)))
    step.set(marks)


def fixed(numbers: Any) -> Callable[[Sequence[int]], Any]:
    """A constant that needs no count."""
    return lambda counts: numbers


def gather(step: Step) -> None:
    """On the token axis only protected tokens may be read, or all but the first of them; on others the axis count changes."""
    axis = step.attribute("axis", 0) % step.rank(0)
    added = step.rank(1)
    marks = [mark.at(mark.axis + axis) for mark in step.marks[1]]
    for mark in step.marks[0]:
        if mark.axis != axis:
            marks.append(mark.at(mark.axis + (added - 1 if mark.axis > axis else 0)))
            continue
        given = step.integers(1)
        picked = [index if index >= 0 else index + step.dims(0)[axis] for index in given]
        ranks, first = step.ranks(mark, picked), min(picked, default=0)
        behind = picked == [*range(first, step.dims(0)[axis])] and added == 1 and mark.plain
        if behind and mark.offset + first <= step.leading:
            marks.append(replace(mark, offset=mark.offset + first))
            if mark.stage:
                step.edit(SetInput(step.node, 1, _from(mark, first)))
            continue
        if step.unit != 1 and added == 1 and _turns(mark, picked, step.tokens):
            marks.append(replace(mark, order=tuple(picked)))
            if mark.stage:
                step.edit(Reorder(step.node, marks[-1]))
            continue
        if ranks is None:
            parts = _told(mark, [[mark.offset + index for index in picked]])
            raise step.block(f"it reads tokens {picked[:4]} by position", "grid", parts)
        if mark.stage and ranks != given:
            step.edit(SetInput(step.node, 1, fixed(np.reshape(ranks, step.dims(1)).tolist())))
    step.set(marks)


def _turns(mark: Mark, picked: Sequence[int], tokens: int) -> bool:
    """Whether a Gather takes every entry of a token axis once, in an order of its own."""
    alone = mark.outer == mark.inner == 1 and mark.grid is None and not mark.offset and mark.order is None
    return alone and sorted(picked) == [*range(mark.entries(tokens))]


def _from(mark: Mark, first: int) -> Callable[[Sequence[int]], list[int]]:
    """The places of the tokens behind the first ones."""
    return lambda counts: [*range(first, counts[mark.stage] - mark.offset)]


def shape(step: Step) -> None:
    """A shape may be read for the batch only; canonicalization has resolved the rest."""
    marked = {mark.axis for mark in step.marks[0]}
    first = step.attribute("start", 0) % max(step.rank(0), 1)
    last = step.attribute("end", step.rank(0))
    readers = [node for node, _ in step.node.outputs[0].uses()]
    for node in readers:
        index = (
            node.inputs[1].const_value if node.op_type == "Gather" and node.inputs[1] is not None else None
        )
        if index is None or any(first + int(entry) in marked for entry in index.numpy().reshape(-1)):
            if marked.isdisjoint(range(first, last if last >= 0 else last + step.rank(0))):
                continue
            raise step.block("it reads the token count at run time; fix the inputs with --shape", "grid")


RULES = {
    ("", "Transpose"): transpose,
    ("", "Reshape"): reshape,
    ("", "Flatten"): reshape,
    ("", "Expand"): expand,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Gather"): gather,
    ("", "Shape"): shape,
}
