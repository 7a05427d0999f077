"""Plans that a person would have picked: a method with a published schedule, each as mild as the wish allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tokenrt.errors import NothingToDoError, TokenrtError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.planning.request import Request
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.tune.meters import Meter

RATIOS = tuple(round(1 - step / 50, 2) for step in range(1, 50))
"""Shares that stay, from mild to strong."""


class Freedom(IntEnum):
    """How much of a plan was chosen by what harms the data at hand: the more, the less that is worth on other data."""

    RULE, SHAPE, SITES = range(3)
    """A published schedule; a shape of few numbers; sites that were changed one by one."""


@dataclass(frozen=True)
class Candidate:
    """A plan, where it is from, and its cost as a share of the unreduced model's."""

    origin: str
    plan: Plan
    ratio: float
    freedom: Freedom = Freedom.RULE

    @property
    def searched(self) -> bool:
        return self.freedom > Freedom.RULE


Strengths = Callable[[int, int], Sequence[Budget]]
"""From tokens and blocks of a transformer to budgets from mild to strong."""


def _removals(make: Callable[[int], Budget]) -> Strengths:
    return lambda tokens, blocks: [make(leave) for leave in range(1, max(tokens // 2, 2))]


def _once(share: float) -> Strengths:
    """At one block, which lies behind this share of them."""
    return lambda tokens, blocks: [Budget.keep(ratio, [int(share * blocks)]) for ratio in RATIOS]


FAMILIES: Mapping[str, Strengths] = {
    "constant": _removals(Budget.remove),
    "decreasing": _removals(lambda leave: Budget.schedule("decreasing", leave)),
    "cosine": _removals(lambda leave: Budget.schedule("cosine", leave)),
    "stages": lambda tokens, blocks: [Budget.schedule("stages", ratio) for ratio in RATIOS],
    "once at the start": _once(0),
    "once at a quarter": _once(1 / 4),
    "once in the middle": _once(1 / 2),
}


FIRST = ("constant", "once at the start")
"""The rules that tell whether a method is worth the others: many small steps, and one large one."""


def families(
    bench: Workbench,
    meter: Meter,
    names: Sequence[str],
    most: float,
    asked: Request,
    rules: Iterable[str] = tuple(FAMILIES),
) -> Iterator[Candidate]:
    """Of every method and rule the mildest plan that costs at most `most`, or where none is so cheap, the cheapest."""
    structure = bench.reducer.prepared.structure
    for name in names:
        for family in rules:
            budgets = FAMILIES[family](structure.tokens, len(structure.blocks))
            found = _mildest(bench, meter, name, budgets, most, asked)
            if found is not None:
                yield Candidate(f"{name}, {family}", *found)


def _mildest(
    bench: Workbench, meter: Meter, name: str, budgets: Sequence[Budget], most: float, asked: Request
) -> tuple[Plan, float] | None:
    """The first of budgets from mild to strong whose plan is cheap enough, by halving, else the cheapest that was met.

    None where no plan can be made.
    """
    low, high, found, nearest = 0, len(budgets), None, None
    while low < high:
        middle = (low + high) // 2
        try:
            plan = bench.reducer.plan(name, budgets[middle], asked)
            ratio = meter.ratio(plan)
        except NothingToDoError:
            low = middle + 1
            continue
        except TokenrtError:
            high = middle  # more than the method can remove
            continue
        if nearest is None or ratio < nearest[1]:
            nearest = plan, ratio
        if ratio <= most:
            high, found = middle, (plan, ratio)
        else:
            low = middle + 1
    return found or nearest
