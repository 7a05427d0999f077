"""Where the result of an attention is added to the stream it reads, or why there is no such place.

In divided attention every frame has a copy of one class token. Behind the attention the copies are averaged and the tokens laid
out as the stream has them; both are then put one behind the other and added to the stream, which is put together in the same way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.joint import joined, parted, parts, streams
from tokenrt.passes.analysis.refused.missed import OTHERS, Missed
from tokenrt.passes.graph.ancestry import ancestors, readers
from tokenrt.passes.graph.quantization import parameter
from tokenrt.passes.graph.shapes import Shapes

ADDITIONS = frozenset({"Add", "Sum"})

GATES = frozenset({"Div", "Mul"})
"""An attention's result may be multiplied on its way: by a gate of the timestep, or of the tokens themselves."""

LAID = frozenset(
    "Cast Concat Dropout Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split()
)
"""Operators that lay out what they read, take parts of it, or put parts together."""

NORM = frozenset("Add Cast Div Mul Pow Reciprocal ReduceMean Sqrt Sub".split())
"""What a norm behind the attention is made of, where it is no single node."""

PARTS = LAID | {"Add", "Gemm", "MatMul", "ReduceMean", "ReduceSum", *GATES}
"""What may stand between: those, the mean over copies, and products with weights."""

ONE_PRODUCT = "write them as one product over all heads and export again"


@dataclass(frozen=True)
class Refusal:
    """Why an attention or a site takes no reduction; merging: none that merges, where one that selects in order can sit."""

    where: str
    reason: str
    merging: bool = False

    def as_dict(self) -> dict[str, str | bool]:
        return {"where": self.where, "reason": self.reason} | ({"merging": True} if self.merging else {})

    def __str__(self) -> str:
        return f"{'merging ' if self.merging else ''}refused: {self.where}: {self.reason}"


Start = tuple[Core, tuple[ir.Value, ir.Value]]
"""An attention, with the residual stream it reads and the value right after its result is added to it."""

Trace = tuple[Core, tuple[ir.Value, ir.Value] | Refusal]

Traced = TypeVar("Traced")


def traced(every: Sequence[Core], shapes: Shapes) -> list[Trace]:
    """Every attention with the stream it belongs to, or the reason why it has none; a joint one with each of its streams."""
    return _apart([(core, found) for core in every for found in _found(core, shapes)])


def _found(core: Core, shapes: Shapes) -> list[tuple[ir.Value, ir.Value] | Refusal]:
    """The streams of an attention with where its result is added to each, or why there is none."""
    cut = parts(core.output)
    joint = len(cut) > 1 and streams(core, shapes) and not (core.masks or core.causal)
    found = [_residual(core, part) for part in (cut if joint else (core.output,))]
    return [start for start in found if not isinstance(start, Refusal)] or [told(found[0], core, shapes)]


def told(found: Traced | Refusal, core: Core, shapes: Shapes) -> Traced | Refusal:
    """A refusal, in better words where the attention joins several streams, or is one of several over windows; else as it is."""
    better = joined(core, shapes) or parted(core, shapes) if isinstance(found, Refusal) else None
    return found if better is None else refuse(core, better)


def _apart(traced: Sequence[Trace]) -> list[Trace]:
    """Attentions whose results are added to the stream at one place are no blocks: tokens would leave there once for each."""
    places = [
        (start[1], core.keys) if not isinstance(start, Refusal) and core.queries == core.keys else None
        for core, start in traced
    ]
    return [
        (core, refuse(core, _added_together(place[0], places.count(place))))
        if place is not None and places.count(place) > 1
        else (core, start)
        for (core, start), place in zip(traced, places, strict=True)
    ]


def _added_together(attended: ir.Value, count: int) -> str:
    node = attended.producer()
    where = f"{node.op_type} node {node.name!r}" if node is not None else repr(attended.name)
    return (
        f"its result is added to the stream at {where} together with those of {count - 1} other attentions, and a reduction "
        f"reads one; where they are heads that were computed one by one, {ONE_PRODUCT}"
    )


def _residual(core: Core, here: ir.Value) -> tuple[ir.Value, ir.Value] | Refusal:
    """The residual stream the attention reads, and the value right after its result is added to it; or why there is none.

    here: its result, or one stream's part of that.
    """
    sources = ancestors((core.query, core.key, core.value))
    apart = False
    while True:
        reading = [*readers(here)]
        if len(reading) > 1 and (normed := _rejoined(here, NORM, ends=GATES)) is not None:
            here = normed
            continue
        if len(reading) > 1 and not apart and (together := _rejoined(here)) is not None:
            here, apart = together, True
            continue
        if len(reading) != 1:
            why = "is read by several nodes" if reading else "is a graph output"
            return refuse(
                core,
                f"its result {why} before a residual is added: attention pooling, or a stream of its own",
            )
        (node,) = reading
        others = [
            step
            for step in node.inputs
            if step is not None and step is not here and step.const_value is None and not parameter(step)
        ]
        beside_it = node.op_type == "Concat" and node.attributes["axis"].value != 0
        beside_it = beside_it and all(_no_attention(ancestors((step,)), sources) for step in others)
        if others and not beside_it and node.op_type not in ("Reshape", "Expand", *GATES):
            skip = next((step for step in others if step in sources), None)
            if node.op_type in ADDITIONS and skip is not None:
                return skip, node.outputs[0]
            if apart and node.op_type in ADDITIONS and len(others) == 1 and sources & {*_parts(others[0])}:
                entry = _source((*others, core.query, core.key, core.value))
                if entry is not None:
                    return entry, node.outputs[0]
            beside = next((step for step in others if ancestors((step,)) & sources), None)
            if node.op_type not in ADDITIONS or beside is None:
                return refuse(core, _met(node))
        here = node.outputs[0]


def _rejoined(
    result: ir.Value, parts: frozenset[str] = PARTS, ends: frozenset[str] = frozenset({"Concat"})
) -> ir.Value | None:
    """What all that is made of `result` comes together in, a Concat; None where other things are made of it.

    parts: the operators that may stand between; ends: those in which it may come together.
    """
    order = _order(result)
    live, queue, made = {result: readers(result)}, list[tuple[int, ir.Node]](), {result}
    _push(queue, live[result], order)
    while queue:
        node = heapq.heappop(queue)[1]
        read = _computed(node)
        if node.op_type not in parts or not (made.issuperset(read) or node.op_type in GATES):
            return None
        for value in read & live.keys():
            live[value].discard(node)
            if not live[value]:
                del live[value]
        if node.op_type in ends and not live:
            return node.outputs[0]
        for value in node.outputs:
            if value.is_graph_output():
                return None
            made.add(value)
            if found := readers(value):
                live[value] = found
                _push(queue, found, order)
    return None


def _parts(value: ir.Value) -> Iterator[ir.Value]:
    """What a value is put together of, up to what computes something."""
    todo = [value]
    while todo:
        here = todo.pop()
        node = here.producer()
        yield here
        if node is not None and node.op_type in LAID:
            todo.extend(_computed(node))


def _source(values: Iterable[ir.Value]) -> ir.Value | None:
    """The nearest value that all these are made of and of nothing else; None where there is none."""
    left = {*values}
    order = _order(next(iter(left)))
    while len(left) > 1:
        last = max(left, key=lambda value: _place(value, order))
        node = last.producer()
        if node is None:
            return None
        left.remove(last)
        left |= _computed(node)
    return left.pop() if left else None


def _order(value: ir.Value) -> dict[ir.Node, int]:
    """Places of the nodes of the graph that a value is made in."""
    node = value.producer()
    graph = node.graph if node is not None else None
    return {each: place for place, each in enumerate(graph)} if graph is not None else {}


def _place(value: ir.Value, order: dict[ir.Node, int]) -> int:
    node = value.producer()
    return -1 if node is None else order[node]


def _push(queue: list[tuple[int, ir.Node]], nodes: Iterable[ir.Node], order: dict[ir.Node, int]) -> None:
    there = {place for place, _ in queue}
    for node in nodes:
        if order[node] not in there:
            heapq.heappush(queue, (order[node], node))


def _computed(node: ir.Node) -> set[ir.Value]:
    """What a node reads that is no constant."""
    given = (value for value in node.inputs if value is not None)
    return {value for value in given if value.const_value is None and not parameter(value)}


def _no_attention(before: set[ir.Value], sources: set[ir.Value]) -> bool:
    """Whether what stands beside a result comes of what the attention reads, by no other attention: an MLP, not a head."""
    makers = (value.producer() for value in before - sources)
    return bool(before & sources) and all(
        node is None or node.op_type not in ("Attention", "Softmax") for node in makers
    )


def _met(node: ir.Node) -> str:
    """What a result meets where no residual is added, and what would help."""
    remedy = (
        f"where it puts together heads that were computed one by one, {ONE_PRODUCT}"
        if node.op_type in ("Concat", "Sum")
        else OTHERS
    )
    return f"its result meets {node.op_type} node {node.name!r} before a residual is added; {remedy}"


def refuse(core: Core | Missed, reason: str, *, merging: bool = False) -> Refusal:
    return Refusal(f"attention at {core.node.op_type} node {core.node.name!r}", reason, merging)
