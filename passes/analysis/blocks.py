"""Find the transformers of a graph and their blocks: the residual stream, where it ends, what is protected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.attended import attends, folds_tokens, heads_first, with_heads
from tokenrt.passes.analysis.attention import Core, cores
from tokenrt.passes.analysis.branch import block_output, branch
from tokenrt.passes.analysis.flow import Flow, follow
from tokenrt.passes.analysis.grid import Grid, grid, grid_of_rows
from tokenrt.passes.analysis.joint import joined, streams
from tokenrt.passes.analysis.outlets.caches import caches
from tokenrt.passes.analysis.protected import (
    LAST,
    LEARNED,
    WANTED,
    Spans,
    free,
    guarded,
    positions,
    resolved,
)
from tokenrt.passes.analysis.refused.missed import OTHERS, missed, nothing
from tokenrt.passes.analysis.residual import Refusal, Start, refuse, told, traced
from tokenrt.passes.analysis.rules.beside import beside
from tokenrt.passes.analysis.stream import (
    Layout,
    candidates,
    counted,
    fewer,
    layout,
    origins,
    row_marks,
    side_by_side,
    stream_of,
)
from tokenrt.passes.analysis.structure import Block, Structure, stops
from tokenrt.passes.analysis.visibility import obstacle, prompts, together, unseen
from tokenrt.passes.analysis.visibility.relation import connected, told_to_all
from tokenrt.passes.graph.ancestry import between, learned, nested
from tokenrt.passes.graph.shapes import Shapes, describe


@dataclass(frozen=True)
class Found:
    """Every transformer of a graph, in graph order, and all that was refused."""

    transformers: tuple[Structure, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Scene:
    """What the search looks at. order: places of the nodes; every: all attentions; added: nodes of those with a residual.

    wanted: the tokens that the user protects.
    """

    graph: ir.Graph
    shapes: Shapes
    order: Mapping[ir.Node, int]
    every: Sequence[Core]
    added: frozenset[ir.Node]
    wanted: Spans


def find(graph: ir.Graph, shapes: Shapes, wanted: Spans = ()) -> Found:
    """Find the transformers: each starts at the first attention that the tokens of those before it do not reach.

    wanted: tokens that the user protects, in every transformer that has so many. A graph without any gives none, and refusals
    that say why.
    """
    every = cores(graph, shapes)
    lost = [refuse(miss, miss.reason) for miss in missed(graph, shapes, (core.node for core in every))]
    if not every:
        return Found((), tuple(lost) or (Refusal("model", nothing(graph)),))
    order = {inner: place for place, node in enumerate(graph) for inner in (node, *nested(node))}
    traces = traced(every, shapes)
    starts = [(core, start) for core, start in traces if not isinstance(start, Refusal)]
    scene = Scene(graph, shapes, order, every, frozenset(core.node for core, _ in starts), wanted)
    transformers: list[Structure] = []
    refusals: list[Refusal] = []
    waiting = starts
    while waiting:
        made = _first(scene, waiting)
        if isinstance(made, Refusal):
            refusals.append(made)
            waiting = [start for start in waiting if start[0] is not waiting[0][0]]
        else:
            transformers.append(made)
            waiting = [(core, start) for core, start in waiting if not made.reaches(core, start[0], shapes)]
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
        for core, start in traces
        if isinstance(start, Refusal)
        and not any(marks.get(core.key) and not marks.get(core.query) for marks in flows)
    )
    return Found(tuple(transformers), tuple(dict.fromkeys((*refusals, *lost))))


def _first(scene: Scene, starts: list[Start]) -> Structure | Refusal:
    """The transformer that starts at the first of these attentions, or why none does.

    Of a joint attention's streams, that which comes to an output by its own way.
    """
    several = [start for start in starts if start[0] is starts[0][0]]
    if len(several) > 1:
        made = [_of_stream(scene, [start, *(s for s in starts if s[0] is not start[0])]) for start in several]
        found = [each for each in made if not isinstance(each, Refusal)]
        return max(found, key=lambda each: (_leads_on(each, scene), each.tokens), default=made[0])
    return _of_stream(scene, starts)


def _leads_on(structure: Structure, scene: Scene) -> bool:
    """Whether the tokens of a stream come to an output, or to what puts them on a grid, past Concats with other streams."""
    graph, tokens, flow = scene.graph, structure.tokens, structure.flow
    while not any(flow.marks.get(value) for value in graph.outputs):
        ends = [blocked.node for blocked in flow.blocked if blocked.node not in structure.body]
        node = next((node for node in ends if node is not None and node.op_type == "Concat"), None)
        mark = None if node is None else beside(node, flow.inputs[node], scene.shapes)
        if node is None or mark is None:
            return bool(ends)
        flow = follow(graph, scene.shapes, {node.outputs[0]: (mark,)}, tokens=tokens, protected=())
    return True


def _of_stream(scene: Scene, starts: list[Start]) -> Structure | Refusal:
    """The transformer that starts at the first of these attentions, of the stream it is named with; or why none does."""
    core, (entry, _) = starts[0]
    shapes = scene.shapes
    if core.queries != core.keys:
        apart = f"{core.queries} queries attend to {core.keys} keys: not self-attention over one token axis"
        return told(refuse(core, apart), core, shapes)
    reasons: list[tuple[bool, str]] = []
    for tokens in streams(core, shapes) or (core.keys,):
        for marks in candidates(shapes.of(entry), tokens):
            dims = shapes.of(entry)
            stream = layout(marks, dims) or side_by_side(marks, dims, _pictures(scene))
            if stream is None:
                continue
            made = _structure(scene, starts, stream, tokens)
            if made.blocks:
                cached = bool(caches(scene.graph, made, shapes))
                return replace(made, grid=_grid(made, shapes, scene.graph), cached=cached)
            proven = attends(core, made.flow, shapes)
            own = [refusal for refusal in made.refusals if refusal.where == refuse(core, "").where]
            reasons.extend((proven, refusal.reason) for refusal in own or made.refusals)
    return told(refuse(core, _why_not(reasons, core, shapes, entry)), core, shapes)


def _grid(structure: Structure, shapes: Shapes, graph: ir.Graph) -> Grid | None:
    stream = structure.stream
    if stream.marks[0].grid is not None:
        return stream.marks[0].grid
    images = shapes.of(graph.inputs[0])[0]
    entry, axis = structure.blocks[0].entry, stream.marks[0].axis
    if stream.across > 1:
        return grid_of_rows(entry, stream, structure.tokens, structure.protected, shapes, images)
    return grid(entry, axis, structure.tokens, structure.protected, shapes, images) if stream.plain else None


def _structure(scene: Scene, starts: list[Start], stream: Layout, tokens: int) -> Structure:
    graph, shapes, order = scene.graph, scene.shapes, scene.order
    first, (entry, _) = starts[0]
    seeds = origins(entry, stream.marks, tokens, shapes)
    constant = learned(entry, stream.marks[0].axis, shapes).nonzero()[0].tolist() if stream.plain else ()
    asked = resolved(scene.wanted, tokens)
    prompt = prompts(first, shapes)
    last = {tokens - 1} - {*(asked or ())} if prompt else ()
    kept, flow = guarded(
        {LEARNED: constant, WANTED: asked or (), LAST: last},
        tokens,
        lambda kept: follow(graph, shapes, seeds, tokens=tokens, protected=kept),
    )
    # What is cut off together with others, as a part that is joined to them again, is no class token.
    first_token = any(
        guard.first == 0 and (guard.why == LEARNED or (len(guard.positions) == 1 and guard.why != WANTED))
        for guard in kept
    )
    fits = asked is not None
    whole = Structure(
        (), tokens, kept, first_token, stream, seeds, frozenset(), flow, (), fits=fits, prompt=prompt
    )
    in_turn = next((core for core in scene.every if folds_tokens(core, flow, shapes)), None)
    if in_turn is not None and stream.across == 1:
        together = side_by_side(stream.marks, stream.dims, _pictures(scene))
        if together is None:
            return replace(whole, refusals=(refuse(first, _in_turn(in_turn)),))
        stream = together
        whole = replace(whole, stream=stream)
    rows = [
        follow(graph, shapes, {entry: (mark,)}, tokens=counted(mark, shapes.of(entry)), protected=())
        for mark in row_marks(stream)
    ]
    mixing = next((core for each in rows for core in scene.every if _mixes(each, core)), None)
    if stream.across > 1 and mixing is not None:
        return replace(whole, refusals=(refuse(first, _in_turn(mixing)),))
    blocks: list[Block] = []
    refusals: list[Refusal] = []
    mine = [core for core in scene.every if not folds_tokens(core, flow, shapes)]
    # Cross-attention, to keys that are none of these tokens, is part of a block; it does not begin the next.
    across = [core for core in mine if flow.marks.get(core.query) and not flow.marks.get(core.key)]
    added = scene.added & {core.node for core in mine if core not in across}
    others = frozenset(attended for core, (_, attended) in starts if core not in mine or core in across)
    for core, (skip, attended) in starts:
        several = any(other is core and start[0] is not skip for other, start in starts)
        if not whole.reaches(core, skip, shapes) or (several and not flow.marks.get(skip)):
            continue  # What another stream brings to a joint attention is that stream's.
        reason = _unproven(core, flow, shapes) or heads_first(core, rows, shapes)
        if reason is None and core.keys != tokens and (core.masks or core.causal):
            reason = joined(core, shapes)
        if reason is None and stream_of(skip, flow, shapes, stream) is None:
            reason = (
                f"its residual stream {describe(shapes.of(skip))} is no plain stream of tokens{fewer(stream)}"
            )
        if reason is None and not blocks and skip is not entry:
            reason = "it does not start at the residual stream of the first block"
        if reason is not None:
            refusals.append(refuse(core, reason))
            continue
        own = with_heads(core, stream.rows * stream.across, shapes)
        output, sequential = block_output(attended, flow, order, added, others)
        apart_from = branch(core, skip, attended, flow, shapes, stream)
        blocks.append(Block(len(blocks), own, skip, attended if sequential else None, output, apart_from))
    blocks, hidden = _in_sight(blocks, mine, whole, shapes, order)
    refusals.extend(hidden)
    whole = replace(whole, unseen=_unseen([block for block in blocks if not block.apart], whole, shapes))
    body = between(entry, blocks[-1].output) if blocks else frozenset()
    inside = [blocked for blocked in flow.blocked if blocked.node in body]
    if inside:
        stopped = max(order[blocked.node] for blocked in inside if blocked.node is not None)
        usable = [
            block
            for block in blocks
            if (producer := block.output.producer()) is not None and order[producer] > stopped
        ]
        needed = f"{inside[-1].describe()}; what left in front of it would be missing there"
        needed += ", and only blocks behind it take a reduction" if usable else ""
        refusals.extend(Refusal(f"block {block.index}", needed) for block in blocks if block not in usable)
        blocks = [replace(block, index=index) for index, block in enumerate(usable)]
        if blocks:
            whole = _from(blocks[0].entry, whole, shapes)
            body = between(blocks[0].entry, blocks[-1].output)
    images = shapes.of(graph.inputs[0])[:1] if graph.inputs else ()
    apart_rows = tuple(rows) if (stream.rows,) != images else ()
    return replace(whole, blocks=tuple(blocks), body=body, refusals=tuple(refusals), rows=apart_rows)


def _from(entry: ir.Value, whole: Structure, shapes: Shapes) -> Structure:
    """The transformer as it starts at a later block, whose entry was found to be a stream."""
    held = whole.held(entry, shapes)
    assert held is not None
    return replace(whole, stream=held, origins={entry: held.marks})


def _pictures(scene: Scene) -> int:
    """The pictures of the batch, as the first input counts them."""
    return scene.shapes.of(scene.graph.inputs[0])[0]


def _mixes(rows: Flow, core: Core) -> bool:
    """Whether an attention computes across the pictures that a flow follows."""
    stopped = {blocked.node for blocked in rows.blocked}
    return core.node in stopped


def _in_turn(core: Core) -> str:
    return (
        f"its tokens are rows of the batch for attention at {core.node.op_type} node {core.node.name!r}, which runs over "
        "another axis: attention over two axes in turn (frames and places, rows and columns). If every row chose tokens "
        "of its own, that attention would mix tokens that do not belong together; tokens can leave only behind the last of "
        "these, where the model allows it"
    )


def _in_sight(
    blocks: list[Block], every: Sequence[Core], whole: Structure, shapes: Shapes, order: Mapping[ir.Node, int]
) -> tuple[list[Block], list[Refusal]]:
    """The blocks, those marked up to the last attention whose mask keeps tokens apart: what merges would come together there."""
    marks, leaving = whole.flow.marks, free(whole.protected, whole.tokens).tolist()
    met = [core for core in every if marks.get(core.query) and marks.get(core.key)]
    walls = [(core, why) for core in met if (why := obstacle(core, shapes, leaving)) is not None]
    every_layer = together(met, shapes) if walls else None
    if not walls or (every_layer is not None and connected(every_layer[np.ix_(leaving, leaving)])):
        return blocks, []
    last, why = walls[-1]
    reasons = {core.node: reason for core, reason in walls}
    for block in blocks:
        if order[block.core.node] < order[last.node]:
            reasons.setdefault(
                block.core.node,
                f"what leaves here comes to the attention at {last.node.op_type} node {last.node.name!r}, and {why}",
            )
    refused = [refuse(core, reasons[core.node], merging=True) for core in met if core.node in reasons]
    return [replace(block, apart=reasons.get(block.core.node, "")) for block in blocks], refused


def _unseen(blocks: Sequence[Block], whole: Structure, shapes: Shapes) -> tuple[int, ...]:
    """The protected tokens of which not all tokens learn in the blocks; learned ones tell nothing of the input."""
    constant = positions(guard for guard in whole.guards if guard.why == LEARNED)
    asked = sorted({*whole.protected} - {*constant})
    found = set().union(*(unseen(block.core, shapes, asked) for block in blocks if asked))
    every_layer = together((block.core for block in blocks), shapes) if found else None
    return tuple(
        sorted(token for token in found if every_layer is None or not told_to_all(every_layer, token))
    )


def _unproven(core: Core, flow: Flow, shapes: Shapes) -> str | None:
    """Why the attention is not proven to run over the stream's token axis, or None where it is."""
    if attends(core, flow, shapes):
        return None
    if all(flow.marks.get(value) for value in (core.query, core.key, core.value)):
        return f"the axis its softmax runs over is not the one that counts the residual stream's tokens; {OTHERS}"
    if before := stops(core, flow):
        return f"the token axis does not reach it: {before[-1].describe()}"
    return "it does not read the residual stream's tokens"


def _why_not(reasons: Sequence[tuple[bool, str]], core: Core, shapes: Shapes, entry: ir.Value) -> str:
    """The reason that tells most: of an axis that is proven to be attended over, else of the first that could be."""
    if not reasons:
        return (
            f"it attends over {core.keys} tokens, but no axis of the residual stream "
            f"{describe(shapes.of(entry))} holds so many: windows, a reduced key grid, or another axis than the tokens"
        )
    return next((reason for proven, reason in reasons if proven), reasons[0][1])
