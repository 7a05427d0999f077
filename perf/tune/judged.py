"""Plans with the harm they do, image by image: which are better, by how much, and which one is to be recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate, Freedom

LIGHT = 0.5
"""An image counts as if rules harmed it at least so many times as much as the mean of all."""


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


@dataclass(frozen=True)
class Yardstick:
    """What plans that are as cheap are compared by: harm image by image, against what other plans do to the same image.

    Some pictures are ten times as easily harmed as others, so that a mean of few of them is a mean of two or three, and says
    little of the next ones. usual: of each image the median harm of plans that follow a rule, but no less than half the mean of
    these, so that images which nothing harms do not count for more than the others.
    """

    usual: Sequence[float]

    @classmethod
    def of(cls, plans: Sequence[Judged]) -> Yardstick:
        """Made of the rules among these plans, of all where there is none."""
        ruled = [plan for plan in plans if not plan.candidate.searched] or plans
        usual = np.median([plan.harm.images for plan in ruled], axis=0)
        return cls(np.maximum(usual, LIGHT * usual.mean()).tolist())

    def relative(self, plan: Judged) -> Harm:
        """Harm in units of what is usual; the same where nothing is harmed by any rule."""
        usual = np.array(self.usual)
        images = np.array(plan.harm.images)
        scaled = images / usual if np.isfinite(usual).all() and usual.all() else images
        return Harm({"relative": tuple(scaled.tolist())})

    def score(self, plan: Judged) -> float:
        """The mean of that and its standard error: of two that harm as much, the one that is the same to all images."""
        images = np.array(self.relative(plan).images)
        doubt = (
            images.std(ddof=1) / np.sqrt(len(images)) if len(images) > 1 and np.isfinite(images).all() else 0
        )
        return float(images.mean() + doubt)

    def best(self, plans: Sequence[Judged]) -> Judged | None:
        """Of equals the one with fewer sites."""
        return min(
            plans,
            key=lambda plan: (self.score(plan), len(plan.plan.sites), plan.candidate.origin),
            default=None,
        )


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
    if not plans:
        return None
    yardstick = Yardstick.of(plans)
    simple = yardstick.best([plan for plan in plans if plan.candidate.freedom < Freedom.SITES])
    free = yardstick.best([plan for plan in plans if plan.candidate.freedom is Freedom.SITES])
    if simple is None or free is None:
        return simple or free
    return free if yardstick.relative(free).surely_less(yardstick.relative(simple)) else simple


def cheapest(plans: Sequence[Judged], drop: float) -> Judged | None:
    """The cheapest plan whose harm is at most `drop`, the upper end of its interval counted where it was searched for."""
    within = [
        plan for plan in plans if (plan.interval()[1] if plan.candidate.searched else plan.mean) <= drop
    ]
    return min(within, key=lambda plan: (plan.ratio, plan.mean), default=None)
