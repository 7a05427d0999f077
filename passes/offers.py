"""Which places of a model take a reduction, found by reducing there: planned, rewritten and proven as `reduce` does it.

What is tried is `slice`, which asks nothing of a model but that tokens can leave it, with one token less at one place. That every
place alone takes it is what is promised; other methods, larger counts and several places at once may be refused for reasons of
their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.methods.contract import Returns
from tokenrt.passes.methods.floor.slice import Slice
from tokenrt.passes.planning import fit, units
from tokenrt.passes.planning.plan import PLACES, Budget, Plan, PlannedSite, Where, all_return
from tokenrt.passes.planning.request import Request
from tokenrt.passes.planning.route import cut, missing
from tokenrt.passes.planning.several import Routes
from tokenrt.passes.rewriting.undo import undone
from tokenrt.passes.rewriting.whole import rewrite


@dataclass(frozen=True)
class SliceAround(Slice):
    """Slice for one attention alone: what leaves comes back behind it, as methods have it that sit around an attention."""

    name: ClassVar[str] = "slice-around"
    returns: ClassVar[Returns] = "after-attention"


@dataclass(frozen=True)
class Place:
    """A place where a reduction could sit."""

    transformer: int
    block: int
    where: Where


@dataclass(frozen=True)
class Offers:
    """The places that take a reduction, with a plan for each alone, and the reason of every other.

    short: outputs behind a merger that can stay short, by name, and of how many tokens the units are that then leave.
    """

    taken: Mapping[Place, Plan]
    refused: Mapping[Place, str]
    short: Mapping[str, int] = field(default_factory=dict)

    def at(self, transformer: int, block: int) -> tuple[tuple[Where, ...], dict[str, str]]:
        """What one block takes, and what it does not, with reasons."""
        places = [Place(transformer, block, where) for where in PLACES]
        refused = {str(place.where): self.refused[place] for place in places if place in self.refused}
        return tuple(place.where for place in places if place in self.taken), refused

    def routes(self, prepared: Prepared, transformer: int) -> Routes:
        """How tokens run that leave one transformer at the first place where they can stay away, if there is one."""
        mine = (place for place in self.taken if place.transformer == transformer)
        away = [place for place in mine if place.where != "around-attention"]
        return fit.with_cost(prepared, self.taken[_first(away)])[1] if away else {}


def offers(prepared: Prepared) -> Offers:
    """Try every place of every block. The model is left as it was."""
    taken: dict[Place, Plan] = {}
    refused: dict[Place, str] = {}
    with methods.also(SliceAround):
        for where in PLACES:
            plans: dict[Place, Plan] = {}
            for place in _places(prepared, where):
                made = _planned(prepared, place)
                if isinstance(made, str):
                    refused[place] = made
                else:
                    plans[place] = made
            refused |= _refused(prepared, [*plans.items()])
            taken |= {place: plan for place, plan in plans.items() if place not in refused}
    return Offers(taken, refused, _short(prepared, taken))


def _first(places: Sequence[Place]) -> Place:
    return min(places, key=lambda place: (place.block, PLACES.index(place.where)))


def _short(prepared: Prepared, taken: Mapping[Place, Plan]) -> dict[str, int]:
    """The outputs behind a merger that stay short where a unit leaves at the first place of their transformer."""
    found: dict[str, int] = {}
    for number, structure in enumerate(prepared.transformers):
        away = [place for place in taken if place.transformer == number and place.where != "around-attention"]
        sizes = units.rows(prepared.model.graph, prepared.shapes, structure) if away else {}
        for output, size in sizes.items():
            if size > 1:
                made = _planned(prepared, _first(away), size, str(output.name))
                if not isinstance(made, str) and not _rewritten(prepared, [made]):
                    found[str(output.name)] = size
    return found


def _places(prepared: Prepared, where: Where) -> Iterator[Place]:
    for number, structure in enumerate(prepared.transformers):
        for block in structure.blocks:
            yield Place(number, block.index, where)


def _planned(prepared: Prepared, place: Place, leave: int = 1, short: str = "") -> Plan | str:
    """The plan that removes so many tokens there, one if not said, or why there is none."""
    block = prepared.transformers[place.transformer].blocks[place.block]
    if cut(block, place.where) is None:
        return missing(block, place.where)
    try:
        method = (SliceAround if place.where == "around-attention" else Slice).name
        asked = Request(site=place.where, transformers=[place.transformer], short=short)
        return fit.make(prepared, method, Budget.remove(leave, [place.block]), asked)
    except TokenrtError as error:
        return _reason(error)


def _refused(prepared: Prepared, plans: Sequence[tuple[Place, Plan]]) -> dict[Place, str]:
    """The places whose rewriting is refused.

    Every place has been planned by itself. What the rewriting asks, it asks of each tensor and node by itself, so it is tried
    with all places at once, and with fewer only where that is refused.
    """
    if not plans:
        return {}
    reason = _rewritten(prepared, [plan for _, plan in plans])
    if not reason:
        return {}
    if len(plans) == 1:
        return {plans[0][0]: reason}
    half = len(plans) // 2
    return _refused(prepared, plans[:half]) | _refused(prepared, plans[half:])


def _rewritten(prepared: Prepared, plans: Sequence[Plan]) -> str:
    """Why one rewrite with the sites of all these plans is refused; nothing where it is not."""
    plan = replace(plans[0], sites=tuple(_joined(plans)))
    for number in plan.reduced():
        if plan.of(number).counts()[-1] <= plan.transformers[number].protect:
            return "too few tokens for so many sites"
    try:
        planned, routes = fit.with_cost(prepared, plan)
        with undone(prepared.model):
            rewrite(prepared, planned, routes, source_map=False)
    except TokenrtError as error:
        return _reason(error)
    return ""


def _joined(plans: Sequence[Plan]) -> Iterator[PlannedSite]:
    """The sites of plans with one each, every one of which takes a token from those that are left."""
    left = {number: each.tokens for number, each in enumerate(plans[0].transformers)}
    for plan in plans:
        (site,) = plan.sites
        removed = plan.transformers[site.transformer].tokens - site.tokens
        stay = left[site.transformer] - removed
        if not all_return(plan.returns):
            left[site.transformer] = stay
        yield replace(site, tokens=stay)


def _reason(error: TokenrtError) -> str:
    """The error without what it lists behind its first line."""
    return str(error).splitlines()[0]
