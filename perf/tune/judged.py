"""Plans with the harm they do, image by image: which are better, by how much, and which one is to be recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate, Freedom

LIKE, OTHER = 0.15, 0.1
"""How far plans are apart, as a share of the tokens at each block, that say a third as much of each other as of themselves; and
how far another method, or attention that counts sizes otherwise, puts them."""


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
    """Plans by what is to be expected of them on other data, the best first; behind them those that surely harm more.

    The mean harm of few images is chance to a good part, and the least of many means most of all. So a plan is believed as far as
    plans like it confirm: among all that the least mean is not surely better than, that of each and its likes is compared. Of
    equals the one with fewer sites.
    """
    by_mean = sorted(plans, key=lambda plan: (plan.mean, len(plan.plan.sites), plan.candidate.origin))
    near = [plan for plan in by_mean if np.isfinite(plan.mean) and not by_mean[0].surely_better(plan)]
    sound = [plan for plan in by_mean if np.isfinite(plan.mean)]
    believed = {
        id(plan): float(
            np.average([each.mean for each in sound], weights=[alike(plan.plan, each.plan) for each in sound])
        )
        for plan in near
    }
    first = sorted(near, key=lambda plan: (believed[id(plan)], len(plan.plan.sites)))
    return [*first, *(plan for plan in by_mean if id(plan) not in believed)]


def alike(one: Plan, other: Plan) -> float:
    """How much a plan says of another, from 0 to 1: by tokens behind each block, and by methods."""
    counts = [np.array(_behind(plan)) / plan.tokens for plan in (one, other)]
    shares = [_shares(plan) for plan in (one, other)]
    names = {name for share in shares for name in share}
    apart = float(np.abs(counts[0] - counts[1]).mean())
    apart += OTHER * sum(abs(shares[0].get(name, 0) - shares[1].get(name, 0)) for name in names) / 2
    apart += OTHER * (one.proportional_attention != other.proportional_attention)
    return float(np.exp(-((apart / LIKE) ** 2)))


def _behind(plan: Plan) -> list[int]:
    """Tokens behind each block."""
    sites, here, found = {site.block: site.tokens for site in plan.sites}, plan.tokens, list[int]()
    for block in range(plan.blocks):
        here = sites.get(block, here)
        found.append(here)
    return found


def _shares(plan: Plan) -> dict[str, float]:
    """Of the tokens that leave, which share does by which method."""
    found, gone = dict[str, float](), plan.tokens - _behind(plan)[-1]
    for site, before in zip(plan.sites, plan.arriving(), strict=True):
        name = site.method or plan.method
        found[name] = found.get(name, 0.0) + (before - site.tokens) / max(gone, 1)
    return found


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
