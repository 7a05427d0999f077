"""Fit a plan to a model: from a budget, or one that was made before and perhaps edited; and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import lcm
from typing import Any

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.blocks import Block, Structure
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.analysis.protected import free
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning import units
from tokenrt.passes.planning.plan import (
    BACK,
    PLACES,
    Budget,
    Plan,
    PlannedSite,
    Transformer,
    Where,
    all_return,
    cache_of,
    places,
)
from tokenrt.passes.planning.resolve import check_count, check_grid, check_place, in_time, resolve, rounded
from tokenrt.passes.planning.route import closed, cut, in_order
from tokenrt.passes.planning.several import Chosen, Routes, choose
from tokenrt.passes.planning.units import whole
from tokenrt.passes.planning.work import Work


def make(
    prepared: Prepared,
    name: str,
    budget: Budget,
    *,
    site: str | None,
    proportional: bool | None,
    options: Mapping[str, Any] | None,
    grid: Sequence[int] | None,
    transformers: Chosen,
    allow_noop: bool,
    short: str = "",
    cache: str | None = None,
) -> Plan:
    """Turn a budget into a plan. Raises: PlanError, MethodError, NothingToDoError."""
    method = methods.for_graph(name, options or {})
    structures = prepared.transformers
    if not structures and not allow_noop:
        raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
    where = _place(method, site)
    base = Plan(
        method=name,
        tokens=0,
        protect=0,
        blocks=0,
        sites=(),
        proportional_attention=method.proportional if proportional is None else proportional,
        options=method.options(),
        wanted=prepared.protect,
        multiple_of=budget.multiple_of,
        short=short,
        cache=cache_of(cache),
    )
    if not structures:
        return base
    chosen = choose(structures, transformers, where, method)
    base = base.over(
        [
            _counted(prepared, structure, grid, short)
            if number in chosen
            else counts(structure, structure.grid)
            for number, structure in enumerate(structures)
        ]
    )
    places_of = {number: _told(prepared, number) for number in chosen}
    laid_out = []
    for number in chosen:
        own, blocks = base.transformers[number], structures[number].blocks
        with _in(places_of[number]):
            _check_free(structures[number])
            if own.grid is not None:
                check_grid(own.grid, (own.tokens - own.protect) // own.unit)
        laid_out.append(method.laid_out(own.grid))
        if all(closed(block, where, method) for block in blocks):
            raise NothingToDoError(
                f"{places_of[number]}block 0, as all others, has {_no_place(blocks[0], where, method)}"
                + list_refusals(prepared)
            )
    method = _one(laid_out, chosen)
    base = replace(base, options=method.options(), notes=(*_left_out(base, chosen), *_in_units(base, chosen)))
    if budget.kind == "flops":
        return _by_work(prepared, base, method, budget, where, chosen, allow_noop)
    sites, notes, rated = list[PlannedSite](), list[str](), list[Method]()
    for number in chosen:
        own, blocks = base.transformers[number], structures[number].blocks
        with _in(places_of[number]):
            if method.selects and (structures[number].cached or any(block.apart for block in blocks)):
                check_together(structures[number])
            if method.home == "prefill" and not structures[number].prompt:
                raise PlanError(
                    f"{method.name} works inside a language model's prompt, under a causal mask, and this model has none: "
                    "use a method for towers and encoders, e.g. topk"
                )
            shut = {block.index for block in blocks if block.apart and closed(block, where, method)}
            own_method = whole(method, own.unit)
            found, told = resolve(budget, own_method, own.tokens, own.protect, own.blocks, where, shut)
        for made in found:
            if closed(blocks[made.block], where, method):
                raise PlanError(
                    f"{places_of[number]}block {made.block} has {_no_place(blocks[made.block], where, method)}"
                )
        sites.extend(replace(made, transformer=number) for made in found)
        notes.extend(places_of[number] + note for note in told)
        rated.append(_rated(method, budget, own, found))
    base = replace(base, options=_one(rated, chosen).options(), notes=(*base.notes, *notes))
    chosen_plan = _not_empty(prepared, replace(base, sites=tuple(sites)), allow_noop)
    return with_cost(prepared, chosen_plan, allow_noop=allow_noop)[0]


def counts(structure: Structure, grid: tuple[int, ...] | None, unit: int = 1) -> Transformer:
    return Transformer(structure.tokens, structure.protect, len(structure.blocks), grid, unit)


def _counted(prepared: Prepared, structure: Structure, grid: Sequence[int] | None, short: str) -> Transformer:
    """The counts of a transformer that is reduced; where tokens leave in units, only a grid that is given is that of units."""
    size = units.unit(prepared.model.graph, prepared.shapes, structure, short)
    units.check_whole(structure.protected, size)
    own = structure.grid if size == 1 else None
    return counts(structure, own if grid is None else tuple(grid), size)


def _check_free(structure: Structure) -> None:
    """Whether the tokens that the user protects are there, and others beside them. Raises: PlanError."""
    if not structure.fits:
        raise PlanError(
            f"--protect: positions must lie among the {structure.tokens} tokens, 0 to {structure.tokens - 1}"
        )
    if structure.protect == structure.tokens:
        why = "; ".join(map(str, structure.guards))
        raise PlanError(f"all {structure.tokens} tokens are protected, none can leave ({why})")


def check_together(structure: Structure) -> None:
    """Whether the tokens that may leave stand together, as those have to that keep their order. Raises: PlanError."""
    places = free(structure.protected, structure.tokens)
    if len(places) and places[-1] - places[0] >= len(places):
        between = sorted({*range(places[0], places[-1])} - {*places.tolist()})
        raise PlanError(
            f"under a mask that tells tokens apart, as a causal one, those that may leave must stand "
            f"together: token {between[0]} among them is protected; name one stretch of them with --span S:E"
        )


def _told(prepared: Prepared, number: int) -> str:
    """How messages begin that are about one transformer of several."""
    return f"transformer {number}: " if len(prepared.transformers) > 1 else ""


@contextmanager
def _in(told: str) -> Iterator[None]:
    """Let a PlanError say which transformer it is about."""
    try:
        yield
    except PlanError as cause:
        raise PlanError(f"{told}{cause}") from cause


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
    if site not in PLACES:
        raise PlanError(f"--site {site}: expected one of {', '.join(PLACES)}")
    found = next((where for where in places(method.returns) if where == site), None)
    if found is None:
        raise PlanError(
            f"--site {site}: {method.name} sits {' or '.join(places(method.returns))}, where the tokens it removes "
            f"{_way(method)}"
        )
    return found


def _way(method: Method) -> str:
    """What becomes of the tokens a method removes."""
    return f"come back {BACK[method.returns]}" if method.returns in BACK else "stay away"


def _no_place(block: Block, where: Where, method: Method) -> str:
    instead = "; use --site after-block" if where == "after-attention" and cut(block, where) is None else ""
    return f"no place {where}: {closed(block, where, method)}{instead}"


def _by_work(
    prepared: Prepared,
    base: Plan,
    method: Method,
    budget: Budget,
    where: Where,
    chosen: Sequence[int],
    allow_noop: bool,
) -> Plan:
    """The smallest constant removal per block that fits, then the last block's worth given back where it can be."""
    if budget.amount == 1:
        return with_cost(prepared, _not_empty(prepared, base, allow_noop))[0]
    every = tuple(
        PlannedSite(block.index, where, 0, number)
        for number in chosen
        for block in prepared.transformers[number].blocks
        if block.index in in_time(method.returns, base.transformers[number].blocks, where)
        and not closed(block, where, method)
    )
    work = Work.of(prepared, replace(base, sites=every))
    own_methods = [whole(method, each.unit) for each in base.transformers]
    fewest = [
        own.fewest(each.tokens, each.protect)
        for own, each in zip(own_methods, base.transformers, strict=True)
    ]

    def removing(removed: int, more: int) -> Plan:
        here = [each.tokens for each in base.transformers]
        sites = []
        for place, site in enumerate(every):
            number = site.transformer
            own = own_methods[number]
            leaving = removed + (place < more) * step
            least = own.fewest(here[number], base.transformers[number].protect)
            sites.append(replace(site, tokens=max(here[number] - leaving, least)))
            here[number] = here[number] if all_return(method.returns) else sites[-1].tokens
        return replace(base, sites=in_multiples(sites))

    def in_multiples(sites: Sequence[PlannedSite]) -> tuple[PlannedSite, ...]:
        """All sites, those too at which no token leaves: the work is counted over them."""
        if budget.multiple_of == 1:
            return tuple(sites)
        counts = {}
        for number in chosen:
            own, here = base.transformers[number], base.transformers[number].tokens
            mine = [site for site in sites if site.transformer == number]
            fitting, _ = rounded(mine, own_methods[number], own.tokens, own.protect, budget.multiple_of)
            left = {site.block: site.tokens for site in fitting}
            for site in mine:
                counts[number, site.block] = left.get(site.block, here)
                here = here if all_return(method.returns) else counts[number, site.block]
        return tuple(replace(site, tokens=counts[site.transformer, site.block]) for site in sites)

    most = max(base.transformers[number].tokens - fewest[number] for number in chosen)
    step = lcm(*(own_methods[number].unit for number in chosen))
    tries = ((removed, more) for removed in range(0, most + 1, step) for more in range(len(every)))
    for removed, more in tries:
        if work.macs(removing(removed, more)) <= budget.amount * work.full:
            found = _shortening(removing(removed, more))
            return with_cost(prepared, _not_empty(prepared, found, allow_noop))[0]
    least = work.macs(removing(most, 0)) / work.full
    raise PlanError(
        f"--flops {budget.amount}: {method.name} can reach {least:.3f} of the model's work at the least; ask for more"
    )


def checked(plan: Plan, prepared: Prepared, allow_noop: bool) -> Plan:
    """Whether a plan, perhaps edited by hand, fits this model. Raises: PlanError, NothingToDoError."""
    structures = prepared.transformers
    if not structures:
        if plan.sites:
            raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
        return _not_empty(prepared, plan.over([counts(prepared.structure, plan.grid)]), allow_noop)
    if len(plan.transformers) not in (1, len(structures)):
        raise PlanError(
            f"the plan is for {len(plan.transformers)} transformers, the model has {len(structures)}; make a new plan for it"
        )
    method = methods.for_graph(plan.method, plan.options)
    reduced = plan.reduced()
    sizes = [
        units.unit(prepared.model.graph, prepared.shapes, structure, plan.short) if number in reduced else 1
        for number, structure in enumerate(structures)
    ]
    for number, (planned, structure) in enumerate(zip(plan.transformers, structures, strict=False)):
        with _in(_told(prepared, number)):
            _checkcounts(planned, structure, sizes[number])
    sites = list[PlannedSite]()
    for place, site in enumerate(plan.sites):
        if not 0 <= site.transformer < len(structures):
            raise PlanError(
                f"plan site {place}: transformer {site.transformer} does not exist; the model has {len(structures)}, "
                "counted from 0"
            )
    for number, structure in enumerate(structures):
        own = [
            (place, site, whole(plan.at(site), sizes[number]))
            for place, site in enumerate(plan.sites)
            if site.transformer == number
        ]
        with _in(_told(prepared, number)):
            _check_sites(own, structure, plan.multiple_of)
        sites.extend(
            replace(site, options=chosen.options()) if site.method or site.options else site
            for _, site, chosen in own
        )
    unlisted = [counts(structure, structure.grid) for structure in structures[len(plan.transformers) :]]
    known = [
        replace(planned, grid=planned.grid or (structure.grid if size == 1 else None), unit=size)
        for planned, structure, size in zip(plan.transformers, structures, sizes, strict=False)
    ]
    fitted = replace(plan.over([*known, *unlisted]), sites=tuple(sites), options=method.options())
    return _not_empty(prepared, _shortening(fitted), allow_noop)


def _checkcounts(planned: Transformer, structure: Structure, unit: int) -> None:
    if planned.tokens != structure.tokens:
        raise PlanError(
            f"the plan is for {planned.tokens} tokens, the model has {structure.tokens}; make a new plan for it"
        )
    _check_free(structure)
    units.check_whole(structure.protected, unit)
    for what, wanted, found in (
        ("blocks", planned.blocks, len(structure.blocks)),
        ("protected tokens", planned.protect, structure.protect),
    ):
        if wanted != found:
            raise PlanError(f"the plan is for {wanted} {what}, the model has {found}; make a new plan for it")
    if planned.grid is not None:
        check_grid(planned.grid, (structure.tokens - structure.protect) // unit)


def _check_sites(
    sites: Sequence[tuple[int, PlannedSite, Method]], structure: Structure, multiple_of: int
) -> None:
    """Whether these sites, with their places in the plan and their methods, can lie in one transformer."""
    last, here, blocks = (-1, -1), structure.tokens, structure.blocks
    for place, (number, site, method) in enumerate(sites):
        if not 0 <= site.block < len(blocks):
            raise PlanError(
                f"plan site {number}: block {site.block} does not exist; the model has blocks 0 to {len(blocks) - 1}"
            )
        if closed(blocks[site.block], site.where, method):
            raise PlanError(
                f"plan site {number}: block {site.block} has {_no_place(blocks[site.block], site.where, method)}"
            )
        if in_order(structure, [site], method.selects):
            check_together(structure)
        check_place(method, site.block, len(blocks), site.where)
        if method.returns != sites[0][2].returns:
            raise PlanError(
                f"plan site {number}: the tokens {method.name} removes {_way(method)}, and those of {sites[0][2].name} "
                f"{_way(sites[0][2])}; sites of one transformer must agree in that"
            )
        others = place and sites[place - 1][2].name != method.name
        if others and here < structure.tokens and "frames" in method.options():
            raise PlanError(
                f"plan site {number}: {method.name} compares the frames of a clip, which are no longer whole behind "
                f"{sites[place - 1][2].name}; put it in front"
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
        if site.tokens % multiple_of and site.tokens < here:
            raise PlanError(
                f"plan site {number}: {site.tokens} tokens are no multiple of {multiple_of}, as the plan says all counts "
                f"are: {method.nearest(site.tokens, here, structure.protect, multiple_of)} is the nearest; change the "
                "count, or drop multiple_of"
            )
        here = here if all_return(method.returns) else site.tokens
        last = order


def _shortening(plan: Plan) -> Plan:
    """The plan without the sites at which no token leaves."""
    pairs = zip(plan.sites, plan.arriving(), strict=True)
    return replace(plan, sites=tuple(site for site, before in pairs if site.tokens < before))


def _not_empty(prepared: Prepared, plan: Plan, allow_noop: bool) -> Plan:
    if not plan.sites and not allow_noop:
        multiples = f" with counts in multiples of {plan.multiple_of}" if plan.multiple_of > 1 else ""
        together = sorted({each.unit for each in plan.transformers} - {1})
        multiples += f" in whole merge units of {together[0]}" if together else ""
        raise NothingToDoError(
            f"the budget removes no token at any block{multiples}; ask for more, or pass --allow-noop to write the model "
            "unchanged" + list_refusals(prepared)
        )
    return plan


def with_cost(prepared: Prepared, plan: Plan, allow_noop: bool = False) -> tuple[Plan, Routes]:
    """The plan with its work filled in, and the routes of the tokens of every transformer that has sites."""
    work = Work.of(prepared, plan)
    after = work.macs(plan)
    if plan.sites and after >= work.full:
        if allow_noop:
            return with_cost(prepared, replace(plan, sites=()))
        readers = [
            "an output" if node is None else f"{node.op_type} node {node.name!r}"
            for path in work.routes.values()
            for node in path.restored
        ]
        blocks = sum(len(structure.blocks) for structure in prepared.transformers)
        needed = (
            f"every token is needed again by {' and '.join(readers)}"
            if readers
            else "no product reads tokens"
        )
        raise NothingToDoError(
            f"the reduction saves no work: of {prepared.candidates()} attentions {blocks} can take one, and "
            f"right behind it {needed}" + list_refusals(prepared)
        )
    return replace(plan, macs_before=work.full, macs_after=after), work.routes


def list_refusals(prepared: Prepared) -> str:
    refusals = prepared.refusals
    return "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in refusals[:8]) + (
        f"\n  and {len(refusals) - 8} more (tokenrt inspect lists all)" if len(refusals) > 8 else ""
    )
