"""The token axis: a data-flow analysis that marks every tensor axis that counts tokens.

Pure: the graph is read, never changed. Each operator has a small rule (`tokenrt.passes.rules`); an operator
without a rule on a token axis blocks, naming the node. With `sites` given, the axes behind each site carry a
higher stage, and the rules list the edits that make the graph fit the smaller token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from tokenrt.passes.ancestry import nested
from tokenrt.passes.shapes import Dims, Shapes, describe

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, order=True)
class Mark:
    """One axis that counts tokens: outer * (tokens - offset) * inner entries.

    stage: the last reduction that shortened it, 0 for the original length. offset: leading protected tokens
    sliced away. outer, inner: other axes folded into this one by a Reshape. weighed: a softmax along the axis
    has counted every token by its size, so a sum over the axis is a mean over the original tokens.
    """

    axis: int
    stage: int = 0
    offset: int = 0
    outer: int = 1
    inner: int = 1
    weighed: bool = field(default=False, compare=False)

    def at(self, axis: int) -> Mark:
        return replace(self, axis=axis)

    def size(self, counts: Sequence[int]) -> int:
        """Entries along the axis when `counts[stage]` tokens are left."""
        return self.outer * (counts[self.stage] - self.offset) * self.inner

    def same(self, other: Mark) -> bool:
        return replace(self, axis=0) == replace(other, axis=0)


Marks = tuple[Mark, ...]
Kind = Literal["operator", "grid", "mixed"]


class Blocked(Exception):
    """The token axis cannot pass a node. kind: operator (no rule), grid (needs every position), mixed (two stages meet)."""

    def __init__(
        self, node: ir.Node | None, reason: str, kind: Kind = "operator", output: ir.Value | None = None
    ) -> None:
        super().__init__(reason)
        self.node, self.reason, self.kind, self.output = node, reason, kind, output

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
    make: Callable[[Sequence[int]], Sequence[int]]


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
    """A mean or sum over tokens counts each token by its size. rank: axes of what it reduces."""

    node: ir.Node
    mark: Mark
    rank: int


@dataclass(frozen=True)
class BiasKeys:
    """Proportional attention: log size is added to the scores along the key axis, before this softmax or attention."""

    node: ir.Node
    mark: Mark


Edit = SetInput | ReduceAuxiliary | WeighPool | BiasKeys


@dataclass(frozen=True)
class Cut:
    """Where tokens leave: behind `value`, as `readers` see it (None: whoever reads it)."""

    value: ir.Value
    readers: frozenset[ir.Node] | None = None

    def reaches(self, node: ir.Node | None) -> bool:
        """Whether a node (None: the graph's outputs) reads what is left."""
        return self.readers is None or node in self.readers


@dataclass
class Flow:
    """The result: marks per value, marks each node sees on its inputs, edits, and what blocked."""

    marks: dict[ir.Value, Marks] = field(default_factory=dict)
    inputs: dict[ir.Node, tuple[Marks, ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)


@dataclass
class Step:
    """What a rule sees of one node; it sets the marks of the outputs and lists edits."""

    node: ir.Node
    marks: tuple[Marks, ...]
    shapes: Shapes
    tokens: int
    protect: int
    outputs: list[Marks]
    edits: list[Edit] = field(default_factory=list)

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
        self.outputs[index] = tuple(sorted(marks))

    def edit(self, edit: Edit) -> None:
        self.edits.append(edit)

    def block(self, reason: str, kind: Kind = "operator") -> Blocked:
        return Blocked(self.node, reason, kind)

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


def follow(
    graph: ir.Graph,
    shapes: Shapes,
    seeds: Mapping[ir.Value, Marks],
    *,
    tokens: int,
    protect: int,
    sites: Sequence[Cut] = (),
    restored: Mapping[ir.Node | None, frozenset[ir.Value]] | None = None,
) -> Flow:
    """Mark every axis that counts tokens, starting from `seeds`.

    sites: cuts in graph order; behind the first the stage is 1, behind the second 2. restored: values that a
    node (None: the graph's outputs) receives in original length: behind them the stage is 0 again.
    """
    from tokenrt.passes.rules import RULES

    flow = Flow()
    order = {cut.value: (stage, cut) for stage, cut in enumerate(sites, 1)}
    restored = restored or {}
    flow.marks.update(seeds)

    def seen(node: ir.Node, value: ir.Value | None) -> Marks:
        if value is None:
            return ()
        marks = flow.marks.get(value, ())
        if value in restored.get(node, ()):
            return tuple(replace(mark, stage=0) for mark in marks)
        stage, cut = order.get(value, (0, None))
        return tuple(replace(mark, stage=stage) for mark in marks) if cut and cut.reaches(node) else marks

    for node in graph:
        captured = tuple(
            seen(node, value) for inner in nested(node) for value in inner.inputs if value is not None
        )
        if any(captured):
            flow.inputs[node] = captured
            flow.blocked.append(Blocked(node, "its branches or its body read tokens by themselves"))
            continue
        marks = tuple(seen(node, value) for value in node.inputs)
        if not any(marks) or any(output in seeds for output in node.outputs):
            continue
        flow.inputs[node] = marks
        step = Step(node, marks, shapes, tokens, protect, [() for _ in node.outputs])
        try:
            rule = RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
            if rule is None:
                axes = ", ".join(
                    f"axis {mark.axis} of {value.name!r} {describe(shapes.of(value))}"
                    for value, found in zip(node.inputs, marks, strict=True)
                    for mark in found
                    if value is not None
                )
                raise Blocked(node, f"no rule for this operator on a token axis ({axes})")
            rule(step)
        except Blocked as blocked:
            flow.blocked.append(blocked)
            continue
        flow.edits.extend(step.edits)
        flow.marks.update(zip(node.outputs, step.outputs, strict=True))
    for value in graph.outputs:
        if flow.marks.get(value) and value not in restored.get(None, ()):
            flow.blocked.append(
                Blocked(None, f"output {value.name!r} has one entry per token", "grid", value)
            )
    return flow


def _words(mark: Mark) -> str:
    offset = f" without the first {mark.offset}" if mark.offset else ""
    return (f"reduction {mark.stage}" if mark.stage else "the original length") + offset
