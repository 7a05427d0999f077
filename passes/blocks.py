"""Find the transformer blocks around the attentions: the residual stream, where it ends, what is protected.

A block's *attended* value is the residual stream right after the attention is added; its *output* is the
stream after the whole block. Both are cuts: whatever follows sees the tokens only through them, so tokens can
leave there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from tokenrt.passes.ancestry import ancestors, between, constant_prefix, nested
from tokenrt.passes.attention import Core, causal, cores
from tokenrt.passes.branch import Branch, branch
from tokenrt.passes.flow import Flow, Mark, Marks, follow
from tokenrt.passes.grid import Grid, grid
from tokenrt.passes.shapes import Shapes, describe

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
    """The blocks of a model and its token axis.

    tokens: N at the first block. protect: leading tokens that never leave. axis: the token axis of the
    stream. body: the nodes from the first block's entry to the last block's output; everything else behind
    them is tail. grid: the layout of the unprotected tokens, (h, w) or (frames, h, w), where one is found.
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

    def candidates(self) -> int:
        """Attentions that are a block or were refused as one."""
        return len(self.blocks) + sum(refusal.where.startswith("attention at") for refusal in self.refusals)

    def seeds(self) -> dict[ir.Value, Marks]:
        return {self.blocks[0].entry: (Mark(self.axis),)} if self.blocks else {}


def find(graph: ir.Graph, shapes: Shapes) -> Structure:
    """Find the blocks. A model without any gives an empty structure whose refusals say why."""
    order = {inner: place for place, node in enumerate(graph) for inner in (node, *nested(node))}
    refusals: list[Refusal] = []
    every = cores(graph, shapes)
    if not every:
        refusals.append(
            Refusal("model", "no attention found: no softmax between two products and no Attention node")
        )
    traced = [(core, _residual(core)) for core in every]
    starts = [(core, start) for core, start in traced if not isinstance(start, Refusal)]
    apart = [(core, start) for core, start in traced if isinstance(start, Refusal)]
    for place, (first, (entry, _)) in enumerate(starts):
        if first.queries != first.keys:
            refusals.append(
                _refuse(
                    first,
                    f"{first.queries} queries attend to {first.keys} keys: not self-attention over one token axis",
                )
            )
            continue
        axes = [
            axis
            for axis, size in enumerate(shapes.of(entry))
            if size == first.keys and axis < len(shapes.of(entry)) - 1
        ]
        found = [_structure(graph, shapes, starts[place:], axis, order, refusals, apart) for axis in axes]
        best = max(found, key=lambda structure: len(structure.blocks), default=None)
        if best is not None and best.blocks:
            start, images = best.blocks[0].entry, shapes.of(graph.inputs[0])[0]
            return replace(best, grid=grid(start, best.axis, best.tokens, best.protect, shapes, images))
        refusals.append(_refuse(first, _why_not(found, axes, first, shapes, entry)))
    refusals.extend(refusal for _, refusal in apart)
    return Structure((), 0, 0, False, 0, frozenset(), Flow(), tuple(dict.fromkeys(refusals)))


def _structure(
    graph: ir.Graph,
    shapes: Shapes,
    starts: list[tuple[Core, tuple[ir.Value, ir.Value]]],
    axis: int,
    order: dict[ir.Node, int],
    earlier: list[Refusal],
    apart: list[tuple[Core, Refusal]],
) -> Structure:
    entry = starts[0][1][0]
    tokens = starts[0][0].keys
    prefix = constant_prefix(entry, axis, shapes)
    seeds: dict[ir.Value, Marks] = {entry: (Mark(axis),)}
    flows = {
        count: follow(graph, shapes, seeds, tokens=tokens, protect=count)
        for count in dict.fromkeys((prefix, max(prefix, 1)))
    }
    protect = min(flows, key=lambda count: (len(flows[count].blocked), count))
    flow, refusals, blocks = flows[protect], [*earlier], list[Block]()
    # An attention whose keys are tokens and whose queries are not pools them; that needs no block.
    refusals.extend(
        refusal for core, refusal in apart if not flow.marks.get(core.key) or flow.marks.get(core.query)
    )
    nodes = {core.node for core, _ in starts}
    for core, (skip, attended) in starts:
        reason = _unmarked(core, flow) or (CAUSAL if causal(core) else None)
        if reason is not None and blocks and core.queries == core.keys and not flow.marks.get(skip):
            reason = (
                f"it belongs to a transformer of its own, over {core.keys} tokens that start anew at {skip.name!r}, and "
                f"of several the first is reduced, here that of {tokens} tokens ({reason})"
            )
        if reason is None and not blocks and skip is not entry:
            reason = "it does not start at the residual stream of the first block"
        if reason is not None:
            refusals.append(_refuse(core, reason))
            continue
        output, sequential = _block_output(attended, flow, order, nodes)
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
            axis_there = next((mark.axis for mark in flow.marks.get(blocks[0].entry, ())), axis)
            body = between(blocks[0].entry, blocks[-1].output)
            axis = axis_there
    class_token = protect > 0
    return Structure(
        tuple(blocks), tokens, protect, class_token, axis, body, flow, tuple(dict.fromkeys(refusals))
    )


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
            step for step in node.inputs if step is not None and step is not here and step.const_value is None
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


def _unmarked(core: Core, flow: Flow) -> str | None:
    """Why the attention is not over the stream's token axis, or None."""
    rank_marks = flow.marks.get(core.query, ()), flow.marks.get(core.key, ()), flow.marks.get(core.value, ())
    if not all(rank_marks):
        blocked = next(
            (
                b
                for b in flow.blocked
                if b.node is not None and set(b.node.outputs) & ancestors((core.query, core.key, core.value))
            ),
            None,
        )
        return (
            f"the token axis does not reach it: {blocked.describe()}"
            if blocked
            else "it does not read the residual stream's tokens"
        )
    return None


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
