"""Fit a plan to a model: from a budget, or one that was made before and perhaps edited; and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.blocks import Block
from tokenrt.passes.flops import Cost, cost
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.plan import (
    BACK,
    PLACES,
    Budget,
    Plan,
    PlannedSite,
    Where,
    all_return,
    check_count,
    check_grid,
    check_place,
    in_time,
    places,
    resolve,
)
from tokenrt.passes.prepare import Prepared
from tokenrt.passes.route import Route, cut, missing, returns, route


def make(
    prepared: Prepared,
    name: str,
    budget: Budget,
    *,
    site: str | None,
    proportional: bool | None,
    options: Mapping[str, Any] | None,
    grid: Sequence[int] | None,
    allow_noop: bool,
) -> Plan:
    """Turn a budget into a plan. Raises: PlanError, MethodError, NothingToDoError."""
    method = methods.get(name).from_options(options or {})
    structure = prepared.structure
    if not structure.blocks and not allow_noop:
        raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
    where = _place(method, site)
    base = Plan(
        method=name,
        tokens=structure.tokens,
        protect=structure.protect,
        blocks=len(structure.blocks),
        sites=(),
        proportional_attention=method.merges if proportional is None else proportional,
        options=method.options(),
        grid=structure.grid if grid is None else tuple(grid),
    )
    if not structure.blocks:
        return base
    if base.grid is not None:
        check_grid(base.grid, structure.tokens - structure.protect)
    method = method.laid_out(base.grid)
    base = replace(base, options=method.options())
    if all(cut(block, where) is None for block in structure.blocks):
        raise NothingToDoError(f"no block has {_no_place(structure.blocks[0], where)}")
    if budget.kind == "flops":
        return _by_work(prepared, base, method, budget, where, allow_noop)
    sites, notes = resolve(budget, method, structure.tokens, structure.protect, len(structure.blocks), where)
    for chosen in sites:
        if cut(structure.blocks[chosen.block], where) is None:
            raise PlanError(f"block {chosen.block} has {_no_place(structure.blocks[chosen.block], where)}")
    if budget.rates is not None:
        which = {block: number for number, block in enumerate(sorted(budget.layers or range(base.blocks)))}
        own = [which.get(block, -1) for block in range(base.blocks)]
        left = {chosen.block: chosen.tokens for chosen in sites}
        method = method.rated(budget.rates.survivors(own, structure.tokens, left))
        base = replace(base, options=method.options())
    chosen_plan = _not_empty(prepared, replace(base, sites=sites, notes=notes), allow_noop)
    return with_cost(prepared, chosen_plan, allow_noop=allow_noop)[0]


def _place(method: Method, site: str | None) -> Where:
    """Where the sites lie: as asked, or the method's usual place. Raises: PlanError."""
    if site is None:
        return places(method.returns)[0]
    if site not in PLACES:
        raise PlanError(f"--site {site}: expected one of {', '.join(PLACES)}")
    found = next((where for where in places(method.returns) if where == site), None)
    if found is None:
        raise PlanError(
            f"--site {site}: {method.name} sits {' or '.join(places(method.returns))}, where the tokens it removes "
            + (f"come back {BACK[method.returns]}" if method.returns in BACK else "stay away")
        )
    return found


def _no_place(block: Block, where: Where) -> str:
    instead = "; use --site after-block" if where == "after-attention" else ""
    return f"no place {where}: {missing(block, where)}{instead}"


def _by_work(
    prepared: Prepared, base: Plan, method: Method, budget: Budget, where: Where, allow_noop: bool
) -> Plan:
    """The smallest constant removal per block that fits, then the last block's worth given back where it can be."""
    structure = prepared.structure
    if budget.amount == 1:
        return with_cost(prepared, _not_empty(prepared, base, allow_noop))[0]
    usable = in_time(method.returns, len(structure.blocks), where)
    every = tuple(
        PlannedSite(block.index, where, 0)
        for block in structure.blocks
        if block.index in usable and cut(block, where) is not None
    )
    _, path = with_cost(prepared, replace(base, sites=every), counts=[structure.tokens] * (len(every) + 1))
    work = _cost(prepared, path)
    full = work.macs([structure.tokens] * (len(every) + 1))

    def counts(removed: int, more: int) -> list[int]:
        here, result = structure.tokens, [structure.tokens]
        for place in range(len(every)):
            leaving = removed + (place < more) * method.unit
            left = max(here - leaving, method.fewest(here, structure.protect))
            result.append(left)
            here = structure.tokens if all_return(method.returns) else left
        return result

    most = structure.tokens - method.fewest(structure.tokens, structure.protect)
    tries = ((removed, more) for removed in range(0, most + 1, method.unit) for more in range(len(every)))
    for removed, more in tries:
        if work.macs(counts(removed, more)) <= budget.amount * full:
            sites = tuple(
                replace(site, tokens=after)
                for site, after in zip(every, counts(removed, more)[1:], strict=True)
            )
            found = _shortening(replace(base, sites=sites))
            return with_cost(prepared, _not_empty(prepared, found, allow_noop))[0]
    least = work.macs(counts(most, 0)) / full
    raise PlanError(
        f"--flops {budget.amount}: {method.name} can reach {least:.3f} of the model's work at the least; ask for more"
    )


def checked(plan: Plan, prepared: Prepared, allow_noop: bool) -> Plan:
    """Whether a plan, perhaps edited by hand, fits this model. Raises: PlanError, NothingToDoError."""
    structure = prepared.structure
    if plan.sites and not structure.blocks:
        raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
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
    if plan.grid is not None and structure.blocks:
        check_grid(plan.grid, structure.tokens - structure.protect)
    last = (-1, -1)
    for number, (site, here) in enumerate(zip(plan.sites, plan.arriving(), strict=True)):
        if not 0 <= site.block < len(structure.blocks):
            raise PlanError(
                f"plan site {number}: block {site.block} does not exist; the model has blocks 0 to {len(structure.blocks) - 1}"
            )
        if cut(structure.blocks[site.block], site.where) is None:
            raise PlanError(
                f"plan site {number}: block {site.block} has {_no_place(structure.blocks[site.block], site.where)}"
            )
        check_place(method, site.block, len(structure.blocks), site.where)
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
        last = order
    fitted = replace(
        _shortening(plan), protect=structure.protect, blocks=len(structure.blocks), options=method.options()
    )
    return _not_empty(prepared, replace(fitted, grid=plan.grid or structure.grid), allow_noop)


def _shortening(plan: Plan) -> Plan:
    """The plan without the sites at which no token leaves."""
    pairs = zip(plan.sites, plan.arriving(), strict=True)
    return replace(plan, sites=tuple(site for site, before in pairs if site.tokens < before))


def _not_empty(prepared: Prepared, plan: Plan, allow_noop: bool) -> Plan:
    if not plan.sites and not allow_noop:
        raise NothingToDoError(
            "the budget removes no token at any block; ask for more, or pass --allow-noop to write the model unchanged"
            + list_refusals(prepared)
        )
    return plan


def with_cost(
    prepared: Prepared, plan: Plan, counts: list[int] | None = None, allow_noop: bool = False
) -> tuple[Plan, Route]:
    """The plan with its work filled in, and the route of its tokens."""
    graph, structure = prepared.model.graph, prepared.structure
    cuts = [cut(structure.blocks[site.block], site.where) for site in plan.sites]
    back = returns(structure, plan.returns, plan.sites)
    path = route(graph, prepared.shapes, structure, [made for made in cuts if made is not None], back)
    work = _cost(prepared, path)
    counts = counts or plan.counts()
    after = work.macs(counts)
    before = work.macs([structure.tokens] * len(counts))
    if plan.sites and after >= before and counts == plan.counts():
        if allow_noop:
            return with_cost(prepared, replace(plan, sites=()))
        readers = [f"{node.op_type} node {node.name!r}" for node in path.restored if node is not None]
        raise NothingToDoError(
            f"the reduction saves no work: of {structure.candidates()} attentions {len(structure.blocks)} can take one, and "
            f"right behind it every token is needed again by {' and '.join(readers) or 'an output'}"
            + list_refusals(prepared)
        )
    return replace(plan, macs_before=before, macs_after=after), path


def _cost(prepared: Prepared, path: Route) -> Cost:
    return cost(prepared.model.graph, prepared.shapes, path.flow.inputs)


def list_refusals(prepared: Prepared) -> str:
    refusals = prepared.structure.refusals
    return "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in refusals[:8]) + (
        f"\n  and {len(refusals) - 8} more (tokenrt inspect lists all)" if len(refusals) > 8 else ""
    )
