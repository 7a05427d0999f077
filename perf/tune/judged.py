"""Plans with the harm they do, image by image: which are better, by how much, and which one is to be recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate

DRAWS, INSIDE = 2000, 0.95
"""Draws of images with replacement, and the share of them that an interval holds."""

SURE = 2.0
"""Standard errors of a difference, image by image, from which on a plan that was searched for counts as better."""


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
        images = np.array(self.harm.images)
        if len(images) < 2 or not np.isfinite(images).all():
            return self.mean, self.mean
        draws = np.random.default_rng(seed).integers(0, len(images), (DRAWS, len(images)))
        low, high = np.quantile(images[draws].mean(axis=1), [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
        return float(low), float(high)

    def surely_better(self, other: Judged) -> bool:
        """Whether it harms less on these images by more than chance would have it, compared image by image."""
        gap = np.array(other.harm.images) - np.array(self.harm.images)
        if len(gap) < 2 or not np.isfinite(gap).all():
            return False
        return bool(gap.mean() > SURE * gap.std(ddof=1) / np.sqrt(len(gap)))


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
