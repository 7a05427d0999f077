"""What is measured of kept tokens, and what is said of those that lose by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenrt.perf.bench.quality.scores import Score

if TYPE_CHECKING:
    from tokenrt.perf.demo.subject import Array

SHARES = (0.25, 0.11, 0.05)
"""Of the tokens, what stays."""

FLOOR, FLOORS = "random", ("random", "slice")
SEEDS = (0, 1, 2, 3, 4)
"""Draws of `random`, whose mean stands in the tables."""


@dataclass(frozen=True)
class Measure:
    """What is measured: its title and what it is, whether more is better, and what sums up the pictures (see CENTERS)."""

    title: str
    told: str
    more: bool = False
    center: str = "mean"

    def score(self, each: Array) -> Score:
        """What pictures [D,n] have of it, so that more is better."""
        return Score(each if self.more else -each, self.center)

    def value(self, each: Array) -> float:
        found = self.score(each).value
        return found if self.more else -found


MEASURES: Mapping[str, Measure] = {
    "mean": Measure(
        "The mean feature",
        "Relative distance (L2) of the mean of the rows that are left from the mean of all; mean over pictures, smaller is "
        "better. A drawn sample prefers nothing and its mean errs by chance alone; whoever prefers something shows here.",
    ),
    "nearest": Measure(
        "Every token's nearest",
        "Distance (L2) of every token from the nearest row that is left, root of the mean square over that of the tokens' "
        "lengths; mean over pictures, smaller is better.",
    ),
    "map": Measure(
        "The dense head",
        "Correlation of the saliency map with that of all features when every position gets one of the rows that are left: the "
        "one it was joined to, where the model says so, else the nearest, which a host cannot know; median over pictures, larger "
        "is better.",
        more=True,
        center="median",
    ),
    "mean_counted": Measure(
        "The mean feature, by numbers",
        "As the mean feature, but each row that is left counts as often as tokens come back as it.",
    ),
    "mean_attended": Measure(
        "The mean feature, by attention",
        "As the mean feature, but from the mean of all in which each token counts by the class token's attention to it in the "
        "last block.",
    ),
    "nearest_attended": Measure(
        "Every token's nearest, by attention",
        "As every token's nearest, but each token is weighed by the class token's attention to it in the last block.",
    ),
    "map_nearest": Measure(
        "The dense head, from the nearest",
        "As the dense head, but every position gets the nearest of the rows that are left.",
        more=True,
        center="median",
    ),
    "alike": Measure(
        "How alike the rows are",
        "Cosine of each row that is left to the one most like it; mean over rows and pictures.",
    ),
    "apart": Measure(
        "How far out the rows are",
        "Relative distance (L2) of each row that is left from the mean of all; mean over rows and pictures.",
    ),
}
SHOWN = ("mean", "nearest", "map")
"""Those that have a table."""


@dataclass(frozen=True)
class Kept:
    """One method at one share: how many tokens stay and what pictures have of every measure, [D,n] each; or why there is none."""

    method: str
    share: float
    tokens: int | None
    each: Mapping[str, Array]
    reason: str = ""

    def told(self) -> str:
        """In a few words, for the log."""
        if self.tokens is None:
            return "-"
        return f"{self.tokens}: " + ", ".join(f"{MEASURES[key].value(self.each[key]):.3f}" for key in SHOWN)


@dataclass(frozen=True)
class Reason:
    """Why methods lose by some measures, and its test by another one, in a sentence.

    names: whom it is given for. there: the test is that they have surely more of `other` than `random`, which is the cause; else
    that they are not surely worse by `other`, in which the cause plays no part.
    """

    names: tuple[str, ...]
    measures: tuple[str, ...]
    text: str
    test: str
    other: str
    there: bool = False
