"""Choose among the tokens of an output: insert the choice, let what lies behind it run on what is left, and tell which stayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.flow import Cut, Flow
from tokenrt.passes.analysis.outlets.find import Climb, Outlet, climb
from tokenrt.passes.analysis.outlets.queries import Queries
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.analysis.protected import arranged
from tokenrt.passes.graph.ancestry import between
from tokenrt.passes.graph.interface import KEPT, MAP, Port
from tokenrt.passes.graph.model import opset
from tokenrt.passes.methods.contract import Method, Reduction, Site, Value
from tokenrt.passes.methods.parts import bipartite, steps
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.outputs import fit as at_output
from tokenrt.passes.planning.outputs.site import OutputSite
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.route import Route
from tokenrt.passes.rewriting.arrange import reduce, selects
from tokenrt.passes.rewriting.auxiliary import Auxiliaries
from tokenrt.passes.rewriting.inputs import gain
from tokenrt.passes.rewriting.outputs.outlet_taps import OutletTaps
from tokenrt.passes.rewriting.prove import prove
from tokenrt.passes.rewriting.repair import END, Repairs
from tokenrt.passes.rewriting.stages import Stage, compose, constant, follow
from tokenrt.passes.rewriting.streams import from_rows, tell, to_rows
from tokenrt.passes.rewriting.tidy import tidy


def rewrite(prepared: Prepared, plan: Plan, site: OutputSite) -> ir.Model:
    """The prepared model with a choice among the tokens of an output, changed in place and proven.

    Raises: PlanError, MethodError, UnsupportedError, ProofError; the model is then of no use.
    """
    outlet, beside, method = at_output.checked(prepared, site)
    model, shapes = prepared.model, prepared.shapes
    op = GraphOps(model.graph, None, opset(model), "tokenrt_output")
    pictures = next((value for value in model.graph.inputs if len(shapes.of(value)) == 4), None)
    added = {name: gain(model.graph, name, dims, method.name) for name, dims in site.inputs.items()}
    given = added if pictures is None else {"pixels": pictures, **added}
    rewriter = OutletRewriter(prepared, outlet, beside, site, method, op, given)
    asked = at_output.learned(prepared, outlet, method)
    told = [name for name in (KEPT, MAP) if name in {str(value.name) for value in model.graph.outputs}]
    if asked is None:
        rewriter.run()
    else:
        rewriter.ask(asked)
    op.add_functions(model)
    last = model.graph.outputs[-1]
    interface = (
        prepared.interface.changed(rewriter.dims, told)
        .with_inputs(Port(name, value.dtype) for name, value in added.items())
        .with_outputs([(str(last.name), ir.DataType.INT64)])
    )
    tidy(model)
    known = {name: dims for name, dims in shapes.dims.items() if name not in told}
    before = replace(shapes, dims=known | rewriter.dims)
    axis = (site.output, len(outlet.held.dims) - 2, site.tokens)
    prove(model, plan, before, [axis], interface)
    return model


@dataclass
class OutletRewriter:
    """One rewrite of one output, and of those with the same token axis.

    beside: further outlets that the same choice is made of. inputs: what the method takes, by name. dims: the new shapes of the
    outputs. selects: what stays is some of the rows as they are.
    """

    prepared: Prepared
    outlet: Outlet
    beside: Sequence[Outlet]
    site: OutputSite
    method: Method
    op: GraphOps
    inputs: Mapping[str, ir.Value]
    dims: dict[str, tuple[int, ...]] = field(default_factory=dict)
    selects: bool = False

    @property
    def graph(self) -> ir.Graph:
        return self.prepared.model.graph

    def run(self) -> None:
        """Change the graph."""
        outlet, shapes = self.outlet, self.prepared.shapes
        top = climb(self.graph, shapes, outlet)
        place = at_output.place(top, outlet, self.method)
        rest = [(other, climb(self.graph, shapes, other)) for other in self.beside]
        self.op.before, self.op.prefix = None, "tokenrt_output"
        uses = {cut.value: [*cut.value.uses()] for cut in (place, *(at for _, at in rest))}
        rows = to_rows(self.op, place.value, place.held, outlet.tokens)
        protected = at_output.protected(outlet, self.site.protect)
        order, unseen = arranged(protected, outlet.tokens), np.array([], np.int64)
        site, taps = self._site(len(protected), place), self._taps(rows, top)
        found = reduce(self.op, self.method, taps, site, order, unseen)
        self.selects = selects(found, rows)
        if rest and not self.selects:
            others = ", ".join(repr(other.name) for other, _ in rest)
            raise UnsupportedError(
                f"output {outlet.name!r} has its tokens in common with {others}, which can follow a selection, and "
                f"{self.method.name} mixes tokens: use a method that only selects, e.g. divprune"
            )
        reduction = self._in_order(rows, found, protected, site)
        self._replace(outlet, place, reduction.tokens, reduction, uses[place.value])
        for other, at in rest:
            kept = steps.gather(
                self.op, to_rows(self.op, at.value, at.held, outlet.tokens), reduction.position
            )
            self._replace(other, at, kept, reduction, uses[at.value])
        self._tell(reduction)

    def ask(self, queries: Queries) -> None:
        """Keep the first of the model's queries, so that all between them and the output runs on these."""
        count, every = self.site.tokens, self.outlet.tokens
        value, first, uses = queries.value, np.arange(count), [*queries.given.uses()]
        assert value.const_value is not None
        array = np.take(value.const_value.numpy(), first, axis=queries.axis)
        kept = ir.Value(name=f"{value.name}_first_{count}", const_value=ir.tensor(array, dtype=value.dtype))
        kept.type, kept.shape = value.type, ir.Shape(array.shape)
        self.graph.register_initializer(kept)
        kept = self._repeated(kept, queries)
        for node, index in uses:
            node.replace_input_with(index, kept)
        assign = np.concatenate([first, np.full(every - count, steps.DROPPED)])
        reduction = Reduction(kept, None, first[None], assign[None])
        self.selects = True
        self._repair(queries.given, queries.flow, reduction, kept)
        end = self.outlet.value
        self._shorten(self.outlet, end, None if end.shape is None else [*end.shape])
        self._tell(reduction)

    def _repeated(self, kept: ir.Value, queries: Queries) -> ir.Value:
        """What goes into the attention of these queries, repeated for every picture where the model does so."""
        node, op = queries.given.producer(), self.op
        if queries.given is queries.value or node is None:
            return kept
        op.before, inputs = node, [kept, *node.inputs[1:]]
        if node.op_type == "Expand":
            behind = len(kept.shape or ()) - queries.axis  # Shapes meet at their ends.
            sides = (op("Slice", inputs[1], *ends, [0]) for ends in (([0], [-behind]), ([1 - behind], [END])))
            front, back = sides if behind > 1 else (next(sides), np.array([], np.int64))
            inputs[1] = op("Concat", front, [1], back, axis=0)
        return op.repeat(node, inputs)[0]

    def _site(self, protect: int, place: Climb) -> Site:
        source, structures = self.outlet.source, self.prepared.transformers
        structure = structures[source.transformer] if source is not None else None
        blocks = structure.blocks if structure is not None else ()
        core = blocks[self.site.tap_layer].core if -len(blocks) <= self.site.tap_layer < len(blocks) else None
        return Site(
            tokens=self.outlet.tokens,
            keep=self.site.tokens,
            protect=protect,
            heads=core.heads if core is not None else 1,
            width=core.width if core is not None else 1,
            block=self.site.tap_layer % len(blocks) if blocks else 0,
            blocks=max(len(blocks), 1),
            class_token=structure is not None and structure.class_token,
            initial=self.outlet.tokens,
            grid=self.site.grid,
            channels=place.held.channels,
        )

    def _taps(self, rows: ir.Value, top: Climb) -> OutletTaps:
        source = self.outlet.source
        return OutletTaps(
            self.op,
            self.prepared.shapes,
            rows,
            None if source is None else self.prepared.transformers[source.transformer],
            source,
            self.site.tap_layer,
            self.inputs,
            None if top.value is self.outlet.value else lambda tokens: self._projected(tokens, top),
        )

    def _projected(self, tokens: Value, top: Climb) -> Value:
        """Other rows in place of those at the top, carried to the output by copies of the nodes between."""
        made = {top.value: from_rows(self.op, tokens, top.held, self.outlet.tokens)}
        inside = between(top.value, self.outlet.value)
        for node in [node for node in self.graph if node in inside]:
            given = [None if value is None else made.get(value, value) for value in node.inputs]
            made.update(zip(node.outputs, self.op.repeat(node, given), strict=True))
        return to_rows(self.op, made[self.outlet.value], self.outlet.held, self.outlet.tokens)

    def _in_order(self, rows: ir.Value, found: Reduction, protected: Sequence[int], site: Site) -> Reduction:
        """Rows that stay in their own order, where protected ones among the others were read in front of them."""
        if not self.selects or not protected or list(protected) == list(range(len(protected))):
            return found
        position = bipartite.ascending(self.op, found.position, self.site.tokens)
        return Reduction(
            steps.gather(self.op, rows, position),
            None,
            position,
            steps.kept_map(self.op, rows, position, site.keep, site),
        )

    def _replace(
        self,
        outlet: Outlet,
        place: Climb,
        kept: ir.Value,
        reduction: Reduction,
        uses: Sequence[tuple[ir.Node, int]],
    ) -> None:
        """Let the output, and what lies between, run on the rows that are left."""
        count, end = self.site.tokens, outlet.value
        declared = None if end.shape is None else [*end.shape]
        result = kept if outlet.frames > 1 else from_rows(self.op, kept, place.held, count)
        if place.value is end:
            spot = [*self.graph.outputs].index(end)
            end.name, result.name, result.type = f"{end.name}_all", end.name, end.type
            self.graph.outputs[spot] = end = result
        else:
            for node, index in uses:
                node.replace_input_with(index, result)
            self._repair(place.value, place.flow, reduction, kept, place.held.rows, place.held.batch)
        self._shorten(outlet, end, declared)

    def _shorten(self, outlet: Outlet, end: ir.Value, declared: list[Any] | None) -> None:
        """Say the shape that an output has now, of which the model declared this before."""
        dims = list(outlet.held.dims)
        sizes = {len(dims) - 2: self.site.tokens} | ({0: 1} if outlet.frames > 1 else {})
        for axis, size in sizes.items():
            dims[axis] = size
            if declared is not None:
                declared[axis] = size
        end.shape = end.shape if declared is None else ir.Shape(declared)
        self.dims[str(end.name)] = tuple(dims)

    def _repair(
        self, value: ir.Value, flow: Flow, reduction: Reduction, kept: ir.Value, rows: int = 1, batch: int = 1
    ) -> None:
        """Constants and tables behind the choice that hold one entry for each token."""
        tokens = self.outlet.tokens
        start = Stage(tokens)
        stages = [start, start.after(self.op, reduction, kept, self.site.tokens, self.method)]
        shapes = self.prepared.shapes
        repairs = Repairs(
            graph=self.graph,
            op=self.op,
            shapes=shapes,
            path=Route((Cut(value),), flow, {}),
            counts=[tokens, self.site.tokens],
            stages=stages,
            auxiliaries=Auxiliaries(self.op, shapes, None, rows),
            proportional=False,
            batch=batch,
            rows=rows,
        )
        for edit in flow.edits:
            repairs.apply(edit)
        self.op.before, self.op.prefix = None, "tokenrt_output"

    def _tell(self, reduction: Reduction) -> None:
        """Add the output that says which tokens are left; of a model that was reduced before, counted in its first tokens."""
        given = {str(value.name): value for value in self.graph.outputs}
        op, merges = self.op, not self.selects or MAP in given
        before = given.get(MAP if MAP in given else KEPT)
        if KEPT in given and merges:
            raise UnsupportedError(
                f"the model has an output {KEPT!r} of a choice made before, and {self.method.name} merges what it chose: merge "
                "first, or reduce the original by one plan"
            )
        if merges:
            value: Value = constant(reduction.assign)
            value = value if before is None else follow(op, value, before, self.method.drops)
        else:
            value = constant(reduction.position)
            value = value if before is None else compose(op, before, value)
        count = self.outlet.tokens if merges and before is None else self.site.tokens
        if merges and before is not None:
            count = self.prepared.shapes.of(before)[1]
        if before is not None:
            self.graph.outputs.remove(before)
            before.name = f"{before.name}_before"
        end = next(output for output in self.graph.outputs if str(output.name) == self.site.output)
        tell(op, value, MAP if merges else KEPT, count, self.outlet.held.batch, end)
