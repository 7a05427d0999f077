"""Plan and reduce: the main job, from a model and a budget to a proven, reduced model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.flops import Cost, cost
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.model import ModelLike, check_target, opset, save
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.plan import PLACES, Budget, Plan, PlannedSite, Where, check_count, resolve
from tokenrt.passes.prepare import Prepared, ShapeOption, prepare
from tokenrt.passes.prove import prove
from tokenrt.passes.rewrite import Rewriter
from tokenrt.passes.route import Route, route, site_value

NOT_PLANNED = "the plan removes nothing here"


@dataclass(frozen=True)
class SiteReport:
    """What became of one candidate site: applied, or refused with a reason.

    block is -1 for an attention that is no block; where then names it.
    """

    block: int
    where: str
    status: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    reason: str = ""

    def place(self) -> str:
        return f"block {self.block} {self.where}" if self.block >= 0 else self.where

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if value not in (None, "")}


@dataclass(frozen=True)
class Report:
    """Every candidate site, applied or refused with a reason, and where tokens are restored."""

    sites: tuple[SiteReport, ...]
    restored: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "sites": [site.as_dict() for site in self.sites],
            "restored": list(self.restored),
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
        return Group(self.plan, *(escape(line) for line in lines))


def plan(
    model: ModelLike,
    *,
    method: str,
    budget: Budget,
    site: str = "after-attention",
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
) -> Plan:
    """Turn a budget into integer token counts for this model.

    Raises: PlanError, MethodError; NothingToDoError where no site would lose a token and `allow_noop` is off.
    """
    return _plan(prepare(model, shape), method, budget, site, proportional_attention, options, allow_noop)


def reduce(
    model: ModelLike,
    *,
    method: str | None = None,
    budget: Budget | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    site: str = "after-attention",
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
    source_map: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Reduced:
    """Reduce the tokens of a model, by a plan or by a method and a budget; prove the result; write it to `output` if given.

    source_map: add the output `token_source_map` [B,N0] int64, the final token each original one lives in
    (-1: dropped).
    Raises: TokenrtError; nothing is written unless the proof holds.
    """
    import time

    start = time.perf_counter()
    if output is not None:
        check_target(output, model)
    prepared = prepare(model, shape)
    if plan is not None:
        if method is not None or budget is not None:
            raise PlanError("give either a plan or a method with a budget, not both")
        wanted = _checked(plan if isinstance(plan, Plan) else Plan.load(plan), prepared, allow_noop)
    elif method is None or budget is None:
        raise PlanError(
            "reduce needs a plan, or a method and a budget (--remove, --keep with --layers, --tokens, --flops)"
        )
    else:
        wanted = _plan(prepared, method, budget, site, proportional_attention, options, allow_noop)
    wanted, path = _with_cost(prepared, wanted, allow_noop=allow_noop)
    sites, restored = _sites(prepared, wanted), _restored(path)
    rewritten = _rewrite(prepared, wanted, path, source_map)
    report = Report(sites, restored, time.perf_counter() - start)
    if output is not None:
        save(rewritten, output)
    return Reduced(rewritten, wanted, report)


def _plan(
    prepared: Prepared,
    name: str,
    budget: Budget,
    where: str,
    proportional: bool | None,
    options: Mapping[str, Any] | None,
    allow_noop: bool,
) -> Plan:
    method = methods.get(name).from_options(options or {})
    if where not in PLACES:
        raise PlanError(f"--site {where}: expected one of {', '.join(PLACES)}")
    structure = prepared.structure
    if not structure.blocks and not allow_noop:
        raise NothingToDoError("no transformer block can be reduced" + _list_refusals(prepared))
    base = Plan(
        method=name,
        tokens=structure.tokens,
        protect=structure.protect,
        blocks=len(structure.blocks),
        sites=(),
        proportional_attention=method.merges if proportional is None else proportional,
        options=method.options(),
    )
    if not structure.blocks:
        return base
    usable = frozenset(block.index for block in structure.blocks if site_value(block, where) is not None)
    if not usable:
        raise NothingToDoError(
            f"no block has a place {where}: attention and MLP run side by side; use --site after-block"
        )
    place: Where = "after-attention" if where == PLACES[0] else "after-block"
    if budget.kind == "flops":
        return _by_work(prepared, base, method, budget, place, allow_noop)
    sites, notes = resolve(budget, method, structure.tokens, structure.protect, len(structure.blocks), place)
    if any(chosen.block not in usable for chosen in sites):
        raise PlanError(
            f"block {next(c.block for c in sites if c.block not in usable)} has no place {where}; use --site after-block"
        )
    chosen = _not_empty(prepared, replace(base, sites=sites, notes=notes), allow_noop)
    return _with_cost(prepared, chosen, allow_noop=allow_noop)[0]


def _by_work(
    prepared: Prepared, base: Plan, method: Method, budget: Budget, where: Where, allow_noop: bool
) -> Plan:
    """The smallest constant removal per block that fits, then the last block's worth given back where it can be."""
    structure = prepared.structure
    if budget.amount == 1:
        return _with_cost(prepared, _not_empty(prepared, base, allow_noop))[0]
    every = tuple(PlannedSite(block.index, where, 0) for block in structure.blocks)
    _, path = _with_cost(prepared, replace(base, sites=every), counts=[structure.tokens] * (len(every) + 1))
    work = _cost(prepared, path)
    full = work.macs([structure.tokens] * (len(every) + 1))

    def counts(removed: int, more: int) -> list[int]:
        here, result = structure.tokens, [structure.tokens]
        for place in range(len(every)):
            here = max(here - removed - (place < more), method.fewest(here, structure.protect))
            result.append(here)
        return result

    most = structure.tokens - method.fewest(structure.tokens, structure.protect)
    tries = ((removed, more) for removed in range(most + 1) for more in range(len(every)))
    for removed, more in tries:
        if work.macs(counts(removed, more)) <= budget.amount * full:
            found = counts(removed, more)
            sites = tuple(
                replace(site, tokens=after)
                for site, before, after in zip(every, found, found[1:], strict=False)
                if after < before
            )
            return _with_cost(prepared, _not_empty(prepared, replace(base, sites=sites), allow_noop))[0]
    least = work.macs(counts(most, 0)) / full
    raise PlanError(
        f"--flops {budget.amount}: {method.name} can reach {least:.3f} of the model's work at the least; ask for more"
    )


def _checked(plan: Plan, prepared: Prepared, allow_noop: bool) -> Plan:
    """Whether a plan, perhaps edited by hand, fits this model."""
    structure = prepared.structure
    if plan.sites and not structure.blocks:
        raise NothingToDoError("no transformer block can be reduced" + _list_refusals(prepared))
    if structure.blocks and plan.tokens != structure.tokens:
        raise PlanError(
            f"the plan is for {plan.tokens} tokens, the model has {structure.tokens}; make a new plan for it"
        )
    for what, planned, found in (
        ("blocks", plan.blocks, len(structure.blocks)),
        ("protected tokens", plan.protect, structure.protect),
    ):
        if structure.blocks and planned != found:
            raise PlanError(
                f"the plan is for {planned} {what}, the model has {found}; make a new plan for it"
            )
    method = methods.get(plan.method).from_options(plan.options)
    here, last = structure.tokens, (-1, -1)
    for number, site in enumerate(plan.sites):
        if not 0 <= site.block < len(structure.blocks):
            raise PlanError(
                f"plan site {number}: block {site.block} does not exist; the model has blocks 0 to {len(structure.blocks) - 1}"
            )
        if site_value(structure.blocks[site.block], site.where) is None:
            raise PlanError(
                f"plan site {number}: block {site.block} has no place {site.where}; use after-block"
            )
        if site.block == last[0]:
            raise PlanError(
                f"plan site {number}: block {site.block} has a site before it; a block takes one, since its attention "
                "saw the tokens of before"
            )
        order = (site.block, PLACES.index(site.where))
        if order <= last:
            raise PlanError(
                f"plan site {number}: block {site.block} {site.where} does not come after the site before it"
            )
        check_count(method, site.block, here, site.tokens, structure.protect)
        here, last = site.tokens, order
    counts = (structure.tokens, *(site.tokens for site in plan.sites))
    sites = tuple(site for site, before in zip(plan.sites, counts, strict=False) if site.tokens < before)
    fitted = replace(
        plan, sites=sites, protect=structure.protect, blocks=len(structure.blocks), options=method.options()
    )
    return _not_empty(prepared, fitted, allow_noop)


def _not_empty(prepared: Prepared, plan: Plan, allow_noop: bool) -> Plan:
    if not plan.sites and not allow_noop:
        raise NothingToDoError(
            "the budget removes no token at any block; ask for more, or pass --allow-noop to write the model unchanged"
            + _list_refusals(prepared)
        )
    return plan


def _with_cost(
    prepared: Prepared, plan: Plan, counts: list[int] | None = None, allow_noop: bool = False
) -> tuple[Plan, Route]:
    """The plan with its work filled in, and the route of its tokens."""
    graph, structure = prepared.model.graph, prepared.structure
    values = [site_value(structure.blocks[site.block], site.where) for site in plan.sites]
    path = route(graph, prepared.shapes, structure, [value for value in values if value is not None])
    work = _cost(prepared, path)
    counts = counts or plan.counts()
    after = work.macs(counts)
    before = work.macs([structure.tokens] * len(counts))
    if plan.sites and after >= before and counts == plan.counts():
        if allow_noop:
            return _with_cost(prepared, replace(plan, sites=()))
        raise NothingToDoError(
            "the reduction saves no work: tokens are restored right behind it" + _list_refusals(prepared)
        )
    return replace(plan, macs_before=before, macs_after=after), path


def _cost(prepared: Prepared, path: Route) -> Cost:
    return cost(prepared.model.graph, prepared.shapes, path.flow.inputs)


def _rewrite(prepared: Prepared, plan: Plan, path: Route, source_map: bool) -> ir.Model:
    model, structure = prepared.model, prepared.structure
    model.metadata_props["tokenrt.passes"] = "; ".join((*prepared.passes, plan.spec()))
    model.metadata_props["tokenrt.plan"] = plan.to_toml()
    if not plan.sites:
        return model
    method = methods.get(plan.method).from_options(plan.options)
    op = GraphOps(model.graph, None, opset(model), "tokenrt")
    rewriter = Rewriter(model.graph, prepared.shapes, structure, method, plan, path, op)
    rewriter.run()
    op.add_functions(model)
    streams = [
        (str(rewriter.reduced[value][0].name), path.flow.marks[value][0].axis, site.tokens)
        for value, site in zip(path.sites, plan.sites, strict=True)
    ]
    if source_map:
        rewriter.expose_source_map()
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    alive = {value.name for node in model.graph for value in node.outputs}
    prove(model, plan, prepared.shapes, [stream for stream in streams if stream[0] in alive])
    return model


def _sites(prepared: Prepared, plan: Plan) -> tuple[SiteReport, ...]:
    """Every candidate site: applied, or refused because of the plan or of the model."""
    applied = {
        (site.block, site.where): (before, site.tokens)
        for site, before in zip(plan.sites, plan.counts(), strict=False)
    }
    reports = []
    for block in prepared.structure.blocks:
        for where in PLACES:
            if site_value(block, where) is None:
                reason = "attention and MLP run side by side: nothing lies between them"
                reports.append(SiteReport(block.index, where, "refused", reason=reason))
            elif (block.index, where) in applied:
                reports.append(SiteReport(block.index, where, "applied", *applied[block.index, where]))
            else:
                reports.append(SiteReport(block.index, where, "refused", reason=NOT_PLANNED))
    for refusal in prepared.structure.refusals:
        reports.append(SiteReport(-1, refusal.where, "refused", reason=refusal.reason))
    return tuple(reports)


def _restored(path: Route) -> tuple[str, ...]:
    lines: list[str] = []
    for reader, values in path.restored.items():
        whom = f"{reader.op_type} node {reader.name!r}" if reader is not None else "the model's output"
        lines.extend(f"{value.name} before {whom}" for value in values)
    return tuple(dict.fromkeys(lines))


def _list_refusals(prepared: Prepared) -> str:
    refusals = prepared.structure.refusals
    return "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in refusals[:8]) + (
        f"\n  and {len(refusals) - 8} more (tokenrt inspect lists all)" if len(refusals) > 8 else ""
    )
