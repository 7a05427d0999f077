"""Insert the reductions of a plan and repair everything behind them.

Works on a graph of its own (a canonical copy). Order: find where tokens must be restored, insert the
reductions, then apply the edits the token-axis analysis lists (constants, masks, pools, proportional
attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ancestry import depends_on_input
from tokenrt.passes.attention import Core
from tokenrt.passes.auxiliary import Auxiliaries
from tokenrt.passes.blocks import Structure
from tokenrt.passes.flow import Edit, Mark
from tokenrt.passes.methods.contract import Method, Site, Value
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.plan import Plan, PlannedSite
from tokenrt.passes.repair import Repairs
from tokenrt.passes.route import Route
from tokenrt.passes.shapes import Shapes
from tokenrt.passes.stages import Stage, constant
from tokenrt.passes.taps import FLOAT, GraphTaps, additive, batch_of

SHOWN = -5000.0
"""Scores a mask lowers by more than this are hidden; exporters write -10000, the lowest number, or -inf."""


@dataclass
class Rewriter:
    """One rewrite: the graph being changed, the stage after each site, and what replaced each stream."""

    graph: ir.Graph
    shapes: Shapes
    structure: Structure
    method: Method
    plan: Plan
    path: Route
    op: GraphOps
    stages: list[Stage] = field(default_factory=list)
    reduced: dict[ir.Value, tuple[ir.Value, int]] = field(default_factory=dict)
    validity: ir.Value | None = None

    @cached_property
    def order(self) -> dict[ir.Node, int]:
        """Places of the nodes before anything was inserted."""
        return {node: place for place, node in enumerate(self.graph)}

    @property
    def batch(self) -> int:
        """Images in the stream, -1 where that is dynamic."""
        site = self.path.sites[0]
        return batch_of(self.shapes, site, 0 if self.path.flow.marks[site][0].axis else 1)

    def run(self) -> None:
        """Change the graph."""
        nodes, restored = [*self.order], self.path.restored
        uses = {value: [*value.uses()] for value in self.path.sites}
        taps = [
            value
            for node in nodes
            for value in node.outputs
            if any(value in full for full in restored.values())
        ]
        readers = {value: [(n, i) for n, i in value.uses() if value in restored.get(n, ())] for value in taps}
        self.stages.append(Stage(self.structure.tokens))
        if self.method.reads:
            self._start_sizes()
        repairs = Repairs(
            graph=self.graph,
            op=self.op,
            shapes=self.shapes,
            path=self.path,
            counts=self.plan.counts(),
            stages=self.stages,
            auxiliaries=Auxiliaries(self.op, self.shapes, self.validity, self.method.merges),
            proportional=self.plan.proportional_attention,
            batch=self.batch,
        )
        sites = dict(zip(self.path.sites, enumerate(self.plan.sites), strict=True))
        edits: dict[ir.Node, list[Edit]] = {}
        for edit in self.path.flow.edits:
            edits.setdefault(edit.node, []).append(edit)
        # In graph order, so that a reduction reads masks which already have its length.
        for node in nodes:
            for edit in edits.get(node, ()):
                repairs.apply(edit)
            for value in node.outputs:
                if value in sites:
                    self._reduce(*sites[value], value, uses[value])
        for value in taps:
            self._restore(value, readers[value])

    def expose_source_map(self) -> None:
        """Add the output `token_source_map` [B,N0]: the final token each original one lives in, -1 where dropped."""
        self.op.before, self.op.prefix = None, "tokenrt_map"
        value = self.op.value(self.stages[-1].source_map)
        images = self.op("Slice", self.op("Shape", self.graph.inputs[0]), [0], [1])
        value = self.op("Expand", value, self.op("Concat", images, [1], axis=0))
        value.name = "token_source_map"
        batch: int | str = "batch" if self.shapes.dynamic_batch else self.shapes.of(self.graph.inputs[0])[0]
        value.shape = ir.Shape((batch, self.structure.tokens))
        self.graph.outputs.append(value)

    def _start_sizes(self) -> None:
        """Padding (hidden by a mask of the first block) has size 0, so that merging it changes nothing."""
        core = self.structure.blocks[0].core
        self.op.before, self.op.prefix = _next(self.graph, self.path.sites[0]), "tokenrt_mask"
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
            shown = self.op("Cast", self.op("Greater", mask, SHOWN), to=FLOAT)
            rank = len(self.shapes.of(value))
            total = self.op("ReduceSum", shown, list(range(1, rank - 1)), keepdims=0) if rank > 2 else shown
            valid = self.op("Cast", self.op("Greater", total, 0.0), to=FLOAT)
            self.validity = self.op("Unsqueeze", valid, [-1])
            self.stages[0] = Stage(self.structure.tokens, size=self.validity)

    def _reduce(
        self, number: int, planned: PlannedSite, value: ir.Value, uses: Sequence[tuple[ir.Node, int]]
    ) -> None:
        core, stage, op = self.structure.blocks[planned.block].core, self.stages[-1], self.op
        op.before, op.prefix = _next(self.graph, value), f"tokenrt_block{planned.block}"
        mark = self.path.flow.marks[value][0]
        tokens = self._rows(value, mark)
        count = self._count_at(core)
        padded = self.validity is not None
        taps = GraphTaps(
            op,
            core,
            self.shapes,
            self.path.flow.marks,
            count,
            self.batch,
            tokens,
            stage.size,
            padded,
            stage.state,
        )
        site = Site(
            tokens=stage.count,
            keep=planned.tokens,
            protect=self.structure.protect,
            heads=core.heads,
            width=core.width,
            block=planned.block,
            blocks=len(self.structure.blocks),
            class_token=self.structure.class_token,
            initial=self.structure.tokens,
        )
        reduction = self.method.reduce(op, taps, site)
        self.stages.append(stage.after(op, reduction, tokens, planned.tokens, self.method.drops))
        result = self._rows(reduction.tokens, mark)
        for node, index in uses:
            if value not in self.path.restored.get(node, ()):
                node.replace_input_with(index, result)
        self.reduced[value] = (result, number + 1)

    def _count_at(self, core: Core) -> int:
        """Tokens the attention works on: those behind the sites before it."""
        return self.plan.counts()[self.path.flow.marks[core.key][0].stage]

    def _rows(self, value: ir.Value, mark: Mark) -> ir.Value:
        """[B,N,C] from the stream, or back; a stream of [N,B,C] is transposed."""
        return value if mark.axis == 1 else self.op("Transpose", value, perm=[1, 0, 2])

    def _restore(self, value: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
        """Give the readers of a tap, and the model's output if it is one, all original positions again."""
        (mark, *more), rank = self.path.flow.marks[value], len(self.shapes.of(value))
        if more or rank != 3 or mark.outer * mark.inner != 1 or mark.offset:
            raise UnsupportedError(
                f"tensor {value.name!r} is read outside the blocks and is no plain stream of tokens [B,N,C]"
            )
        current, number = self.reduced.get(value, (value, mark.stage))
        if not number:
            return
        self.op.before = min((node for node, _ in readers), key=self.order.__getitem__, default=None)
        self.op.prefix = "tokenrt_restore"
        full = self._rows(self._full(self._rows(current, mark), number), mark)
        for node, index in readers:
            node.replace_input_with(index, full)
        if value in self.path.restored.get(None, ()):
            place = [*self.graph.outputs].index(value)
            value.name, full.name = f"{value.name}_reduced", value.name
            full.shape, full.type = value.shape, value.type
            self.graph.outputs[place] = full

    def _full(self, tokens: ir.Value, number: int) -> ir.Value:
        """All N0 positions: merged tokens are copied; dropped ones keep what they last were."""
        op = self.op
        if not self.method.drops:
            return self._spread(tokens, self.stages[number].source_map)
        for place in range(number, 0, -1):
            stage, before = self.stages[place], self.stages[place - 1].count
            cached = np.arange(stage.count, stage.count + before, dtype=np.int64)[None]
            kept = constant(stage.assign)
            if isinstance(kept, np.ndarray):
                source: Value = np.where(kept < 0, cached, kept)
            else:
                source = op("Where", op("Less", kept, 0), cached, kept)
            tokens = self._spread(op("Concat", tokens, stage.before, axis=1), source)
        return tokens

    def _spread(self, tokens: ir.Value, source_map: Value) -> ir.Value:
        """Copy tokens to the positions that map to them."""
        if isinstance(source_map, np.ndarray):
            return self.op("Gather", tokens, source_map[0], axis=1)
        return self.op("TokenRestore", tokens, source_map)


def annotate(graph: ir.Graph, shapes: Shapes) -> None:
    """Give every value the element type that inference found."""
    for node in graph:
        for value in node.outputs:
            kind = shapes.types.get(str(value.name))
            if kind is not None and value.type is None:
                value.type = ir.TensorType(kind)


def _next(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The node that stands right behind the producer of `value`; None behind the last."""
    producer = value.producer()
    if producer is None:
        return graph[0]
    nodes = [*graph]
    return next(iter(nodes[nodes.index(producer) + 1 :]), None)
