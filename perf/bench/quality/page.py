"""What the benchmark of quality found, as tables: scores, who is below `random`, and what was tried to learn why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenrt.passes import methods
from tokenrt.perf.bench import results
from tokenrt.perf.bench.method_models import ordered
from tokenrt.perf.bench.quality import trained
from tokenrt.perf.bench.quality.experiments import ALL, ONCE, Outcome
from tokenrt.perf.bench.quality.scores import Score

if TYPE_CHECKING:
    from rich.table import Table

SHARES = (0.75, 0.5, 0.35, 0.25)
"""Of the unprotected tokens, what stays behind the last block."""

FLOORS = ("random", "slice")
SEEDS = (0, 1, 2, 3, 4)
"""Draws of `random`, whose mean stands in the table."""

NEAR = 0.005
"""A score that is below that of `random` by less says nothing."""

BELOW = " ↓"


Key = tuple[str, str, str, float]
"""Exam, blocks, method and share."""


@dataclass(frozen=True)
class Result:
    """One method at one share: the score, or why there is none; where tokens leave, and how many are there behind."""

    exam: str
    method: str
    share: float
    score: Score | None
    reason: str = ""
    where: str = ALL
    tokens: int | None = None

    @property
    def key(self) -> Key:
        return self.exam, self.where, self.method, self.share


@dataclass(frozen=True)
class Quality:
    """All results, and what the unreduced models score: (exam, what is measured, score) each."""

    exams: Sequence[tuple[str, str, float]]
    results: Sequence[Result]
    outcomes: Sequence[Outcome] = ()

    @cached_property
    def differences(self) -> Mapping[Key, tuple[float, float]]:
        """What a method scores above `random` there, as a 95 % interval."""
        return {r.key: r.score.above(floor) for r, floor in self._pairs() if r.score is not None}

    @cached_property
    def losses(self) -> Mapping[Key, bool]:
        """Where a method scores less than `random`: whether that is more than an accident of pictures and draws."""
        return {key: self.differences[key][1] < 0 for key in self._lower()}

    def beaten(self, exam: str, where: str = ALL) -> dict[str, list[float]]:
        """Methods below `random` there, each with the shares at which it is."""
        found = dict[str, list[float]]()
        for its_exam, its_where, name, share in self._lower():
            if (its_exam, its_where) == (exam, where):
                found.setdefault(name, []).append(share)
        return found

    def _lower(self) -> Iterable[Key]:
        """Where a method scores less than `random`; no interval is needed to know that."""
        return (r.key for r, floor in self._pairs() if r.score and r.score.value < floor.value - NEAR)

    def _pairs(self) -> Iterable[tuple[Result, Score]]:
        """Each method's result with the score of `random` there."""
        scores = {r.key: r.score for r in self.results}
        for r in self.results:
            floor = scores.get((r.exam, r.where, "random", r.share))
            if r.method not in FLOORS and floor is not None:
                yield r, floor

    def as_dict(self) -> dict[str, Any]:
        return {
            "exams": [
                {"name": name, "measure": what, "unreduced": round(full, 4)}
                for name, what, full in self.exams
            ],
            "results": [self._told(result) for result in self.results],
            "experiments": [outcome.as_dict() for outcome in self.outcomes],
        }

    def _told(self, r: Result) -> dict[str, Any]:
        known = {"exam": r.exam, "method": r.method, "share": r.share, "where": r.where, "tokens": r.tokens}
        if r.score is None:
            return known | {"reason": r.reason}
        apart = self.differences.get(r.key)
        less = {"less_random": [round(end, 4) for end in apart]} if apart else {}
        return known | {"score": round(r.score.value, 4)} | less

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(self._table(*exam) for exam in self.exams))

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        parts = [
            "# Quality",
            "Every method, all with the same token counts behind each block, falling in equal steps to a share of the "
            f"unprotected tokens. `random` is the mean of {len(SEEDS)} draws. No model was trained or tuned for the reduction. "
            "Made by `python -m tokenrt.perf.bench quality`.",
            f"An arrow ({BELOW.strip()}) marks what is surely below `random`: the 95 % interval of the difference on the same "
            "pictures (bootstrap over pictures and draws) lies below 0. A smaller score without an arrow may be an accident.",
        ]
        for name, what, full in self.exams:
            parts += [
                f"## {name}",
                f"{what} Unreduced: {full:.3f}.",
                self._shown(name, ALL),
                *self._once(name),
            ]
            parts += [*self._weights(name), *self._below_random(name)]
        measured = {(r.exam, r.method) for r in self.results if r.score is not None}
        reasons = {r.method: r.reason for r in reversed(self.results) if (r.exam, r.method) not in measured}
        if reasons:
            lines = [f"- `{method}`: {reason}" for method, reason in reasons.items()]
            parts += ["## Not measured", "\n".join(lines)]
        return "\n\n".join([*parts, results.told(where)])

    def _shown(self, exam: str, where: str) -> str:
        return results.table(["method", *(f"{share:.0%}:" for share in SHARES)], [*self._rows(exam, where)])

    def _rows(self, exam: str, where: str) -> Iterable[list[str]]:
        """The scores of each method that has one; where methods make counts of their own, with those in brackets."""
        found = {(r.method, r.share): r for r in self.results if (r.exam, r.where) == (exam, where)}
        for name in ordered():
            row = [found[name, share] for share in SHARES if (name, share) in found]
            if any(r.score is not None for r in row):
                yield [f"`{name}`", *map(self._cell, row)]

    def _cell(self, r: Result) -> str:
        if r.score is None:
            return "-"
        count = f" ({r.tokens})" if r.where == ONCE else ""
        return f"{r.score.value:.3f}{count}{BELOW if self.losses.get(r.key) else ''}"

    def _once(self, exam: str) -> list[str]:
        """Methods that reduce at one block alone, beside the controls there."""
        if not any(r.method not in FLOORS for r in self.results if (r.exam, r.where) == (exam, ONCE)):
            return []
        told = f"Reduced {ONCE}, for methods that can reduce only once; in brackets the tokens behind it."
        return [told, self._shown(exam, ONCE)]

    def _weights(self, exam: str) -> list[str]:
        """Where the weights of methods that need some come from."""
        needing = [name for name in methods.at_blocks() if methods.get(name).needs]
        named = ", ".join(f"`{name}`" for name in needing)
        if any(r.exam == exam and r.method in needing for r in self.results):
            return [f"Weights of {named}: {trained.TOLD}."]
        return [
            f"Without {named}: their weights are trained on the digits, where the model is a module of torch too."
        ]

    def _below_random(self, exam: str) -> list[str]:
        """Which methods are, and why, each reason with its experiment."""
        beaten = {where: self.beaten(exam, where) for where in (ALL, ONCE)}
        if not any(beaten.values()):
            return ["No method is below `random`."]
        parts = [
            f"Below `random` at some share ({where}): {', '.join(f'`{name}`' for name in names)}."
            for where, names in beaten.items()
            if names
        ]
        tested = [told for told in self.outcomes if told.experiment.exam == exam and told.trials]
        for outcome in tested:
            parts += outcome.page(results.table)
        known = {trial.method for outcome in tested for trial in outcome.trials}
        sure = {name for (its_exam, _, name, _), surely in self.losses.items() if its_exam == exam and surely}
        left = {name for below in beaten.values() for name in below} - known
        for told, names in (
            ("No reason was found and tested for", left & sure),
            ("Below it perhaps by accident, so no reason was sought:", left - sure),
        ):
            parts += [f"{told} {', '.join(f'`{name}`' for name in sorted(names))}."] if names else []
        return parts

    def _table(self, name: str, what: str, full: float) -> Table:
        from rich.table import Table

        table = Table(title=f"{name}: {what} Unreduced: {full:.3f}")
        table.add_column("method")
        for share in SHARES:
            table.add_column(f"{share:.0%}", justify="right")
        for row in self._rows(name, ALL):
            table.add_row(*row)
        return table
