"""A plan's sites of blocks, made in a whole model: every transformer rewritten, its outputs and metadata told, and proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.graph.interface import Port
from tokenrt.passes.graph.model import copy, opset
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.outputs import handover
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.several import Routes
from tokenrt.passes.planning.steps import FROM_LAST
from tokenrt.passes.rewriting import handed
from tokenrt.passes.rewriting.outputs import caches
from tokenrt.passes.rewriting.outputs.short import shorten
from tokenrt.passes.rewriting.prove import attended, prove
from tokenrt.passes.rewriting.rewrite import Rewriter
from tokenrt.passes.rewriting.tidy import tidy


def marked(prepared: Prepared, plan: Plan) -> ir.Model:
    """The prepared model with the plan in its metadata; one that was reduced before keeps that plan's line."""
    model = prepared.model
    before = model.metadata_props.get("tokenrt.passes")
    model.metadata_props["tokenrt.passes"] = "; ".join(filter(None, (before, *prepared.passes, plan.spec())))
    model.metadata_props["tokenrt.plan"] = plan.to_toml()
    return model


def whole_step(prepared: Prepared, plan: Plan, routes: Routes) -> ir.Model | None:
    """The model of a step at which no token rests, where the plan's rest from one to the next; call it before `rewrite`.

    Raises: PlanError where tokens of several transformers rest.
    """
    resting = {number: path for number, path in routes.items() if plan.of(number).returns == FROM_LAST}
    if not resting:
        return None
    if len(resting) > 1:
        raise PlanError(
            f"transformers {', '.join(map(str, resting))}: the state that a step hands to the next is that of one transformer; "
            f"choose it with --transformers {min(resting)}"
        )
    model, interface, rests = copy(prepared.model), prepared.interface, replace(plan, sites=())
    for number, path in resting.items():
        structure, own = prepared.transformers[number], plan.of(number)
        found = handed.parts(structure, path, prepared.shapes)
        dims = (structure.stream.rows, structure.tokens)
        interface = handed.whole_step(model, found, own.at(own.sites[0]).carries, dims, interface)
    tidy(model)
    prove(model, rests, prepared.shapes, [], interface)
    return model


def rewrite(prepared: Prepared, plan: Plan, routes: Routes, source_map: bool | Literal["every"]) -> ir.Model:
    """The prepared model, changed in place and proven. Raises: UnsupportedError, ProofError; the model is then of no use."""
    model, shapes = marked(prepared, plan), prepared.shapes
    if not plan.sites:
        prove(model, plan, shapes, [], prepared.interface)
        return model
    op = GraphOps(model.graph, None, opset(model), "tokenrt")
    rewriters = [
        Rewriter(model.graph, shapes, prepared.transformers[number], plan.of(number), path, op, number)
        for number, path in routes.items()
    ]
    axes = [
        axis
        for number, path in routes.items()
        for axis in attended(prepared.transformers[number], path, plan.of(number), shapes)
    ]
    windows = [caches.told_windows(each) for each in rewriters if each.path.ordered]
    for rewriter in rewriters:
        rewriter.run()
    outputs = len(model.graph.outputs)
    for rewriter in rewriters:
        rewriter.hand_on()
    op.add_functions(model)
    dims: dict[str, tuple[int, ...]] = {}
    prompts = [(caches.told(each), each.structure.tokens) for each in rewriters if each.path.ordered]
    for rewriter in rewriters:
        dims |= shorten(rewriter)
        if source_map:
            rewriter.expose_source_map(every=source_map == "every")
    for (layers, tokens), shown in zip(prompts, windows, strict=True):
        if layers or shown:
            handover.told(model, layers, tokens, shown)
    interface = (
        prepared.interface.changed(dims)
        .with_inputs(Port(name, value.dtype) for each in rewriters for name, value in each.gained.items())
        .with_outputs(
            (str(value.name), value.dtype or ir.DataType.INT64) for value in model.graph.outputs[outputs:]
        )
    )
    tidy(model)
    alive = {value.name for node in model.graph for value in node.outputs}
    streams = [(str(value.name), axis, count) for each in rewriters for value, axis, count in each.streams]
    before = replace(shapes, dims={**shapes.dims, **dims})
    prove(model, plan, before, [stream for stream in streams if stream[0] in alive], interface, axes)
    return model
