"""Whether a plan that was made before, and perhaps edited by hand, fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning import units
from tokenrt.passes.planning.fit.cost import list_refusals, not_empty, shortening
from tokenrt.passes.planning.fit.terms import (
    about,
    check_free,
    check_ordered,
    check_together,
    check_tokens,
    counts,
    named,
    no_place,
    way,
)
from tokenrt.passes.planning.plan import EVERY, Plan, PlannedSite, Transformer, all_return
from tokenrt.passes.planning.resolve import check_count, check_grid, check_place
from tokenrt.passes.planning.route import closed, in_order
from tokenrt.passes.planning.units import whole


def checked(plan: Plan, prepared: Prepared, allow_noop: bool) -> Plan:
    """Whether a plan, perhaps edited by hand, fits this model. Raises: PlanError, NothingToDoError."""
    structures = prepared.transformers
    if not structures:
        if plan.sites:
            raise NothingToDoError("no transformer block can be reduced" + list_refusals(prepared))
        return not_empty(prepared, plan.over([counts(prepared.structure, plan.grid)]), allow_noop)
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
        with about(named(prepared, number)):
            if number in reduced:
                check_free(structure)
            _check_counts(planned, structure, sizes[number])
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
        with about(named(prepared, number)):
            _check_sites(own, structure, plan.multiple_of)
            if own and in_order(
                structure, plan.of(number).sites, all(chosen.keeps_order for *_, chosen in own)
            ):
                check_ordered(structure, [chosen for *_, chosen in own], plan)
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
    return not_empty(prepared, shortening(fitted), allow_noop)


def _check_counts(planned: Transformer, structure: Structure, unit: int) -> None:
    if planned.tokens != structure.tokens:
        raise PlanError(
            f"the plan is for {planned.tokens} tokens, the model has {structure.tokens}; make a new plan for it"
        )
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
                f"plan site {number}: block {site.block} has {no_place(blocks[site.block], site.where, method)}"
            )
        if in_order(structure, [site], method.keeps_order):
            check_together(structure)
        check_place(method, site.block, len(blocks), site.where)
        check_tokens(method)
        if method.returns != sites[0][2].returns:
            raise PlanError(
                f"plan site {number}: the tokens {method.name} removes {way(method)}, and those of {sites[0][2].name} "
                f"{way(sites[0][2])}; sites of one transformer must agree in that"
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
        order = (site.block, EVERY.index(site.where))
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
