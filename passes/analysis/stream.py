"""How a tensor holds a stream of tokens: where its pictures, its tokens and its channels lie.

[B,N,C] is the common form; others are [N,B,C], [B,C,N], [B*N,C], [N,C] of one picture, and grids [B,H,W,C] and [B,C,H,W].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import onnx_ir as ir

from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import Mark, Marks, spans
from tokenrt.passes.analysis.rules.shape import moved
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes

LAYOUT = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move what they read and change nothing of it."""

Order = Literal["rows", "sequence", "channels"]
"""[B,N,C], [N,B,C] or [B,C,N], once what is folded is unfolded."""


@dataclass(frozen=True)
class Layout:
    """One tensor that is a stream. rows: the pictures B, a multiple of BATCH where their number is free.

    across: how many rows of one picture lie side by side in the channels, where tokens leave from all of them alike: frames
    where places leave, places where frames do. between: those of them that stand in front of the token axis; the others stand
    behind it.
    """

    dims: Dims
    marks: Marks
    order: Order
    rows: int
    channels: int
    across: int = 1
    between: int = 1

    @property
    def batch(self) -> int:
        """B as a Reshape says it: -1 where it is free."""
        return -1 if self.rows % BATCH == 0 else self.rows

    def unfolded(self, count: int) -> list[int]:
        """The three axes, in their order, of `count` tokens; five of them where rows lie side by side: [B,a,N,b,C]."""
        if self.across > 1:
            return [
                self.batch,
                self.between,
                count,
                self.across // self.between,
                self.channels // self.across,
            ]
        sizes = {"B": self.batch, "N": count, "C": self.channels}
        return [sizes[letter] for letter in {"rows": "BNC", "sequence": "NBC", "channels": "BCN"}[self.order]]

    def folded(self, count: int, *, full: bool) -> list[int]:
        """The tensor's own axes for `count` tokens, without what leads; full: all of them, which lie on their grid again."""
        sizes = [-1 if size % BATCH == 0 else size for size in self.dims]
        for mark in self.marks:
            size = mark.grid[mark.part] if full and mark.grid else (count, 1)[mark.part]
            entries = size * mark.outer * mark.inner
            sizes[mark.axis] = -1 if entries % BATCH == 0 else entries
        return sizes

    @property
    def plain(self) -> bool:
        """Whether it has the three axes as it is."""
        place = {"rows": 1, "sequence": 0, "channels": 2}[self.order]
        own = len(self.dims) == 3 and self.across == 1
        return own and self.marks[0].plain and self.marks[0].axis == place

    @property
    def lead(self) -> int:
        """Entries in front of the tokens of all rows."""
        return self.marks[0].lead


def layout(marks: Marks, dims: Dims, pictures: int = 0) -> Layout | None:
    """How a tensor with these marks holds a stream; None where it is none: other axes, tokens left away, or two token axes.

    pictures: where it is given, the other rows of a picture lie side by side.
    """
    found = spans(marks)
    if len(found) != 1 or found[0][0].offset not in (0, found[0][0].lead) or found[0][0].joint:
        return None
    span = found[0]
    first, last = span[0], span[-1]
    if pictures:
        return _side_by_side(marks, first, last, dims, pictures)
    if first.lead:
        return None
    before = [size for size in (*dims[: first.axis], first.outer) if size != 1]
    behind = [size for size in (last.inner, *dims[last.axis + 1 :]) if size != 1]
    if len(behind) == 1 and last.inner == 1:
        return Layout(dims, marks, "rows", prod(before), behind[0])
    if len(behind) == 2 and not before:
        return Layout(dims, marks, "sequence", behind[0], behind[1])
    if (
        not behind
        and first.outer == 1
        and (len(before) == 2 or (len(before) == 1 < len(dims) and dims[0] == 1))
    ):
        return Layout(dims, marks, "channels", prod(before[:-1]), before[-1])
    return None


def _side_by_side(marks: Marks, first: Mark, last: Mark, dims: Dims, pictures: int) -> Layout | None:
    """The layout of a stream whose pictures come first and its channels last, with all other rows of a picture side by side."""
    before, behind = prod(dims[: first.axis]) * first.outer, last.inner * prod(dims[last.axis + 1 : -1])
    if last.axis == len(dims) - 1 or before % pictures or dims[_leading(dims)] % pictures:
        return None
    if first.lead and prod(dims[: first.axis]) != pictures:
        return None
    across = before // pictures * behind
    return Layout(dims, marks, "rows", pictures, dims[-1] * across, across, before // pictures)


def candidates(dims: Dims, tokens: int) -> Iterator[Marks]:
    """The ways in which axes of a stream may count `tokens`: an axis of that length, two of a grid, one with rows folded in.

    Which of them it is, the flow of the data says.
    """
    for axis, size in enumerate(dims):
        if size == tokens:
            yield (Mark(axis),)
    for axis in range(len(dims) - 1):
        rows, columns = dims[axis : axis + 2]
        if rows > 1 < columns and rows * columns == tokens:
            lead = Mark(axis, grid=(rows, columns))
            yield lead, Mark(axis + 1, grid=(rows, columns), part=1)
    for axis, size in enumerate(dims):
        if size != tokens and size % tokens == 0:
            yield (Mark(axis, outer=size // tokens),)
            yield (Mark(axis, inner=size // tokens),)
    for axis, size in enumerate(dims[:-1]):
        for fold in range(2, size // tokens + 2):
            first, rest = divmod(fold * tokens - size, fold - 1)
            if not rest and 0 < first < tokens:
                yield (Mark(axis, offset=first, lead=first, inner=fold),)
                yield (Mark(axis, offset=first, lead=first, outer=fold),)


def row_marks(held: Layout) -> Sequence[Mark]:
    """Marks of the axes that count pictures, each as if it were the tokens of a flow of its own.

    Of rows that lie side by side none is a picture.
    """
    if held.across > 1:
        axis = _leading(held.dims)
        return [Mark(axis, inner=held.dims[axis] // held.rows)] if held.rows > 1 else []
    (first, *_) = held.marks
    last = held.marks[-1]
    found = [Mark(axis) for axis, size in enumerate(held.dims) if size != 1 and axis not in _own(held)]
    if first.outer > 1:
        found.append(Mark(first.axis, inner=counted(held.marks[0], held.dims)))
    if last.inner > 1:
        found.append(Mark(last.axis, outer=counted(held.marks[0], held.dims)))
    return found


def _leading(dims: Dims) -> int:
    """The first axis that is longer than one."""
    return next((axis for axis, size in enumerate(dims) if size != 1), 0)


def _own(held: Layout) -> set[int]:
    """Axes of tokens and channels."""
    tokens = {mark.axis for mark in held.marks}
    places = [axis for axis, size in enumerate(held.dims) if size != 1 and axis not in tokens]
    return tokens | ({places[-1]} if places else set())


def counted(mark: Mark, dims: Dims) -> int:
    """How many there are of what a mark counts."""
    return dims[mark.axis] // (mark.outer * mark.inner)


def stream_of(value: ir.Value, flow: Flow, shapes: Shapes, like: Layout) -> Layout | None:
    """How a value holds the tokens of a stream with as many pictures and rows as `like`; None where it is no such stream."""
    if not shapes.known(value):
        return None
    found = layout(flow.marks.get(value, ()), shapes.of(value), like.rows if like.across > 1 else 0)
    alike = found is not None and (found.rows, found.across) == (like.rows, like.across)
    return found if alike else None


def fewer(like: Layout) -> str:
    """What would make a value such a stream that is none, where attention takes turns and the other axis was reduced before."""
    if like.across == 1:
        return ""
    return (
        "; where the rows beside it are fewer than at its entry, by a choice that is the same for all inputs, let a method make "
        "it that reads what they hold, e.g. divprune"
    )


def side_by_side(marks: Marks, dims: Dims, pictures: int) -> Layout | None:
    """A stream with all rows of a picture side by side; None where it has one row each, or pictures do not come first."""
    found = layout(marks, dims, pictures)
    return found if found is not None and found.across > 1 else None


def origins(entry: ir.Value, marks: Marks, tokens: int, shapes: Shapes) -> dict[ir.Value, Marks]:
    """The entry and the values that it is another layout of, with their marks, as far as somebody else reads them.

    Values, or positions, may be taken from a tensor in front of the layout that queries and keys are made of.
    """
    found = {entry: marks}
    value, passed = entry, {entry: marks}
    while (
        (node := value.producer()) is not None and node.op_type in LAYOUT and node.domain in ("", "ai.onnx")
    ):
        source = node.inputs[0]
        if source is None or source.const_value is not None or not shapes.known(source):
            break
        earlier = _unlaid(node, passed[value], source, value, tokens, shapes)
        if earlier is None:
            break
        passed[source] = earlier
        if len({reader for reader, _ in source.uses()}) > 1:
            found.update(passed)
        value = source
    return found


def _unlaid(
    node: ir.Node, marks: Marks, source: ir.Value, value: ir.Value, tokens: int, shapes: Shapes
) -> Marks | None:
    """The marks of what a layout operator reads, from those of what it gives."""
    if node.op_type == "Transpose":
        rank = len(shapes.of(value))
        order = list(node.attributes["perm"].value) if "perm" in node.attributes else list(range(rank))[::-1]
        return tuple(sorted(mark.at(order[mark.axis]) for mark in marks))
    return moved(marks, shapes.of(value), shapes.of(source), tokens)
