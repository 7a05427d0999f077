"""A budget of work: the removal per block that brings a model down to a fraction of its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.fit.cost import not_empty, shortening, with_cost
from tokenrt.passes.planning.plan import Budget, Plan, PlannedSite, Where, all_return
from tokenrt.passes.planning.resolve import in_time, rounded
from tokenrt.passes.planning.route import closed
from tokenrt.passes.planning.units import whole
from tokenrt.passes.planning.work import Work


def by_work(
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
        return with_cost(prepared, not_empty(prepared, base, allow_noop))[0]
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
            found = shortening(removing(removed, more))
            return with_cost(prepared, not_empty(prepared, found, allow_noop))[0]
    least = work.macs(removing(most, 0)) / work.full
    raise PlanError(
        f"--flops {budget.amount}: {method.name} can reach {least:.3f} of the model's work at the least; ask for more"
    )
