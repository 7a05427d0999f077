"""Operators that move, split, join or pick axes, and the integer constants in them that hold a token count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from tokenrt.passes.analysis.marks import Mark, ReduceAuxiliary, SetInput, Step
from tokenrt.passes.analysis.rules.reduction import pooled_grid
from tokenrt.passes.graph.shapes import BATCH, Dims

END = 2**31 - 1


def transpose(step: Step) -> None:
    rank = step.rank(0)
    order = list(step.attribute("perm", range(rank - 1, -1, -1)))
    step.set(mark.at(order.index(mark.axis)) for mark in step.marks[0])


def reshape(step: Step) -> None:
    """An axis is a stride and a length; it survives where one output axis holds exactly that stride and length."""
    source, goal = step.dims(0), step.out_dims()
    whole = [pooled_grid(step, mark) for mark in step.marks[0]]
    marks = [
        pool or regroup(step, mark, source, goal) for pool, mark in zip(whole, step.marks[0], strict=True)
    ]
    step.set(marks)
    columns = {pool.axis + 1 for pool in whole if pool}
    goal = tuple(1 if axis in columns else size for axis, size in enumerate(goal))
    if step.node.op_type == "Reshape" and any(mark.stage for mark in marks):
        step.edit(SetInput(step.node, 1, lambda counts: resized(goal, marks, counts)))


def regroup(step: Step, mark: Mark, source: Dims, goal: Dims) -> Mark:
    """Where a marked axis ends after a Reshape, with the axes folded around it."""
    length = step.tokens - mark.offset
    stride = prod(source[mark.axis + 1 :]) * mark.inner
    for axis, size in enumerate(goal):
        right = prod(goal[axis + 1 :])
        if right and size % length == 0 and stride % right == 0 and (right * size) % (stride * length) == 0:
            outer = right * size // (stride * length)
            return replace(mark, axis=axis, outer=outer, inner=stride // right)
    raise step.block("it splits the token axis into a grid or into windows", "grid")


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
    """Along the token axis, only protected tokens may be put back in front; along others, all inputs agree."""
    rank = len(step.out_dims())
    axis = step.attribute("axis", 0) % rank
    along = [index for index in range(len(step.marks)) if step.mark(index, axis)]
    merged = step.merge((mark.axis, mark) for marks in step.marks for mark in marks if mark.axis != axis)
    if along:
        last = len(step.marks) - 1
        mark = step.mark(last, axis)
        before = sum(step.dims(index)[axis] for index in range(last))
        if along != [last] or mark is None or mark.inner != 1 or mark.outer != 1 or before > mark.offset:
            raise step.block("it joins tokens with other tokens along the token axis", "grid")
        merged.append(replace(mark, offset=mark.offset - before))
    for index in range(len(step.marks)):
        own = {mark.axis for mark in step.marks[index]}
        axes = tuple(
            (m.axis, m)
            for m in merged
            if m.axis != axis and m.axis not in own and step.dims(index)[m.axis] != 1
        )
        if axes and any(mark.stage for _, mark in axes):
            step.edit(ReduceAuxiliary(step.node, index, axes, "place"))
    step.set(merged)


def split(step: Step) -> None:
    """Along the token axis, only leading protected tokens may be split off."""
    axis = step.attribute("axis", 0) % step.rank(0)
    mark = step.mark(0, axis)
    others = [other for other in step.marks[0] if other.axis != axis]
    sizes = [step.out_dims(index)[axis] for index in range(len(step.outputs))]
    before = sum(sizes[:-1])
    if mark and (mark.inner != 1 or mark.outer != 1 or mark.offset + before > step.protect):
        raise step.block("it splits the token axis behind the protected tokens", "grid")
    for index in range(len(sizes)):
        tail = mark and index == len(sizes) - 1
        step.set([*others, replace(mark, offset=mark.offset + before)] if mark and tail else others, index)
    if mark and mark.stage:
        if not step.has(1):
            raise step.block("it splits the token axis into equal parts", "grid")
        step.edit(
            SetInput(step.node, 1, lambda counts: [*sizes[:-1], counts[mark.stage] - mark.offset - before])
        )


def slice_(step: Step) -> None:
    """On the token axis: drop leading protected tokens, or take only protected ones."""
    dims = step.dims(0)
    starts, ends = step.integers(1), step.integers(2)
    axes = [axis % len(dims) for axis in step.integers(3)] if step.has(3) else list(range(len(starts)))
    steps = step.integers(4) if step.has(4) else [1] * len(starts)
    marks = list(step.marks[0])
    for place, (start, end, axis, stride) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        mark = step.mark(0, axis)
        if mark is None:
            continue
        first, last, _ = slice(start, end, stride).indices(dims[axis])
        marks.remove(mark)
        if (
            stride == 1
            and mark.inner == mark.outer == 1
            and last == dims[axis]
            and mark.offset + first <= step.protect
        ):
            marks.append(replace(mark, offset=mark.offset + first))
            if mark.stage:
                open_end = [END if other == place else value for other, value in enumerate(ends)]
                step.edit(SetInput(step.node, 2, fixed(open_end)))
                if start < 0:
                    begin = [first if other == place else value for other, value in enumerate(starts)]
                    step.edit(SetInput(step.node, 1, fixed(begin)))
        elif stride != 1 or mark.inner * mark.outer != 1 or mark.offset + last > step.protect:
            raise step.block(f"it takes tokens {first} to {last} by position", "grid")
    step.set(marks)


def fixed(numbers: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """A constant that needs no count."""
    return lambda counts: numbers


def gather(step: Step) -> None:
    """On the token axis only protected tokens may be read; on others the axis count changes."""
    axis = step.attribute("axis", 0) % step.rank(0)
    added = step.rank(1)
    marks = [mark.at(mark.axis + axis) for mark in step.marks[1]]
    for mark in step.marks[0]:
        if mark.axis != axis:
            marks.append(mark.at(mark.axis + (added - 1 if mark.axis > axis else 0)))
            continue
        picked = [index if index >= 0 else index + step.dims(0)[axis] for index in step.integers(1)]
        if mark.inner * mark.outer != 1 or any(mark.offset + index >= step.protect for index in picked):
            raise step.block(f"it reads tokens {picked[:4]} by position", "grid")
    step.set(marks)


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
            raise step.block("it reads the token count at run time; fix the inputs with --shape")


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
