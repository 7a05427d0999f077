"""Find the transformers of a graph and their blocks: the residual stream, where it ends, what is protected.

A block's *attended* value is the residual stream right after the attention is added; its *output* is the
stream after the whole block. Both are cuts: whatever follows sees the tokens only through them, so tokens can
leave there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core, causal, cores
from tokenrt.passes.analysis.branch import Branch, branch
from tokenrt.passes.analysis.flow import Flow, follow
from tokenrt.passes.analysis.grid import Grid, grid
from tokenrt.passes.analysis.marks import Blocked, Mark, Marks
from tokenrt.passes.graph.ancestry import ancestors, between, constant_prefix, nested
from tokenrt.passes.graph.quantization import parameter
from tokenrt.passes.graph.shapes import Shapes, describe

CAUSAL = "its mask is causal: a merged or moved token would let earlier positions see later ones"

ADDITIONS = frozenset({"Add", "Sum"})


@dataclass(frozen=True)
class Block:
    """One transformer block. `attended` is None where attention and MLP run side by side.

    branch: the attention apart from the stream, or why it cannot be told apart.
    """

    index: int
    core: Core
    entry: ir.Value
    attended: ir.Value | None
    output: ir.Value
    branch: Branch | str


@dataclass(frozen=True)
class Refusal:
    """Why an attention or a site takes no reduction."""

    where: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return {"where": self.where, "reason": self.reason}


@dataclass(frozen=True)
class Structure:
    """The blocks of one transformer and its token axis.

    tokens: N at the first block. protect: leading tokens that never leave. axis: the token axis of the
    stream. body: the nodes from the first block's entry to the last block's output; everything else behind
    them is tail. grid: the layout of the unprotected tokens, (h, w) or (frames, h, w), where one is found.
    refusals: attentions its tokens reach that are no block of it, and blocks that take no reduction.
    """

    blocks: tuple[Block, ...]
    tokens: int
    protect: int
    class_token: bool
    axis: int
    body: frozenset[ir.Node]
    flow: Flow
    refusals: tuple[Refusal, ...]
    grid: Grid | None = None

    def seeds(self) -> dict[ir.Value, Marks]:
        return {self.blocks[0].entry: (Mark(self.axis),)} if self.blocks else {}

    def reaches(self, core: Core, skip: ir.Value) -> bool:
        """Whether its tokens come to an attention or the stream beside it, or would but for an operator without a rule."""
        ends = (core.query, core.key, core.value, skip)
        return any(self.flow.marks.get(value) for value in ends) or any(
            stop.kind != "grid" for stop in _stops(core, self.flow)
        )


NOTHING = Structure((), 0, 0, False, 0, frozenset(), Flow(), ())


@dataclass(frozen=True)
class Found:
    """Every transformer of a graph, in graph order, and all that was refused."""

    transformers: tuple[Structure, ...]
    refusals: tuple[Refusal, ...]


Start = tuple[Core, tuple[ir.Value, ir.Value]]
"""An attention, with the residual stream it reads and the value right after its result is added to it."""


def find(graph: ir.Graph, shapes: Shapes) -> Found:
    """Find the transformers: each starts at the first attention that the tokens of those before it do not reach.

    A graph without any gives none, and refusals that say why.
    """
    every = cores(graph, shapes)
    if not every:
        none = "no attention found: no softmax between two products and no Attention node"
        return Found((), (Refusal("model", none),))
    order = {inner: place for place, node in enumerate(graph) for inner in (node, *nested(node))}
    traced = [(core, _residual(core)) for core in every]
    starts = [(core, start) for core, start in traced if not isinstance(start, Refusal)]
    transformers: list[Structure] = []
    refusals: list[Refusal] = []
    waiting = starts
    while waiting:
        made = _first(graph, shapes, waiting, order, {core.node for core, _ in starts})
        if isinstance(made, Refusal):
            refusals.append(made)
            waiting = waiting[1:]
        else:
            transformers.append(made)
            waiting = [(core, start) for core, start in waiting if not made.reaches(core, start[0])]
    for number, structure in enumerate(transformers):
        several = f"transformer {number} " if len(transformers) > 1 else ""
        refusals.extend(
            replace(refusal, where=several + refusal.where) if refusal.where.startswith("block") else refusal
            for refusal in structure.refusals
        )
    # An attention whose keys are tokens and whose queries are not pools them; that needs no block.
    flows = [structure.flow.marks for structure in transformers]
    refusals.extend(
        start
        for core, start in traced
        if isinstance(start, Refusal)
        and not any(marks.get(core.key) and not marks.get(core.query) for marks in flows)
    )
    return Found(tuple(transformers), tuple(dict.fromkeys(refusals)))


def _first(
    graph: ir.Graph,
    shapes: Shapes,
    starts: list[Start],
    order: dict[ir.Node, int],
    attentions: set[ir.Node],
) -> Structure | Refusal:
    """The transformer that starts at the first of these attentions, or why none does."""
    core, (entry, _) = starts[0]
    if core.queries != core.keys:
        return _refuse(
            core,
            f"{core.queries} queries attend to {core.keys} keys: not self-attention over one token axis",
        )
    dims = shapes.of(entry)
    axes = [axis for axis, size in enumerate(dims[:-1]) if size == core.keys]
    found = [_structure(graph, shapes, starts, axis, order, attentions) for axis in axes]
    best = max(found, key=lambda structure: len(structure.blocks), default=NOTHING)
    if not best.blocks:
        return _refuse(core, _why_not(found, axes, core, shapes, entry))
    images = shapes.of(graph.inputs[0])[0]
    cells = grid(best.blocks[0].entry, best.axis, best.tokens, best.protect, shapes, images)
    return replace(best, grid=cells)


def _structure(
    graph: ir.Graph,
    shapes: Shapes,
    starts: list[Start],
    axis: int,
    order: dict[ir.Node, int],
    attentions: set[ir.Node],
) -> Structure:
    first, (entry, _) = starts[0]
    tokens = first.keys
    prefix = constant_prefix(entry, axis, shapes)
    seeds: dict[ir.Value, Marks] = {entry: (Mark(axis),)}
    flows = {
        count: follow(graph, shapes, seeds, tokens=tokens, protect=count)
        for count in dict.fromkeys((prefix, max(prefix, 1)))
    }
    protect = min(flows, key=lambda count: (len(flows[count].blocked), count))
    flow = flows[protect]
    whole = Structure((), tokens, protect, protect > 0, axis, frozenset(), flow, ())
    blocks: list[Block] = []
    refusals: list[Refusal] = []
    for core, (skip, attended) in starts:
        if not whole.reaches(core, skip):
            continue
        reason = _unmarked(core, flow) or (CAUSAL if causal(core) else None)
        if reason is None and not blocks and skip is not entry:
            reason = "it does not start at the residual stream of the first block"
        if reason is not None:
            refusals.append(_refuse(core, reason))
            continue
        output, sequential = _block_output(attended, flow, order, attentions)
        apart_from = branch(core, skip, attended, flow, shapes)
        blocks.append(Block(len(blocks), core, skip, attended if sequential else None, output, apart_from))
    body = between(entry, blocks[-1].output) if blocks else frozenset()
    inside = [blocked for blocked in flow.blocked if blocked.node in body]
    if inside:
        stopped = max(order[blocked.node] for blocked in inside if blocked.node is not None)
        usable = [
            block
            for block in blocks
            if (producer := block.output.producer()) is not None and order[producer] > stopped
        ]
        refusals.extend(
            Refusal(f"block {block.index}", inside[-1].describe()) for block in blocks if block not in usable
        )
        blocks = [replace(block, index=index) for index, block in enumerate(usable)]
        if blocks:
            axis = next((mark.axis for mark in flow.marks.get(blocks[0].entry, ())), axis)
            body = between(blocks[0].entry, blocks[-1].output)
    return replace(whole, blocks=tuple(blocks), axis=axis, body=body, refusals=tuple(refusals))


def _residual(core: Core) -> tuple[ir.Value, ir.Value] | Refusal:
    """The residual stream the attention reads, and the value right after its result is added to it; or why there is none."""
    sources = ancestors((core.query, core.key, core.value))
    here = core.output
    while True:
        readers = list(dict.fromkeys(node for node, _ in here.uses()))
        if len(readers) != 1:
            why = "is read by several nodes" if readers else "is a graph output"
            return _refuse(
                core,
                f"its result {why} before a residual is added: attention pooling, or a stream of its own",
            )
        node = readers[0]
        others = [
            step
            for step in node.inputs
            if step is not None and step is not here and step.const_value is None and not parameter(step)
        ]
        if others and node.op_type not in ("Reshape", "Expand"):
            skip = next((step for step in others if step in sources), None)
            if node.op_type in ADDITIONS and skip is not None:
                return skip, node.outputs[0]
            beside = next((step for step in others if ancestors((step,)) & sources), None)
            if node.op_type not in ADDITIONS or beside is None:
                return _refuse(
                    core, f"its result meets {node.op_type} node {node.name!r} before a residual is added"
                )
        here = node.outputs[0]


def _block_output(
    attended: ir.Value, flow: Flow, order: dict[ir.Node, int], attentions: set[ir.Node]
) -> tuple[ir.Value, bool]:
    """The next cut where two branches of the stream are added, and whether the MLP reads the attended value."""
    reached, live, sequential = {attended}, {attended: _readers(attended)}, True
    queue = sorted(live[attended], key=order.__getitem__)
    while queue:
        node = queue.pop(0)
        if node in attentions:
            break
        for value in node.inputs:
            if value in live:
                live[value].discard(node)
                if not live[value]:
                    del live[value]
        streams = [value for value in node.inputs if value is not None and flow.marks.get(value)]
        outside = any(value not in reached for value in streams)
        for value in node.outputs:
            reached.add(value)
            readers = _readers(value)
            if readers:
                live[value] = readers
            queue = sorted({*queue, *readers}, key=order.__getitem__)
        if node.op_type in ADDITIONS and len(streams) > 1:
            if outside:
                return node.outputs[0], False
            if set(live) <= {node.outputs[0]}:
                return node.outputs[0], sequential
    return attended, sequential


def _readers(value: ir.Value) -> set[ir.Node]:
    return {node for node, _ in value.uses()}


def _stops(core: Core, flow: Flow) -> list[Blocked]:
    """The nodes in front of an attention that the tokens do not pass."""
    before = ancestors((core.query, core.key, core.value))
    return [b for b in flow.blocked if b.node is not None and not before.isdisjoint(b.node.outputs)]


def _unmarked(core: Core, flow: Flow) -> str | None:
    """Why the attention is not over the stream's token axis, or None."""
    if all(flow.marks.get(value) for value in (core.query, core.key, core.value)):
        return None
    for stop in _stops(core, flow):
        return f"the token axis does not reach it: {stop.describe()}"
    return "it does not read the residual stream's tokens"


def _why_not(found: list[Structure], axes: list[int], core: Core, shapes: Shapes, entry: ir.Value) -> str:
    if not axes:
        return (
            f"it attends over {core.keys} tokens, but no axis of the residual stream "
            f"{describe(shapes.of(entry))} has that length: windows or a reduced key grid"
        )
    reasons = [refusal.reason for structure in found for refusal in structure.refusals]
    return reasons[-1] if reasons else "no block could be formed around it"


def _refuse(core: Core, reason: str) -> Refusal:
    return Refusal(f"attention at {core.node.op_type} node {core.node.name!r}", reason)
