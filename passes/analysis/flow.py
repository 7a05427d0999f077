"""The token axis: a data-flow analysis that marks every tensor axis that counts tokens.

Pure: the graph is read, never changed. Each operator has a small rule (`tokenrt.passes.analysis.rules`); an operator
without a rule on a token axis blocks, naming the node. With `sites` given, the axes behind each site carry a
higher stage, and the rules list the edits that make the graph fit the smaller token counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from tokenrt.errors import ShapeError
from tokenrt.passes.analysis.marks import Blocked, Edit, Marks, Step
from tokenrt.passes.analysis.rules import RULES
from tokenrt.passes.graph.ancestry import nested
from tokenrt.passes.graph.shapes import Shapes, describe
from tokenrt.passes.ops.contract import DOMAIN

BY_THEMSELVES = (
    "its branches or its body read tokens by themselves, and tokens are followed in the main graph only: export the model "
    "so that the branch is decided then, or with the loop unrolled"
)


BEFORE = (
    "tokens were reduced there before, of all that come to it: name every place in one plan of the model as it was, or, where "
    "frames merged there and places are to leave, make that file anew with --no-proportional-attention"
)


def reduced_before(graph: ir.Graph) -> str:
    """What helps where a file stops its tokens that were reduced in it before; nothing where they were not."""
    if not any(node.domain == DOMAIN for node in graph):
        return ""
    return "; tokens of this file were reduced before: name every place in one plan of the model as it was"


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


def follow(
    graph: ir.Graph,
    shapes: Shapes,
    seeds: Mapping[ir.Value, Marks],
    *,
    tokens: int,
    protected: tuple[int, ...],
    sites: Sequence[Cut] = (),
    restored: Mapping[ir.Node | None, frozenset[ir.Value]] | None = None,
    unit: int = 1,
    ordered: bool = False,
) -> Flow:
    """Mark every axis that counts tokens, starting from `seeds`.

    protected: positions that never leave. sites: cuts in graph order; behind the first the stage is 1, behind the second 2.
    restored: values that a node (None: the graph's outputs) receives in original length: behind them the stage is 0 again.
    unit: tokens leave in whole units of so many that follow each other, which may be put together (ANY: of any number).
    ordered: what is left keeps its order, and what leaves stands between the protected tokens.
    """
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
            flow.blocked.append(Blocked(node, BY_THEMSELVES))
            continue
        marks = tuple(seen(node, value) for value in node.inputs)
        if not any(marks) or any(output in seeds for output in node.outputs):
            continue
        flow.inputs[node] = marks
        step = Step(
            node, marks, shapes, tokens, protected, [() for _ in node.outputs], unit=unit, ordered=ordered
        )
        try:
            rule = RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
            if rule is None:
                axes = ", ".join(
                    f"axis {mark.axis} of {value.name!r} {describe(shapes.of(value))}"
                    for value, found in zip(node.inputs, marks, strict=True)
                    for mark in found
                    if value is not None
                )
                if node.domain == DOMAIN:
                    raise Blocked(node, BEFORE, "grid")
                raise Blocked(node, f"no rule for this operator on a token axis ({axes})")
            rule(step)
        except Blocked as blocked:
            flow.blocked.append(blocked)
            continue
        except ShapeError as unknown:
            flow.blocked.append(Blocked(node, str(unknown)))
            continue
        flow.edits.extend(step.edits)
        flow.marks.update(zip(node.outputs, step.outputs, strict=True))
    for value in graph.outputs:
        if flow.marks.get(value) and value not in restored.get(None, ()):
            flow.blocked.append(
                Blocked(None, f"output {value.name!r} has one entry per token", "grid", value)
            )
    return flow
