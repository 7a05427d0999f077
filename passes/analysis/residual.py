"""Where the result of an attention is added to the stream it reads, or why there is no such place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.joint import joined, parted
from tokenrt.passes.analysis.missed import OTHERS, Missed
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.quantization import parameter
from tokenrt.passes.graph.shapes import Shapes

ADDITIONS = frozenset({"Add", "Sum"})

GATES = frozenset({"Div", "Mul"})
"""An attention's result may be multiplied on its way: by a gate of the timestep, or of the tokens themselves."""

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
    """Every attention, with the stream it belongs to or the reason why it belongs to none."""
    return _apart([(core, told(_residual(core), core, shapes)) for core in every])


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


def _residual(core: Core) -> tuple[ir.Value, ir.Value] | Refusal:
    """The residual stream the attention reads, and the value right after its result is added to it; or why there is none."""
    sources = ancestors((core.query, core.key, core.value))
    here = core.output
    while True:
        readers = list(dict.fromkeys(node for node, _ in here.uses()))
        if len(readers) != 1:
            why = "is read by several nodes" if readers else "is a graph output"
            return refuse(
                core,
                f"its result {why} before a residual is added: attention pooling, or a stream of its own",
            )
        node = readers[0]
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
            beside = next((step for step in others if ancestors((step,)) & sources), None)
            if node.op_type not in ADDITIONS or beside is None:
                return refuse(core, _met(node))
        here = node.outputs[0]


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
