"""A plan for a model from a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning import units
from tokenrt.passes.planning.fit.by_work import by_work
from tokenrt.passes.planning.fit.cost import list_refusals, not_empty, with_cost
from tokenrt.passes.planning.fit.terms import (
    about,
    bare,
    check_free,
    check_ordered,
    check_together,
    check_tokens,
    counts,
    named,
    no_place,
    way,
)
from tokenrt.passes.planning.plan import (
    EVERY,
    Budget,
    Plan,
    PlannedSite,
    Transformer,
    Where,
    cache_of,
    places,
)
from tokenrt.passes.planning.request import Request
from tokenrt.passes.planning.resolve import check_grid, resolve
from tokenrt.passes.planning.route import closed, in_order
from tokenrt.passes.planning.several import choose
from tokenrt.passes.planning.units import whole


def make(prepared: Prepared, name: str, budget: Budget, asked: Request) -> Plan:
    """Turn a budget into a plan. Raises: PlanError, MethodError, NothingToDoError."""
    method = methods.for_graph(name, asked.options or {})
    check_tokens(method)
    structures = prepared.transformers
    allow_noop, proportional = asked.allow_noop, asked.proportional_attention
    if not structures and not allow_noop:
        raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
    where = _place(method, asked.site)
    base = replace(
        bare(prepared, method, budget),
        proportional_attention=method.proportional if proportional is None else proportional,
        wanted=prepared.protect,
        short=asked.outputs,
        cache=cache_of(asked.cache),
        text=asked.text or "",
    )
    if not structures:
        return base
    chosen = choose(structures, asked.transformers, where, method)
    base = base.over(
        [
            _counted(prepared, structure, asked.grid, asked.outputs)
            if number in chosen
            else counts(structure, structure.grid)
            for number, structure in enumerate(structures)
        ]
    )
    places_of = {number: named(prepared, number) for number in chosen}
    laid_out = []
    for number in chosen:
        own, blocks = base.transformers[number], structures[number].blocks
        with about(places_of[number]):
            check_free(structures[number])
            if own.grid is not None:
                check_grid(own.grid, (own.tokens - own.protect) // own.unit)
        laid_out.append(method.laid_out(own.grid))
        if all(closed(block, where, method) for block in blocks):
            raise NothingToDoError(
                f"{places_of[number]}block 0, as all others, has {no_place(blocks[0], where, method)}"
                + list_refusals(prepared)
            )
    method = _one(laid_out, chosen)
    base = replace(base, options=method.options(), notes=(*_left_out(base, chosen), *_in_units(base, chosen)))
    if budget.kind == "flops":
        return by_work(prepared, base, method, budget, where, chosen, allow_noop)
    sites, notes, rated = list[PlannedSite](), list[str](), list[Method]()
    for number in chosen:
        own, blocks = base.transformers[number], structures[number].blocks
        with about(places_of[number]):
            if method.keeps_order and (structures[number].cached or any(block.apart for block in blocks)):
                check_together(structures[number])
            if method.home == "prefill" and not structures[number].prompt:
                raise PlanError(
                    f"{method.name} works inside a language model's prompt, under a causal mask, and this model has none: "
                    "use a method for towers and encoders, e.g. topk"
                )
            shut = {block.index for block in blocks if block.apart and closed(block, where, method)}
            own_method = whole(method, own.unit)
            if in_order(structures[number], (), method.keeps_order) or structures[number].prompt:
                check_ordered(structures[number], [method], base)
            elif base.text:
                raise PlanError(f"--text {base.text}: the model is no language model with a prompt; drop it")
            found, told = resolve(budget, own_method, own.tokens, own.protect, own.blocks, where, shut)
        for made in found:
            if closed(blocks[made.block], where, method):
                raise PlanError(
                    f"{places_of[number]}block {made.block} has {no_place(blocks[made.block], where, method)}"
                )
        sites.extend(replace(made, transformer=number) for made in found)
        notes.extend(places_of[number] + note for note in told)
        rated.append(_rated(method, budget, own, found))
    base = replace(base, options=_one(rated, chosen).options(), notes=(*base.notes, *notes))
    chosen_plan = not_empty(prepared, replace(base, sites=tuple(sites)), allow_noop)
    return with_cost(prepared, chosen_plan, allow_noop=allow_noop)[0]


def _counted(prepared: Prepared, structure: Structure, grid: Sequence[int] | None, short: str) -> Transformer:
    """The counts of a transformer that is reduced; where tokens leave in units, only a grid that is given is that of units."""
    size = units.unit(prepared.model.graph, prepared.shapes, structure, short)
    units.check_whole(structure.protected, size)
    own = structure.grid if size == 1 else None
    return counts(structure, own if grid is None else tuple(grid), size)


def _left_out(plan: Plan, chosen: Sequence[int]) -> tuple[str, ...]:
    """A note on the transformers that are not reduced."""
    rest = [number for number in range(len(plan.transformers)) if number not in chosen]
    if not rest:
        return ()
    told = ", ".join(f"{number} ({plan.transformers[number].tokens})" for number in rest)
    return (
        f"of {len(plan.transformers)} transformers these keep their tokens: {told}; --transformers chooses",
    )


def _in_units(plan: Plan, chosen: Sequence[int]) -> tuple[str, ...]:
    """A note on tokens that leave together."""
    sizes = sorted({plan.transformers[number].unit for number in chosen} - {1})
    return tuple(
        f"tokens leave in whole merge units of {size}, of which each is one row of an output that stays short"
        for size in sizes
    )


def _one(made: Sequence[Method], chosen: Sequence[int]) -> Method:
    """The method that fits all chosen transformers. Raises: PlanError where they need different options."""
    for number, other in zip(chosen, made, strict=True):
        if other.options() != made[0].options():
            raise PlanError(
                f"{other.name} needs other options for transformer {number} than for transformer {chosen[0]}: "
                f"{other.options()} and {made[0].options()}; choose one with --transformers"
            )
    return made[0]


def _rated(method: Method, budget: Budget, own: Transformer, sites: Sequence[PlannedSite]) -> Method:
    """The method told what survives its pruning, where the budget is a table of rates."""
    if budget.rates is None:
        return method
    which = {block: number for number, block in enumerate(sorted(budget.layers or range(own.blocks)))}
    left = {made.block: made.tokens for made in sites}
    rows = [which.get(block, -1) for block in range(own.blocks)]
    return method.rated(budget.rates.survivors(rows, own.tokens, left))


def _place(method: Method, site: str | None) -> Where:
    """Where the sites lie: as asked, or the method's usual place. Raises: PlanError."""
    if site is None:
        return places(method.returns)[0]
    if site not in EVERY:
        raise PlanError(f"--site {site}: expected one of {', '.join(EVERY)}")
    found = next((where for where in places(method.returns) if where == site), None)
    if found is None:
        raise PlanError(
            f"--site {site}: {method.name} sits {' or '.join(places(method.returns))}, where the tokens it removes "
            f"{way(method)}"
        )
    return found
