"""Plans with the harm they do, image by image: which are better, by how much, and which one is to be recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate


@dataclass(frozen=True)
class Judged:
    """A candidate that was run. ratio: its cost as a share of the unreduced model's, as well as it is known."""

    candidate: Candidate
    harm: Harm
    ratio: float

    @property
    def plan(self) -> Plan:
        return self.candidate.plan

    @property
    def mean(self) -> float:
        return self.harm.mean

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Between which the mean lies when other images of the kind had been drawn."""
        return self.harm.interval(seed)

    def surely_better(self, other: Judged) -> bool:
        """Whether it harms less on these images by more than chance would have it, compared image by image."""
        return self.harm.surely_less(other.harm)


def front(plans: Sequence[Judged]) -> list[Judged]:
    """Those that no other beats in both cost and harm, from the dearest to the cheapest."""
    best, found = float("inf"), []
    for each in sorted(plans, key=lambda plan: (plan.ratio, plan.mean, len(plan.plan.sites))):
        if each.mean < best:
            best = each.mean
            found.append(each)
    return found[::-1]


def least_harm(plans: Sequence[Judged]) -> Judged | None:
    """Of plans that are cheap enough the one to recommend.

    A plan that was searched for by its harm on these very images looks better than it is; it is taken where it surely is better
    than the best of those that follow a rule. Of equals the one with fewer sites.
    """
    ranked = sorted(plans, key=lambda plan: (plan.mean, len(plan.plan.sites), plan.candidate.origin))
    ruled = next((plan for plan in ranked if not plan.candidate.searched), None)
    searched = next((plan for plan in ranked if plan.candidate.searched), None)
    if ruled is None or searched is None:
        return ruled or searched
    return searched if searched.surely_better(ruled) else ruled


def cheapest(plans: Sequence[Judged], drop: float) -> Judged | None:
    """The cheapest plan whose harm is at most `drop`, the upper end of its interval counted where it was searched for."""
    within = [
        plan for plan in plans if (plan.interval()[1] if plan.candidate.searched else plan.mean) <= drop
    ]
    return min(within, key=lambda plan: (plan.ratio, plan.mean), default=None)
