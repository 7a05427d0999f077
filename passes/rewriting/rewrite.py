"""Insert the reductions of a plan and repair everything behind them.

Works on a graph of its own (a canonical copy). Order: find where tokens must be restored, insert the
reductions, then apply the edits the token-axis analysis lists (constants, masks, pools, proportional
attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes.analysis import protected
from tokenrt.passes.analysis.flow import Cut
from tokenrt.passes.analysis.marks import Edit
from tokenrt.passes.analysis.protected import arranged
from tokenrt.passes.analysis.stream import Layout, fewer, stream_of
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.interface import MAP, at_site
from tokenrt.passes.graph.shapes import Shapes, describe
from tokenrt.passes.methods.contract import Method, Site
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.plan import Plan, PlannedSite
from tokenrt.passes.planning.route import Route
from tokenrt.passes.planning.steps import FROM_LAST
from tokenrt.passes.rewriting import units
from tokenrt.passes.rewriting.arrange import reduce, select
from tokenrt.passes.rewriting.auxiliary import Auxiliaries, check_biases
from tokenrt.passes.rewriting.handed import Handed, parts
from tokenrt.passes.rewriting.logits import FLOAT, SHOWN, additive
from tokenrt.passes.rewriting.repair import Repairs
from tokenrt.passes.rewriting.replay import Replay
from tokenrt.passes.rewriting.stages import Stage, full
from tokenrt.passes.rewriting.streams import from_rows, tell, to_rows
from tokenrt.passes.rewriting.taps import here


@dataclass
class Rewriter:
    """One rewrite: the graph being changed, the stage after each site, and what replaced each stream.

    streams: every reduced or restored stream, its token axis and the tokens it must have. wholes: values of all tokens, where
    some had left. layouts: how the streams seen so far hold their tokens. number: that of the transformer; the names of what is
    put in say it from the second on. gained: inputs that methods asked for, by name.
    """

    graph: ir.Graph
    shapes: Shapes
    structure: Structure
    plan: Plan
    path: Route
    op: GraphOps
    number: int = 0
    stages: list[Stage] = field(default_factory=list)
    replay: Replay = field(init=False)
    reduced: dict[ir.Value, tuple[ir.Value, int]] = field(default_factory=dict)
    streams: list[tuple[ir.Value, int, int]] = field(default_factory=list)
    wholes: dict[ir.Value, ir.Value] = field(default_factory=dict)
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    validity: ir.Value | None = None
    gained: dict[str, ir.Value] = field(default_factory=dict)

    @cached_property
    def handed(self) -> Handed | None:
        """What steps hand to the next, where the tokens that leave rest for a step."""
        if self.plan.returns != FROM_LAST:
            return None
        every = parts(self.structure, self.path, self.shapes)
        dims = (self.structure.stream.rows, self.structure.tokens)
        return Handed(self.op, self.methods[0].name, every, dims, self.gained)

    @cached_property
    def order(self) -> dict[ir.Node, int]:
        """Places of the nodes before anything was inserted."""
        return {node: place for place, node in enumerate(self.graph)}

    @cached_property
    def arranged(self) -> np.ndarray[Any, Any]:
        """[N] int64: positions in the order that reductions keep."""
        return arranged(self.structure.protected, self.structure.tokens)

    @cached_property
    def unseen(self) -> np.ndarray[Any, Any]:
        """[H] int64: which of the protected tokens, counted among them, no choice may read."""
        return np.searchsorted(self.structure.protected, self.structure.unseen)

    @cached_property
    def front(self) -> int:
        """How many of the protected tokens, in units, are the first ones."""
        places = self.structure.protected
        gap = next((rank for rank, token in enumerate(places) if token != rank), len(places))
        return gap // self.plan.unit

    @cached_property
    def words(self) -> tuple[int, int] | None:
        """First and end of the words that methods read, see `protected.words`."""
        return protected.words(self.plan.text, self.structure.protected, self.structure.tokens)

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The method of each site."""
        return tuple(self.plan.at(site) for site in self.plan.sites)

    @cached_property
    def batch(self) -> int:
        """Images in the stream, -1 where that is dynamic."""
        return self.structure.stream.batch

    def run(self) -> None:
        """Change the graph."""
        nodes, restored = [*self.order], self.path.restored
        uses = {cut.value: [*cut.value.uses()] for cut in self.path.sites}
        taps = [
            value
            for node in nodes
            for value in node.outputs
            if any(value in full for full in restored.values())
        ]
        readers = {value: [(n, i) for n, i in value.uses() if value in restored.get(n, ())] for value in taps}
        for block in self.structure.blocks:
            stage = max((mark.stage for mark in self.path.flow.marks[block.core.key]), default=0)
            if not self.path.ordered and any(method.merges for method in self.methods[:stage]):
                check_biases(block.core, self.shapes)
        self.stages.append(Stage(self.structure.tokens, ordered=self.path.ordered))
        if any(method.reads for method in self.methods):
            self._start_sizes()
        repairs = Repairs(
            graph=self.graph,
            op=self.op,
            shapes=self.shapes,
            path=self.path,
            counts=self.plan.counts(),
            stages=self.stages,
            auxiliaries=Auxiliaries(
                self.op, self.shapes, self.validity, self.structure.stream.rows, self.structure.stream.across
            ),
            proportional=self.plan.proportional_attention,
            batch=self.batch,
            rows=self.structure.stream.rows,
            across=self.structure.stream.across,
        )
        sites = {
            cut.value: (number, planned, cut)
            for number, (cut, planned) in enumerate(zip(self.path.sites, self.plan.sites, strict=True))
        }
        edits: dict[ir.Node, list[Edit]] = {}
        for edit in self.path.flow.edits:
            edits.setdefault(edit.node, []).append(edit)
        before = {node: tuple(node.inputs) for node in nodes}
        for cut in self.path.sites:
            self.held(cut.value)  # By name, which a restored output takes away.
        self.replay = Replay(self.op, before, edits, repairs.auxiliaries, len(self.path.sites))
        # In graph order, so that a reduction reads masks which already have its length.
        for value in [value for value in self.graph.inputs if value in sites]:
            self._reduce(*sites[value], uses[value])
        for node in nodes:
            for edit in edits.get(node, ()):
                repairs.apply(edit)
            for value in node.outputs:
                if value in sites:
                    self._reduce(*sites[value], uses[value])
        for value in taps:
            self._restore(value, readers[value])

    def hand_on(self) -> None:
        """Add what this step hands to the next to the outputs, where tokens rest for a step."""
        if self.handed is not None:
            self.handed.tell(self.stages[-1].state)

    def expose_source_map(self, every: bool = False) -> None:
        """Add the output `token_source_map` [B,N0]: where each original token is behind the last site, -1 where dropped.

        That of transformer 1 and later ones ends in their number. every: also those behind each site before, by `at_site`. B is
        the batch of the stream.
        """
        name = f"{MAP}_{self.number}" if self.number else MAP
        told = {value.name for value in self.graph.outputs}
        self.op.before, self.op.prefix = None, "tokenrt_map"
        for place, stage in enumerate(self.stages[1:-1] if every else ()):
            self.output(self.op.value(stage.source_map), at_site(name, place), self.structure.tokens)
        if name not in told:
            self.output(self.op.value(self.stages[-1].source_map), name, self.structure.tokens)

    def output(self, value: ir.Value, name: str, count: int) -> None:
        """Add an output [B,count] of what may be the same for all pictures."""
        stream = self.path.sites[0].value
        held = self.held(stream)
        if self.batch < 0 and not held.plain:
            stream = to_rows(self.op, stream, held, self.structure.tokens)
        axis = 1 if held.plain and held.order == "sequence" else 0
        tell(self.op, value, name, count, self.batch, stream, axis)

    def _prefix(self, what: str) -> str:
        """How the names of inserted nodes begin."""
        return f"tokenrt_transformer{self.number}_{what}" if self.number else f"tokenrt_{what}"

    def _start_sizes(self) -> None:
        """Padding (hidden by a mask of the first block) has size 0, so that merging it changes nothing."""
        core = self.structure.blocks[0].core
        self.op.before, self.op.prefix = _next(self.graph, self.path.sites[0].value), self._prefix("mask")
        for node, index in core.masks:
            value = node.inputs[index]
            if (
                value is None
                or not depends_on_input(value)
                or self.shapes.of(value)[-1] != self.structure.tokens
            ):
                continue
            mask = additive(self.op, node, index)
            if mask is None:
                continue
            if self.structure.stream.across > 1:
                raise UnsupportedError(
                    f"{node.op_type} node {node.name!r} hides tokens as an input of the model says, in each row others, and "
                    "tokens leave from all rows alike: export the model without a mask"
                )
            shown = self.op("Cast", self.op("Greater", mask, SHOWN), to=FLOAT)
            rank = len(self.shapes.of(value))
            total = self.op("ReduceSum", shown, list(range(1, rank - 1)), keepdims=0) if rank > 2 else shown
            valid = self.op("Unsqueeze", self.op("Cast", self.op("Greater", total, 0.0), to=FLOAT), [-1])
            self.validity = valid if self.validity is None else self.op("Mul", self.validity, valid)
            self.stages[0] = replace(self.stages[0], size=self.validity)

    def _reduce(
        self, number: int, planned: PlannedSite, cut: Cut, uses: Sequence[tuple[ir.Node, int]]
    ) -> None:
        op, value = self.op, cut.value
        op.before, op.prefix = _next(self.graph, value), self._prefix(f"block{planned.block}")
        held, method, state = self.held(value), self.methods[number], self._handed(number)
        stage = self.stages[held.marks[0].stage]
        tokens = to_rows(op, value, held, stage.count)
        # Behind the first reduction protected tokens stand in front.
        order = self.arranged if stage.parent is None else np.arange(stage.count)
        taps, site = here.taps(self, planned, tokens, stage, state), self._site(planned, stage)
        run = (
            partial(select, op, method, front=self.front)
            if self.path.ordered
            else partial(reduce, op, method)
        )
        reduction = units.reduce(op, self.plan.unit, taps, site, order, self.unseen, run)
        self.stages.append(stage.after(op, reduction, tokens, planned.tokens, method))
        result = from_rows(op, reduction.tokens, held, planned.tokens, before=value)
        for node, index in uses:
            if cut.reaches(node) and value not in self.path.restored.get(node, ()):
                node.replace_input_with(index, result)
        self._stream(result, held, planned.tokens)
        if cut.readers is None:
            self.reduced[value] = (result, number + 1)

    def _handed(self, number: int) -> Mapping[str, ir.Value]:
        """What the method of a site handed on at its site before. Raises: PlanError where one of another lies between."""
        method, before = self.methods[number], number - 1
        if self.handed is not None:
            return self.handed.carried(method.carries)
        own = [
            place
            for place, other in enumerate(self.methods[:number])
            if other.name == method.name and self.stages[place + 1].state
        ]
        if own and own[-1] != before:
            raise PlanError(
                f"block {self.plan.sites[number].block}: {method.name} goes on with what it noted at its site before, of tokens "
                f"that {self.methods[before].name} has changed since; put the sites of {method.name} next to one another"
            )
        return self.stages[-1].state if own else {}

    def _site(self, planned: PlannedSite, stage: Stage) -> Site:
        structure = self.structure
        core = structure.blocks[planned.block].core
        words, gap = self._of_words()
        return Site(
            tokens=stage.count,
            keep=planned.tokens,
            protect=structure.protect,
            heads=core.heads * structure.stream.across,
            width=core.width,
            across=structure.stream.across,
            block=planned.block,
            blocks=len(structure.blocks),
            class_token=structure.class_token,
            initial=structure.tokens,
            grid=self.plan.grid if stage.count == structure.tokens else None,
            channels=self.held(structure.blocks[planned.block].entry).channels,
            words=words,
            gap=gap,
            packed=here.packed(self),
        )

    def _of_words(self) -> tuple[int | None, int]:
        """How many words there are, and how many tokens stand between them and those that may leave."""
        if not self.path.ordered or self.words is None:
            return None, 0
        (first, end), behind = self.words, self.structure.protect - self.front
        return end - first, behind + first if first < 0 else 0

    def held(self, value: ir.Value) -> Layout:
        """How a value holds the stream. Raises: UnsupportedError where it is no stream."""
        if value in self.layouts:
            return self.layouts[value]
        held = stream_of(value, self.path.flow, self.shapes, self.structure.stream)
        if held is None:
            raise UnsupportedError(
                f"tensor {value.name!r} {describe(self.shapes.of(value))} is read outside the blocks and is no plain "
                f"stream of tokens [B,N,C]{fewer(self.structure.stream)}"
            )
        self.layouts[value] = held
        return held

    def _stream(self, value: ir.Value, held: Layout, count: int, *, full: bool = False) -> None:
        """Note what the proof shall find: the entries on the first token axis of a reduced or restored stream."""
        axis, free = held.marks[0].axis, count - held.marks[0].offset
        entries = count if held.plain else held.folded(free, full=full)[axis]
        if entries >= 0:
            self.streams.append((value, axis, entries + held.lead))

    def _restore(self, value: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
        """Give these readers of a value, and the model's output if it is one, all original positions again."""
        self.op.before = min((node for node, _ in readers), key=self.order.__getitem__, default=None)
        self.op.prefix = "tokenrt_restore"
        whole = self._whole(value)
        for node, index in readers:
            node.replace_input_with(index, whole)
        if value in self.path.restored.get(None, ()):
            place = [*self.graph.outputs].index(value)
            value.name, whole.name = f"{value.name}_reduced", value.name
            whole.shape, whole.type = value.shape, value.type
            self.graph.outputs[place] = whole

    def _whole(self, value: ir.Value) -> ir.Value:
        """A value for all original tokens: restored at a tap, or made again of what was restored there."""
        if value not in self.wholes and self.handed is not None:
            self.wholes[value] = self._completed(value, self.handed)
        if value not in self.wholes:
            way = self.path.again.get(value)
            if way is None:
                self.wholes[value] = self._restored(value)
            else:
                found = {source: self._whole(source) for source in way.sources}
                self.wholes[value] = self.replay.run(way, found, self.stages[0])
        return self.wholes[value]

    def _completed(self, value: ir.Value, handed: Handed) -> ir.Value:
        """A value for all original tokens, of which those that rest are as the step before left them."""
        held = stream_of(value, self.path.flow, self.shapes, self.structure.stream)
        stage, now = self.stages[-1], self.reduced.get(value, (value,))[0]
        rows = now if held is None else to_rows(self.op, now, held, stage.count)
        whole = handed.complete(value, rows, stage.position, stage.count)
        if held is None:
            return whole
        whole = from_rows(self.op, whole, held, self.structure.tokens, full=True, before=now)
        self._stream(whole, held, self.structure.tokens, full=True)
        return whole

    def _restored(self, value: ir.Value) -> ir.Value:
        """All original tokens at a tap."""
        held = self.held(value)
        current, number = self.reduced.get(value, (value, held.marks[0].stage))

        def carry(step: Stage) -> ir.Value | None:
            """The tokens in front of a reduction, with what lies between it and the tap done to them."""
            site = next(place for place, stage in enumerate(self.stages) if stage is step)
            way, parent = self.path.carried.get((value, site)), step.parent
            if way is None or not way.changes or parent is None or step.before is None:
                return None
            (source,) = way.sources
            there, every = self.held(source), parent.parent is None
            found = {source: from_rows(self.op, step.before, there, parent.count, full=every, before=source)}
            return to_rows(self.op, self.replay.run(way, found, parent), held, parent.count)

        rows = to_rows(self.op, current, held, self.stages[number].count)
        tokens = full(self.op, rows, self.stages[number], carry)
        whole = from_rows(self.op, tokens, held, self.structure.tokens, full=True, before=current)
        self._stream(whole, held, self.structure.tokens, full=True)
        return whole


def _next(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The node that stands right behind the producer of `value`; None behind the last."""
    producer = value.producer()
    if producer is None:
        return graph[0]
    nodes = [*graph]
    return next(iter(nodes[nodes.index(producer) + 1 :]), None)
