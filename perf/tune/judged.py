"""Plans with the harm they do, image by image: which are better, by how much, and which one is to be recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate, Freedom


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


def ranked(plans: Sequence[Judged]) -> list[Judged]:
    """Plans by what is to be expected of them on other data, the best first.

    Some images are ten times as easily harmed as others, so that the least mean of few of them is that of two or three, and
    chance. So all that the least mean is not surely better than stand first, and among them each image has one vote: by the share
    of the others that harm it less. Of equals the one with fewer sites. Behind them the others by their mean.
    """
    by_mean = sorted(plans, key=lambda plan: (plan.mean, len(plan.plan.sites), plan.candidate.origin))
    near = [
        plan for plan in by_mean if np.isfinite(plan.mean) and not by_mean[0].surely_better(plan)
    ] or by_mean[:1]
    images = np.array([plan.harm.images for plan in near])
    share = [float((own > images).mean() + (own == images).mean() / 2) for own in images]
    order = sorted(range(len(near)), key=lambda place: (share[place], len(near[place].plan.sites), place))
    return [*(near[place] for place in order), *(plan for plan in by_mean if plan not in near)]


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

    A rule and a simple shape have few numbers, and the better of them is taken. Where sites were changed freely, by what that
    does to these very images, a plan looks better than it is: it has to be surely better, image by image.
    """
    simple = ranked([plan for plan in plans if plan.candidate.freedom < Freedom.SITES])
    free = ranked([plan for plan in plans if plan.candidate.freedom is Freedom.SITES])
    if not simple or not free:
        return next(iter([*simple, *free]), None)
    return free[0] if free[0].surely_better(simple[0]) else simple[0]


def cheapest(plans: Sequence[Judged], drop: float) -> Judged | None:
    """The cheapest plan whose harm is at most `drop`, the upper end of its interval counted where it was searched for."""
    within = [
        plan for plan in plans if (plan.interval()[1] if plan.candidate.searched else plan.mean) <= drop
    ]
    return min(within, key=lambda plan: (plan.ratio, plan.mean), default=None)
