"""What the token axis is told in: marks on the axes of tensors, what blocks them, the edits they ask for, the step of a rule.

The analysis that follows the tokens and the rules of the operators both speak of these, so they lie below both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.shapes import Dims, Shapes

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, order=True)
class Mark:
    """One axis that counts tokens: lead + outer * (tokens - offset + behind) / unit * inner entries.

    stage: the last reduction that shortened it, 0 for the original length. offset: leading protected tokens
    sliced away; below 0 so many entries of other streams stand in front, and `behind` so many behind, as in attention over
    text and picture at once. outer, inner: other axes folded into this one by a Reshape. lead: entries in front that nothing
    is folded into, as one class token before the places of all frames. grid: the tokens lie on two axes that follow
    each other, (h, w); this is the one that `part` names, 0 for rows and 1 for columns. Once tokens have left, all that
    remain are rows, and there is one column. unit: so many tokens that follow each other are one entry, side by side in the
    channels. order: entry n is unit order[n] of the stream; None where they stand as there. weighed: a softmax along the axis
    has counted every token by its size, so a sum over the axis is a mean over the original tokens.
    """

    axis: int
    stage: int = 0
    offset: int = 0
    outer: int = 1
    inner: int = 1
    grid: tuple[int, int] | None = None
    part: int = 0
    unit: int = 1
    order: tuple[int, ...] | None = None
    lead: int = 0
    behind: int = 0
    weighed: bool = field(default=False, compare=False)

    @property
    def plain(self) -> bool:
        """Whether the axis counts tokens and nothing else."""
        return self.outer == self.inner == 1 and self.grid is None and self.single and not self.lead

    @property
    def front(self) -> int:
        """Entries of other streams in front of the tokens."""
        return max(-self.offset, 0)

    @property
    def joint(self) -> bool:
        """Whether entries of other streams stand beside the tokens."""
        return bool(self.front or self.behind)

    @property
    def single(self) -> bool:
        """Whether tokens are entries one by one, in the order of the stream."""
        return self.unit == 1 and self.order is None

    def at(self, axis: int) -> Mark:
        return replace(self, axis=axis)

    def size(self, counts: Sequence[int]) -> int:
        """Entries along the axis when `counts[stage]` tokens are left."""
        if self.grid is not None:
            left = counts[self.stage] - self.offset
            return self.grid[self.part] if not self.stage else (left, 1)[self.part]
        return self.lead + self.outer * self.entries(counts[self.stage]) * self.inner

    def entries(self, tokens: int) -> int:
        """Entries, but for what is folded in, when so many tokens are left."""
        return (tokens - self.offset + self.behind) // self.unit

    def same(self, other: Mark) -> bool:
        return replace(self, axis=0) == replace(other, axis=0)


Marks = tuple[Mark, ...]

ANY = 0
"""A unit that every number divides."""


def spans(marks: Iterable[Mark]) -> list[Marks]:
    """The marks by the token axis they are of: one each, or the two of a grid together, rows first."""
    ordered = sorted(marks)
    found = [(mark,) for mark in ordered if mark.grid is None]
    rows, columns = (
        [mark for mark in ordered if mark.grid is not None and mark.part == part] for part in (0, 1)
    )
    return [*found, *zip(rows, columns, strict=True)]


Kind = Literal["operator", "grid", "mixed"]


class Blocked(Exception):
    """The token axis cannot pass a node. kind: operator (no rule), grid (needs every position), mixed (two stages meet).

    parts: the tokens, by position, that the node reads apart from one another.
    """

    def __init__(
        self,
        node: ir.Node | None,
        reason: str,
        kind: Kind = "operator",
        output: ir.Value | None = None,
        parts: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(reason)
        self.node, self.reason, self.kind, self.output, self.parts = node, reason, kind, output, parts

    def describe(self) -> str:
        if self.node is None:
            return self.reason
        domain = f"{self.node.domain}." if self.node.domain else ""
        return f"{domain}{self.node.op_type} node {self.node.name!r}: {self.reason}"


@dataclass(frozen=True)
class SetInput:
    """Replace an integer constant (Reshape target, Slice end, Split sizes) by the one for the new counts."""

    node: ir.Node
    index: int
    make: Callable[[Sequence[int]], Any]


Role = Literal["logits", "place", "weight"]


@dataclass(frozen=True)
class ReduceAuxiliary:
    """An input that has one entry per original token (mask, bias, rotary table) follows the tokens.

    axes: pairs of the input's own axis and the mark it meets. role: logits (added to attention scores), place
    (taken from the position each token stands at), weight (one number per token, averaged by size).
    """

    node: ir.Node
    index: int
    axes: tuple[tuple[int, Mark], ...]
    role: Role


@dataclass(frozen=True)
class WeighPool:
    """A mean or sum over tokens counts each token by its size. span: the marks reduced; rank: axes of what it reduces."""

    node: ir.Node
    span: Marks
    rank: int


@dataclass(frozen=True)
class BiasKeys:
    """Proportional attention: log size is added to the scores along the key axis, before this softmax or attention."""

    node: ir.Node
    mark: Mark


@dataclass(frozen=True)
class Reorder:
    """A Gather brings what is left of an axis into an order of its own. mark: the axis behind it."""

    node: ir.Node
    mark: Mark


@dataclass(frozen=True)
class Shorten:
    """An input holds the same for every token along the axis of `mark`, which is its own: as many are taken as there are left."""

    node: ir.Node
    index: int
    mark: Mark


Edit = SetInput | ReduceAuxiliary | WeighPool | BiasKeys | Reorder | Shorten


@dataclass
class Step:
    """What a rule sees of one node; it sets the marks of the outputs and lists edits.

    protected: positions that never leave, ascending. Behind the first reduction these tokens stand in front, in that order;
    ordered: all tokens keep theirs, and those that may leave stand together, between the first and the last ones.
    unit: tokens leave in whole units of so many; of any number where it is ANY.
    """

    node: ir.Node
    marks: tuple[Marks, ...]
    shapes: Shapes
    tokens: int
    protected: tuple[int, ...]
    outputs: list[Marks]
    edits: list[Edit] = field(default_factory=list)
    unit: int = 1
    ordered: bool = False

    @property
    def leading(self) -> int:
        """How many of the protected are the first tokens, without a gap."""
        return next(
            (place for place, token in enumerate(self.protected) if token != place), len(self.protected)
        )

    def ranks(self, mark: Mark, picked: Sequence[int]) -> list[int] | None:
        """Where these entries of the model's own axis are once tokens have left; None where one of them may have left.

        Ordered tokens behind those that may leave are counted from the end.
        """
        ranks = {token: rank for rank, token in enumerate(self.protected)}
        if self.ordered:
            ranks = {token: token if token == rank else token - self.tokens for token, rank in ranks.items()}
        if mark.lead:
            stay = mark.offset <= self.leading and all(entry < mark.lead for entry in picked)
            return [*picked] if stay else None
        tokens = [mark.offset + entry for entry in picked]
        if not mark.plain or not ranks.keys() >= {*tokens}:
            return None
        return [ranks[token] - (mark.offset if ranks[token] >= 0 else 0) for token in tokens]

    def dims(self, index: int) -> Dims:
        value = self.node.inputs[index]
        if value is None:
            raise Blocked(self.node, f"input {index} is missing")
        return self.shapes.of(value)

    def out_dims(self, index: int = 0) -> Dims:
        return self.shapes.of(self.node.outputs[index])

    def rank(self, index: int) -> int:
        return len(self.dims(index))

    def mark(self, index: int, axis: int) -> Mark | None:
        """The mark of input `index` on `axis` (negative counts from the end), if any."""
        axis = axis % self.rank(index) if axis < 0 else axis
        return next((mark for mark in self.marks[index] if mark.axis == axis), None)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def constant(self, index: int) -> Array | None:
        """The value of a constant input, or None."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is None or value.const_value is None:
            return None
        return value.const_value.numpy()

    def integers(self, index: int) -> list[int]:
        constant = self.constant(index)
        if constant is None:
            raise Blocked(self.node, f"its input {index} is computed at run time")
        return [int(number) for number in constant.reshape(-1)]

    def attribute(self, name: str, default: Any) -> Any:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def set(self, marks: Iterable[Mark], index: int = 0) -> None:
        """Say which axes of an output count tokens. The two of a grid stay side by side, or the node blocks."""
        found = tuple(sorted(marks))
        rows, columns = (
            [mark.axis for mark in found if mark.grid is not None and mark.part == part] for part in (0, 1)
        )
        if [axis + 1 for axis in rows] != columns:
            raise self.block("it parts the rows of the token grid from its columns, as windows do", "grid")
        self.outputs[index] = found

    def edit(self, edit: Edit) -> None:
        """Ask for a change of the graph. Raises: Blocked where it needs one number for each token, and entries are units."""
        if not all(mark.single for mark in _read(edit)):
            raise self.block("it reads one number for each token, and tokens stand in units there", "grid")
        self.edits.append(edit)

    def block(self, reason: str, kind: Kind = "operator", parts: Sequence[Sequence[int]] = ()) -> Blocked:
        return Blocked(self.node, reason, kind, parts=parts)

    def merge(self, pairs: Iterable[tuple[int, Mark]]) -> list[Mark]:
        """Marks of several inputs on the axes of the output; two on one axis must agree."""
        merged: dict[int, Mark] = {}
        for axis, mark in pairs:
            other = merged.setdefault(axis, mark.at(axis))
            if not other.same(mark):
                raise self.block(
                    f"tokens of {_words(other)} meet tokens of {_words(mark)} on axis {axis}", "mixed"
                )
            if mark.weighed:
                merged[axis] = mark.at(axis)
        return [*merged.values()]


Rule = Callable[[Step], None]


def _read(edit: Edit) -> tuple[Mark, ...]:
    """The axes of which an edit takes one entry for each token."""
    if isinstance(edit, ReduceAuxiliary):
        return tuple(mark for _, mark in edit.axes)
    if isinstance(edit, WeighPool):
        return edit.span
    return (edit.mark,) if isinstance(edit, BiasKeys) else ()


def _words(mark: Mark) -> str:
    offset = (
        f" without the first {mark.offset}"
        if mark.offset > 0
        else " and others beside them"
        if mark.joint
        else ""
    )
    return (f"reduction {mark.stage}" if mark.stage else "the original length") + offset
