"""What encoders say once they are reduced, as tables: by how much it is off, who is surely off more than `random`, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenrt.perf.bench import results
from tokenrt.perf.bench.quality.experiments import Outcome
from tokenrt.perf.bench.quality.kept_measures import Measure
from tokenrt.perf.demo.subject import Array

if TYPE_CHECKING:
    from rich.table import Table

BETTER, WORSE = " ↑", " ↓"
FLOOR, FLOORS = "random", ("random", "slice")

Place = tuple[str, str, float, str]
"""Encoder, method, share and measure."""


@dataclass(frozen=True)
class Result:
    """One method in one encoder at one share: what each sentence has of every measure, [D,n]; or why there is nothing."""

    encoder: str
    method: str
    share: float
    each: Mapping[str, Array]
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """A page: its title and first paragraphs, the encoders with a sentence about each, all results and what was tried.

    outcomes: experiments; their `exam` is `exam(encoder, measure)`.
    """

    title: str
    told: Sequence[str]
    shares: Sequence[float]
    measures: Mapping[str, Measure]
    encoders: Mapping[str, str]
    results: Sequence[Result]
    outcomes: Sequence[Outcome] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    items: str = "sentences"

    @cached_property
    def intervals(self) -> Mapping[Place, tuple[float, float]]:
        """By how much a method is better than `random`, as 95 % intervals."""
        floors = {(r.encoder, r.share): r.each for r in self.results if r.method == FLOOR}
        found = {}
        for r in self.results:
            floor = floors.get((r.encoder, r.share))
            if r.method in FLOORS or not r.each or not floor:
                continue
            for key, measure in self.measures.items():
                apart = measure.score(r.each[key]).above(measure.score(floor[key]))
                found[r.encoder, r.method, r.share, key] = apart
        return found

    def losers(self, encoder: str, key: str) -> dict[str, list[float]]:
        """Methods surely worse than `random`, each with the shares at which they are."""
        found = dict[str, list[float]]()
        for (its, name, share, measure), (_, high) in self.intervals.items():
            if (its, measure) == (encoder, key) and high < 0:
                found.setdefault(name, []).append(share)
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "encoders": dict(self.encoders),
            "results": [self._told(r) for r in self.results],
            "experiments": [outcome.as_dict() for outcome in self.outcomes],
            "left_out": dict(self.left_out),
        }

    def _told(self, r: Result) -> dict[str, Any]:
        known = {"encoder": r.encoder, "method": r.method, "share": r.share}
        if not r.each:
            return known | {"reason": r.reason}
        values = {key: round(measure.value(r.each[key]), 4) for key, measure in self.measures.items()}
        apart = {key: self.intervals.get((r.encoder, r.method, r.share, key)) for key in self.measures}
        better = {
            f"{key}_better_than_random": [round(end, 4) for end in ends]
            for key, ends in apart.items()
            if ends
        }
        return known | values | better

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(self._table(name, key) for name in self.encoders for key in self.measures))

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        arrows = (
            f"Arrows mark what is surely better ({BETTER.strip()}) or worse ({WORSE.strip()}) than `random`: the 95 % interval "
            f"of the difference on the same {self.items} (bootstrap over {self.items} and draws) lies on one side of 0."
        )
        parts = [f"# {self.title}", *self.told, arrows]
        for name, about in self.encoders.items():
            parts += [f"## {name}", about]
            for key, measure in self.measures.items():
                parts += [f"### {measure.title}, {name}", measure.told]
                parts += [results.table(self._head(), [*self._rows(name, key)]), *self._why(name, key)]
        reasons = dict[str, list[str]]()
        for method, reason in self._missing().items():
            reasons.setdefault(reason, []).append(method)
        lines = [f"- {_listed(names)}: {reason}" for reason, names in reasons.items()]
        parts += ["## Not measured", "\n".join(lines)] if lines else []
        return "\n\n".join([*parts, results.told(where)])

    def _missing(self) -> dict[str, str]:
        measured = {r.method for r in self.results if r.each}
        refused = {r.method: r.reason for r in self.results if r.method not in measured}
        return {**self.left_out, **refused}

    def _head(self) -> list[str]:
        return ["method", *(f"{share:.0%}:" for share in self.shares)]

    def _rows(self, encoder: str, key: str) -> Iterable[list[str]]:
        found = {(r.method, r.share): r for r in self.results if r.encoder == encoder and r.each}
        for name in dict.fromkeys(name for name, _ in found):
            yield [f"`{name}`", *(self._cell(found.get((name, share)), key) for share in self.shares)]

    def _cell(self, r: Result | None, key: str) -> str:
        if r is None:
            return "-"
        low, high = self.intervals.get((r.encoder, r.method, r.share, key), (0.0, 0.0))
        arrow = BETTER if low > 0 else WORSE if high < 0 else ""
        return f"{self.measures[key].value(r.each[key]):.3f}{arrow}"

    def _why(self, encoder: str, key: str) -> list[str]:
        """Who is worse than `random`, and each reason with its experiment."""
        losers = self.losers(encoder, key)
        if not losers:
            return ["No method is surely worse than `random`."]
        parts = [f"Surely worse than `random` at some share: {_listed(losers)}."]
        tried = [told for told in self.outcomes if told.experiment.exam == exam(encoder, key) and told.trials]
        for outcome in tried:
            parts += outcome.page(results.table)
        known = {trial.method for outcome in tried for trial in outcome.trials}
        unknown = [name for name in losers if name not in known]
        return [*parts, f"No reason was found and tested for {_listed(unknown)}."] if unknown else parts

    def _table(self, encoder: str, key: str) -> Table:
        return results.shown(self._head(), self._rows(encoder, key), f"{encoder}: {self.measures[key].title}")


def exam(encoder: str, measure: str) -> str:
    """What an experiment on one measure of an encoder is filed under."""
    return f"{encoder}, {measure}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
