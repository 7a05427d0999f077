"""Plan and reduce: the main job, from a model and a budget to a proven, reduced model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from tokenrt.errors import PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import Prepared, Protect, ShapeOption, prepare
from tokenrt.passes.graph.model import ModelLike, check_target, opset, save
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning import fit
from tokenrt.passes.planning.plan import Budget, Plan, places
from tokenrt.passes.planning.pools import told
from tokenrt.passes.planning.route import cut, missing
from tokenrt.passes.planning.several import Chosen, Routes
from tokenrt.passes.rewriting.prove import attended, prove
from tokenrt.passes.rewriting.rewrite import Rewriter

NOT_PLANNED = "the plan removes nothing here"


@dataclass(frozen=True)
class SiteReport:
    """What became of one candidate site: applied, or refused with a reason.

    block is -1 for an attention that is no block; where then names it. transformer: which one, where there are several.
    """

    block: int
    where: str
    status: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    reason: str = ""
    transformer: int | None = None

    def place(self) -> str:
        several = "" if self.transformer is None else f"transformer {self.transformer} "
        return f"{several}block {self.block} {self.where}" if self.block >= 0 else self.where

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if value not in (None, "")}


@dataclass(frozen=True)
class Report:
    """Every candidate site, applied or refused with a reason, where tokens are restored, and what each pool counts."""

    sites: tuple[SiteReport, ...]
    restored: tuple[str, ...]
    seconds: float
    pools: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "sites": [site.as_dict() for site in self.sites],
            "restored": list(self.restored),
            "pools": list(self.pools),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Reduced:
    """A reduced model, the plan it follows, and the report on its sites."""

    model: ir.Model
    plan: Plan
    report: Report

    def as_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.as_dict(), **self.report.as_dict()}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.markup import escape

        refused = [s for s in self.report.sites if s.status == "refused" and s.reason != NOT_PLANNED]
        lines = [f"refused: {site.place()}: {site.reason}" for site in refused]
        lines += [f"restored: {text}" for text in self.report.restored]
        lines += [f"pooled: {text}" for text in self.report.pools]
        return Group(self.plan, *(escape(line) for line in lines))


def plan(
    model: ModelLike,
    *,
    method: str,
    budget: Budget,
    site: str | None = None,
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    grid: Sequence[int] | None = None,
    transformers: Chosen = None,
    protect: Protect = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
) -> Plan:
    """Turn a budget into integer token counts for this model, the same budget for each transformer that is reduced.

    site: after-attention (the default), after-block, or around-attention, the only place of methods whose tokens
    come back after each attention. grid: (h, w) or (frames, h, w), the layout of the unprotected tokens where
    the graph does not show it. transformers: which are reduced, counted from 0 in graph order, or "all"; by default the
    first, and for methods whose tokens come back after each attention all that have as many tokens as the largest.
    protect: tokens that never leave beside those that the analysis finds, as "0,-1,200:217" or a list of positions.
    Raises: PlanError, MethodError; NothingToDoError where no site would lose a token and `allow_noop` is off.
    """
    return fit.make(
        prepare(model, shape, protect),
        method,
        budget,
        site=site,
        proportional=proportional_attention,
        options=options,
        grid=grid,
        transformers=transformers,
        allow_noop=allow_noop,
    )


def reduce(
    model: ModelLike,
    *,
    method: str | None = None,
    budget: Budget | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    site: str | None = None,
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    grid: Sequence[int] | None = None,
    transformers: Chosen = None,
    protect: Protect = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
    source_map: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Reduced:
    """Reduce the tokens of a model, by a plan or by a method and a budget; prove the result; write it to `output` if given.

    site, grid, transformers, protect: as for `plan`. source_map: add the output `token_source_map` [B,N0] int64, the token behind
    the last site each original one lives in (-1: dropped); transformer 1, where reduced, has `token_source_map_1`.
    Raises: TokenrtError; nothing is written unless the proof holds.
    """
    import time

    start = time.perf_counter()
    if output is not None:
        check_target(output, model)
    if plan is not None:
        if method is not None or budget is not None:
            raise PlanError("give either a plan or a method with a budget, not both")
        if protect is not None:
            raise PlanError("a plan says which tokens are protected; drop protect, or edit the plan")
        wanted = plan if isinstance(plan, Plan) else Plan.load(plan)
        if transformers is not None:
            raise PlanError("a plan says which transformers are reduced; drop transformers, or edit the plan")
        if grid is not None:
            wanted = wanted.laid_out(grid)
        prepared = prepare(model, shape, wanted.wanted)
        wanted = fit.checked(wanted, prepared, allow_noop)
    elif method is None or budget is None:
        raise PlanError(
            "reduce needs a plan, or a method and a budget (--remove, --keep with --layers, --tokens, --flops)"
        )
    else:
        prepared = prepare(model, shape, protect)
        wanted = fit.make(
            prepared,
            method,
            budget,
            site=site,
            proportional=proportional_attention,
            options=options,
            grid=grid,
            transformers=transformers,
            allow_noop=allow_noop,
        )
    wanted, routes = fit.with_cost(prepared, wanted, allow_noop=allow_noop)
    sites, restored = _sites(prepared, wanted), restorations(routes)
    pools = [told(path.flow, prepared.transformers[number]) for number, path in routes.items()]
    rewritten = rewrite(prepared, wanted, routes, source_map)
    report = Report(sites, restored, time.perf_counter() - start, tuple(itertools.chain.from_iterable(pools)))
    if output is not None:
        save(rewritten, output)
    return Reduced(rewritten, wanted, report)


def rewrite(prepared: Prepared, plan: Plan, routes: Routes, source_map: bool) -> ir.Model:
    """The prepared model, changed in place and proven. Raises: UnsupportedError, ProofError; the model is then of no use."""
    model, shapes = prepared.model, prepared.shapes
    model.metadata_props["tokenrt.passes"] = "; ".join((*prepared.passes, plan.spec()))
    model.metadata_props["tokenrt.plan"] = plan.to_toml()
    if not plan.sites:
        prove(model, plan, shapes, [], prepared.interface)
        return model
    method = methods.get(plan.method).from_options(plan.options)
    op = GraphOps(model.graph, None, opset(model), "tokenrt")
    rewriters = [
        Rewriter(
            model.graph, shapes, prepared.transformers[number], method, plan.of(number), path, op, number
        )
        for number, path in routes.items()
    ]
    axes = [
        axis
        for number, path in routes.items()
        for axis in attended(prepared.transformers[number], path, plan.of(number), shapes)
    ]
    for rewriter in rewriters:
        rewriter.run()
    op.add_functions(model)
    outputs = len(model.graph.outputs)
    if source_map:
        for rewriter in rewriters:
            rewriter.expose_source_map()
    interface = prepared.interface.with_outputs(
        (str(value.name), ir.DataType.INT64) for value in model.graph.outputs[outputs:]
    )
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    alive = {value.name for node in model.graph for value in node.outputs}
    streams = [(str(value.name), axis, count) for each in rewriters for value, axis, count in each.streams]
    prove(model, plan, shapes, [stream for stream in streams if stream[0] in alive], interface, axes)
    return model


def _sites(prepared: Prepared, plan: Plan) -> tuple[SiteReport, ...]:
    """Every candidate site: applied, or refused because of the plan or of the model."""
    applied = {
        (site.transformer, site.block, site.where): (before, site.tokens)
        for site, before in zip(plan.sites, plan.arriving(), strict=True)
    }
    reports = []
    for number, structure in enumerate(prepared.transformers):
        which = number if len(prepared.transformers) > 1 else None
        for block, where in itertools.product(structure.blocks, places(plan.returns)):
            made = applied.get((number, block.index, where))
            if made is not None:
                reports.append(SiteReport(block.index, where, "applied", *made, transformer=which))
                continue
            reason = NOT_PLANNED if cut(block, where) else missing(block, where)
            reports.append(SiteReport(block.index, where, "refused", reason=reason, transformer=which))
    for refusal in prepared.refusals:
        reports.append(SiteReport(-1, refusal.where, "refused", reason=refusal.reason))
    return tuple(reports)


def restorations(routes: Routes) -> tuple[str, ...]:
    """Where all tokens are there again: a line for each tensor and reader."""
    lines: list[str] = []
    for reader, values in itertools.chain.from_iterable(path.restored.items() for path in routes.values()):
        whom = f"{reader.op_type} node {reader.name!r}" if reader is not None else "the model's output"
        lines.extend(
            f"{value.name} before {whom}" for value in sorted(values, key=lambda value: str(value.name))
        )
    return tuple(dict.fromkeys(lines))
