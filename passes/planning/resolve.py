"""Turn a budget into a token count for each block of one transformer, and say what a site, a count and a grid must keep to."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Returns
from tokenrt.passes.planning import schedules
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.plan import PlannedSite, Where, all_return, places
from tokenrt.passes.planning.units import check_units, fitting

if TYPE_CHECKING:
    from tokenrt.passes.methods.contract import Method


def resolve(
    budget: Budget,
    method: Method,
    tokens: int,
    protect: int,
    blocks: int,
    where: Where,
    shut: Collection[int] = (),
) -> tuple[tuple[PlannedSite, ...], tuple[str, ...]]:
    """Turn any budget but flops into integer counts. Raises: PlanError naming the block and the limit.

    shut: blocks that are left out where none is named, as masks close them to the method.
    """
    sites, notes = _unrounded(budget, method, tokens, protect, blocks, where, shut)
    sites, unfit = rounded(sites, method, tokens, protect, budget.multiple_of)
    if budget.kind == "schedule":
        back = all_return(method.returns)
        gone = sum(tokens - site.tokens for site in (sites if back else sites[-1:]))
        leave = "tokens leave and come back" if back else f"of {tokens} tokens leave in all"
        notes += (f"schedule {budget.name}: {schedules.get(budget.name).summary}; {gone} {leave}",)
    return sites, (*notes, *unfit)


def rounded(
    sites: Sequence[PlannedSite], method: Method, tokens: int, protect: int, multiple_of: int
) -> tuple[tuple[PlannedSite, ...], tuple[str, ...]]:
    """The sites of one transformer with each count the nearest multiple that its method can leave, and notes where none is."""
    if multiple_of == 1:
        return tuple(sites), ()
    here, made, notes = tokens, list[PlannedSite](), list[str]()
    for site in sites:
        keep = method.nearest(site.tokens, here, protect, multiple_of)
        if keep is None:
            notes.append(
                f"block {site.block}: {method.name} can leave no multiple of {multiple_of} of {here} tokens "
                f"({method.fewest(here, protect)} at the least), so that none leaves"
            )
        elif keep < here:
            made.append(replace(site, tokens=keep))
            here = tokens if all_return(method.returns) else keep
    return tuple(made), tuple(notes)


def _unrounded(
    budget: Budget,
    method: Method,
    tokens: int,
    protect: int,
    blocks: int,
    where: Where,
    shut: Collection[int],
) -> tuple[tuple[PlannedSite, ...], tuple[str, ...]]:
    layers = _layers(budget, method, blocks, where, shut)
    notes: list[str] = []
    sites: list[PlannedSite] = []
    if budget.kind == "tokens" and len(budget.counts) != len(layers):
        raise PlanError(
            f"--tokens gives {len(budget.counts)} counts for {len(layers)} blocks; give one per block, or name "
            "the blocks with --layers"
        )
    if budget.rates is not None and len(budget.rates.steps) != len(layers):
        raise PlanError(
            f"the rates of --schedule {budget.name} are for {len(budget.rates.steps)} blocks, not {len(layers)}; "
            "give one number per block, or name the blocks with --layers"
        )
    schedule = schedules.get(budget.name or "constant")
    most_it_can = budget.kind in ("remove", "schedule") and schedule.takes == "R"
    here = tokens
    for place, block in enumerate(layers):
        fewest = method.fewest(here, protect)
        if budget.kind in ("remove", "schedule"):
            wanted = schedule.behind(
                schedules.Step(
                    place,
                    len(layers),
                    here,
                    tokens,
                    protect,
                    method,
                    budget.amount,
                    budget.rates,
                    budget.center,
                )
            )
        elif budget.kind == "keep":
            wanted = method.after_keeping(math.ceil(budget.amount * (here - protect)), protect)
        else:
            wanted = budget.counts[place]
        if budget.kind != "tokens":
            wanted = fitting(method, wanted, here, protect)
        if most_it_can and wanted < here:
            if not sites and wanted <= protect and wanted < fewest:
                raise PlanError(
                    f"{budget.option()}: block {block} has {here} tokens, {protect} of them protected; at most "
                    f"{here - fewest} can leave there with {method.name}"
                )
            if wanted < fewest:
                notes.append(
                    f"block {block}: only {here - fewest} of {here - wanted} tokens can leave {here}"
                )
                wanted = fewest
        if wanted >= here and budget.kind != "tokens":
            continue
        check_count(method, block, here, wanted, protect)
        if wanted < here:
            sites.append(PlannedSite(block, where, wanted))
            here = tokens if all_return(method.returns) else wanted
    return tuple(sites), tuple(notes)


def in_time(when: Returns, blocks: int, where: Where) -> range:
    """The blocks whose tokens leave before they come back."""
    if when == "from-last-step":
        return range(min(blocks, 1))
    late = (2 if where == "after-block" else 1) if when == "before-last-block" else 0
    return range(max(blocks - late, 0))


def check_place(method: Method, block: int, blocks: int, where: Where) -> None:
    """Whether a site of this method can lie there. Raises: PlanError."""
    if where not in places(method.returns):
        raise PlanError(
            f"block {block}: {method.name} cannot sit {where}, only {' or '.join(places(method.returns))}"
        )
    if block and method.returns == "from-last-step":
        raise PlanError(f"block {block} {where}: {method.name} chooses once for all blocks, before block 0")
    if block not in in_time(method.returns, blocks, where):
        raise PlanError(
            f"block {block} {where}: the tokens {method.name} removes come back before block {blocks - 1}, the last; "
            f"a site can lie at blocks 0 to {in_time(method.returns, blocks, where).stop - 1}"
        )


def check_grid(grid: tuple[int, ...], free: int) -> None:
    """Whether `grid` lays out so many unprotected tokens. Raises: PlanError."""
    if len(grid) not in (2, 3) or min(grid) < 1 or prod(grid) != free:
        raise PlanError(
            f"grid {'x'.join(map(str, grid))} has {prod(grid)} cells; it must be (h, w) or (frames, h, w) with as many as "
            f"there are unprotected tokens, {free}"
        )


def check_count(method: Method, block: int, tokens: int, keep: int, protect: int) -> None:
    """Whether `keep` of `tokens` can stay at a block. Raises: PlanError with the numbers."""
    if keep > tokens:
        raise PlanError(f"block {block}: {keep} tokens are to stay, but only {tokens} arrive there")
    if keep <= 0:
        raise PlanError(
            f"block {block}: {keep} tokens are to stay; at least {protect + 1} must ({protect} protected and one more)"
        )
    if keep <= protect and (keep < protect or method.fewest(tokens, protect) > protect):
        raise PlanError(
            f"block {block}: {keep} tokens are to stay, but {protect} are protected and at least one more must stay"
        )
    check_units(method, block, tokens, keep, protect)
    fewest = method.fewest(tokens, protect)
    if keep < fewest:
        raise PlanError(
            f"block {block}: {method.name} can leave at least {fewest} of {tokens} tokens in one step, not {keep}"
        )


def _layers(budget: Budget, method: Method, blocks: int, where: Where, shut: Collection[int]) -> list[int]:
    usable = [block for block in in_time(method.returns, blocks, where) if block not in shut]
    if budget.layers is None:
        if budget.kind == "keep":
            raise PlanError(
                "--keep needs --layers: the blocks (from 0) at which the ratio applies, e.g. --layers 3,6,9"
            )
        if budget.kind == "schedule":
            return [block for block in schedules.get(budget.name).blocks(blocks) if block in usable]
        return usable
    for layer in budget.layers:
        if not 0 <= layer < blocks:
            told = "--layers" if budget.name != "once" else budget.option()
            raise PlanError(f"{told}: block {layer} does not exist; the model has blocks 0 to {blocks - 1}")
        check_place(method, layer, blocks, where)
    if len(set(budget.layers)) != len(budget.layers):
        raise PlanError(f"--layers {','.join(map(str, budget.layers))}: a block is named twice")
    return sorted(budget.layers)
