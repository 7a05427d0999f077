"""A plan that was searched for beside others of the same cost, on data that none of them was chosen by."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.request import Request
from tokenrt.perf.bench import results
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.judge import Judge, Label
from tokenrt.perf.tune.families import Candidate, families
from tokenrt.perf.tune.judged import least_harm
from tokenrt.perf.tune.meters import Meter
from tokenrt.perf.tune.progress import Progress
from tokenrt.perf.tune.search import Search
from tokenrt.perf.tune.tune import METHODS

RULES = ("tome", "pitome", "topk", "evit", "atc")
"""Methods whose published schedules a person would have picked from."""

BOUND = 1.03
"""What a tuned plan may harm against the best of these on what was held out."""

HEAD = ("plan", "sites:", "cost:", "harm, seen:", "harm, held out:", "95 % between:", "against the best:")


@dataclass(frozen=True)
class Part(Judge):
    """A judge of all data that tells the harm of some images alone."""

    images: slice | None = None

    @classmethod
    def within(cls, judge: Judge, images: slice) -> Part:
        return cls(**vars(judge), images=images)

    def map(self, asked: Iterable[tuple[Label, Plan]]) -> Iterator[tuple[Label, Harm | TokenrtError]]:
        for label, found in super().map(asked):
            yield label, found if isinstance(found, TokenrtError) else self._of(found)

    def _of(self, harm: Harm) -> Harm:
        own = slice(None) if self.images is None else self.images
        return Harm({name: values[own] for name, values in harm.outputs.items()})


@dataclass(frozen=True)
class Row:
    """A plan.

    cost: a share of the unreduced model's. seen, held: its harm on either part of the data. more: further figures, by the
    heading of their column.
    """

    origin: str
    plan: Plan
    cost: float
    seen: Harm
    held: Harm
    more: Mapping[str, float] = field(default_factory=dict)

    def having(self, **more: float) -> Row:
        return replace(self, more={**self.more, **more})

    def as_dict(self) -> dict[str, Any]:
        low, high = self.held.interval()
        return {
            "origin": self.origin, "spec": self.plan.spec(), "sites": len(self.plan.sites), "cost": self.cost,
            "seen": self.seen.mean, "held": self.held.mean, "low": low, "high": high, "images": list(self.held.images),
            **self.more,
        }  # fmt: skip

    def cells(self, best: float) -> list[str]:
        low, high = self.held.interval()
        return [
            self.origin, str(len(self.plan.sites)), f"{self.cost:.1%}", f"{self.seen.mean:.4f}", f"{self.held.mean:.4f}",
            f"{low:.4f} to {high:.4f}", f"{self.held.mean / best:.3f}",
        ]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One wish. cost: what is counted; most: what no plan exceeds.

    bound: what the tuned harm may be against the best other, None where it is part of a comparison that has one.
    """

    title: str
    cost: str
    most: float
    tuned: Row
    others: Sequence[Row]
    bound: float | None
    notes: Sequence[str] = ()

    @property
    def best(self) -> Row:
        """Of the others the one that harms least on what was held out, which nobody could have known."""
        return min(self.others, key=lambda row: row.held.mean)

    @property
    def ratio(self) -> float:
        return self.tuned.held.mean / self.best.held.mean

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title, "cost": self.cost, "most": self.most, "bound": self.bound, "ratio": self.ratio,
            "tuned": self.tuned.as_dict(), "others": [row.as_dict() for row in self.others], "notes": list(self.notes),
        }  # fmt: skip

    def told(self) -> str:
        """The comparison as Markdown."""
        rows = [self.tuned, *sorted(self.others, key=lambda row: row.held.mean)]
        more = [*dict.fromkeys(name for row in rows for name in row.more)]
        lines = [
            [
                *row.cells(self.best.held.mean),
                *(f"{row.more[name]:.4g}" if name in row.more else "-" for name in more),
            ]
            for row in rows
        ]
        lines[0][0] = f"**tuned**: {lines[0][0]}"
        seen, held = len(self.tuned.seen.images), len(self.tuned.held.images)
        told = (
            f"Cost: {self.cost}; no plan costs more than {self.most:.1%}. {seen} images seen, {held} held out. There the tuned "
            f"plan harms {self.ratio:.3f} times as much as the best of the others{asked(self.bound)}."
        )
        head = [*HEAD, *(f"{name.replace('_', ' ')}:" for name in more)]
        return "\n\n".join([f"## {self.title}", told, *self.notes, results.table(head, lines)])


def asked(bound: float | None) -> str:
    return "" if bound is None else f"; at most {bound:g} is asked"


@dataclass(frozen=True)
class Crossed:
    """Comparisons that hold out each a part of the data, and all of it together: every image counts once, where it was unseen.

    Some images are ten times as easily harmed as others, so that one part decides little by itself.
    """

    title: str
    parts: Sequence[Comparison]
    bound: float = BOUND

    @property
    def tuned(self) -> Harm:
        return _together([part.tuned for part in self.parts])

    @property
    def others(self) -> Mapping[str, Harm]:
        """Of each rule that all parts have."""
        rows = [{row.origin: row for row in part.others} for part in self.parts]
        return {
            origin: _together([part[origin] for part in rows])
            for origin in rows[0]
            if all(origin in part for part in rows)
        }

    @property
    def best(self) -> str:
        """The rule that harms least on all images."""
        return min(self.others, key=lambda origin: self.others[origin].mean)

    @property
    def ratio(self) -> float:
        return self.tuned.mean / self.others[self.best].mean

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "bound": self.bound,
            "ratio": self.ratio,
            "tuned": _held(self.tuned),
            "others": [{"origin": origin, **_held(harm)} for origin, harm in self.others.items()],
            "parts": [part.as_dict() for part in self.parts],
        }

    def told(self) -> str:
        """The comparison as Markdown, its parts behind it."""
        least = self.others[self.best].mean
        told = (
            f"Every image was held out once, {len(self.tuned.images)} in all. There the tuned plans harm {self.ratio:.3f} times "
            f"as much as the rule that is best on all of them{asked(self.bound)}."
        )
        ordered = sorted(self.others.items(), key=lambda each: each[1].mean)
        rows = [
            [
                origin,
                f"{harm.mean:.4f}",
                "{:.4f} to {:.4f}".format(*harm.interval()),
                f"{harm.mean / least:.3f}",
            ]
            for origin, harm in [("**tuned**", self.tuned), *ordered]
        ]
        table = results.table(("plan", "harm, held out:", "95 % between:", "against the best:"), rows)
        return "\n\n".join([f"## {self.title}", told, table, *(f"#{part.told()}" for part in self.parts)])


def _together(rows: Sequence[Row]) -> Harm:
    """The harm on what was held out, of all parts."""
    return Harm({"held out": tuple(value for row in rows for value in row.held.images)})


def _held(harm: Harm) -> dict[str, Any]:
    low, high = harm.interval()
    return {"held": harm.mean, "low": low, "high": high}


def compared(
    title: str,
    seen: Part,
    held: Part,
    meter: Meter,
    most: float,
    *,
    bound: float | None = BOUND,
    names: Sequence[str] = METHODS,
    rules: Sequence[str] = RULES,
) -> Comparison:
    """Search on what is seen, and compare with the rules of methods on what is held out."""
    plan = tuned(seen, held, meter, most, names)
    others = [
        row(candidate, meter, seen, held)
        for candidate in families(seen.bench, meter, rules, most, Request())
        if candidate.ratio <= most
    ]
    return Comparison(title, meter.told, most, plan, others, bound)


def tuned(seen: Part, held: Part, meter: Meter, most: float, names: Sequence[str] = METHODS) -> Row:
    """The plan that a search recommends. Raises: TokenrtError where it recommends none."""
    search = searched(seen, meter, most, names)
    best = least_harm(search.within(most))
    if best is None:
        raise TokenrtError(f"the search found no plan that costs {most:.1%} or less")
    return Row(best.candidate.origin, best.plan, best.ratio, best.harm, held(best.plan))


def searched(seen: Judge, meter: Meter, most: float, names: Sequence[str]) -> Search:
    """A search for the least harm at a cost."""
    search = Search(seen, meter, names, Request(), Progress(tell, seen.pace))
    search.at(most)
    return search


def row(candidate: Candidate, meter: Meter, seen: Judge, held: Judge) -> Row:
    plan = candidate.plan
    return Row(candidate.origin, plan, meter.exact(plan), seen(plan), held(plan))


def tell(stage: str) -> None:
    print(stage, file=sys.stderr)
