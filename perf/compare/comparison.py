"""What a comparison has found: a row for each model, and which of them another one beats in everything that is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenrt.passes.checking.check import CheckReport
from tokenrt.perf.compare.contestants import Contestant
from tokenrt.perf.planner.costs import Cost
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.latency.modelled import Modelled
from tokenrt.perf.profile.timing import Ratio

ORIGINAL = "the original"
Sort = Literal["given", "time", "harm", "work", "memory", "size"]


@dataclass(frozen=True)
class Whole:
    """The original. cost: None where it cannot be counted. bytes: on disk."""

    name: str
    file: Path
    bytes: int
    cost: Cost | None
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "file": str(self.file),
            "bytes": self.bytes,
            "cost": None if self.cost is None else self.cost.as_dict(),
            "milliseconds": round(self.milliseconds, 3),
        }


@dataclass(frozen=True)
class Row:
    """A reduced model, what was measured of it, and what could not be and why. check: None where it was not asked."""

    contestant: Contestant
    bytes: int
    cost: Cost | None
    time: Ratio
    harm: Harm
    check: CheckReport | None = None
    modelled: Modelled | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.contestant.name

    def beats(self, other: Row) -> bool:
        """Whether it is no slower and harms no more, and one of the two by more than chance would have it.

        Where both times on a target are modelled, it is no slower there either.
        """
        here = self.time.median <= other.time.median and self.harm.mean <= other.harm.mean
        if self.modelled is not None and other.modelled is not None:
            here = here and self.modelled.ratio <= other.modelled.ratio
        return here and (self.time.high < other.time.low or self.harm.surely_less(other.harm))

    def pays(self) -> bool:
        """Whether it may be faster than the original, here or on the target."""
        return self.time.low < 1 or (self.modelled is not None and self.modelled.pays)

    def as_dict(self, whole: Whole) -> dict[str, Any]:
        plan, tokens = self.contestant.plan, self.contestant.tokens()
        low, high = self.harm.interval()
        return {
            "name": self.name,
            "file": str(self.contestant.given),
            "spec": None if plan is None else plan.spec(),
            "tokens": None if tokens is None else {"before": tokens[0], "after": tokens[1]},
            "bytes": self.bytes,
            "cost": None if self.cost is None else self.cost.as_dict(),
            "work": self.work(whole),
            "time": self.time.as_dict(),
            "modelled": None if self.modelled is None else self.modelled.as_dict(),
            "harm": {
                "mean": finite(self.harm.mean),
                "interval_95": [finite(low), finite(high)],
                "samples": [*map(finite, self.harm.images)],
                "outputs": {name: [*map(finite, each)] for name, each in self.harm.outputs.items()},
            },
            "check": None if self.check is None else self.check.as_dict(),
            "notes": [*self.notes],
        }

    def work(self, whole: Whole) -> float | None:
        """Multiply-accumulates as a share of the original's."""
        if self.cost is None or whole.cost is None or not whole.cost.macs:
            return None
        return self.cost.macs / whole.cost.macs


@dataclass(frozen=True)
class Comparison:
    """All rows, as they are shown.

    told: how it was measured, by name: data, samples, batch, threads, target. measures: what harm is, by output. page: where one
    was written.
    """

    original: Whole
    rows: Sequence[Row]
    told: Mapping[str, Any]
    measures: Mapping[str, str]
    page: Path | None = None

    def beaten_by(self, row: Row) -> list[str]:
        """The models that leave no reason to take this one; the original where this is surely no faster."""
        found = [] if row.pays() else [ORIGINAL]
        return found + [other.name for other in self.rows if other is not row and other.beats(row)]

    def verdict(self) -> str:
        """Which models are left to choose from, in a sentence or two."""
        left = sorted((row for row in self.rows if not self.beaten_by(row)), key=lambda row: row.time.median)
        beaten = [f"{row.name} (by {_list(self.beaten_by(row))})" for row in self.rows if self.beaten_by(row)]
        if not left:
            return f"Change nothing: beaten are {_list(beaten)}."
        offers = [
            f"{row.name} at {row.time.median:.2f} of the time, harm {row.harm.mean:.3g}" for row in left
        ]
        told = f"To choose from: {'; '.join(offers)}."
        return told + (f" Beaten: {_list(beaten)}." if beaten else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "original": self.original.as_dict(),
            **self.told,
            "measures": dict(self.measures),
            "verdict": self.verdict(),
            "models": [row.as_dict(self.original) | {"beaten_by": self.beaten_by(row)} for row in self.rows],
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("model", box=None, pad_edge=False)
        for heading in self._headings():
            table.add_column(heading, justify="right", overflow="fold")
        table.add_row(*map(Text, self._whole()), style="dim")
        for row in self.rows:
            table.add_row(*map(Text, self._cells(row)))
        return Group(table, Text(), *(Text(line) for line in self._lines()))

    def _headings(self) -> list[str]:
        """Behind the name; a target and a check only where they were asked for."""
        target, asked = self.told["target"], any(row.check is not None for row in self.rows)
        return [
            "tokens",
            "work",
            "memory",
            "file",
            "time",
            *[target] * bool(target),
            "harm",
            *["check"] * asked,
        ]

    def _whole(self) -> list[str]:
        own, tokens = self.original, {row.contestant.tokens() for row in self.rows}
        before = {pair[0] for pair in tokens if pair is not None}
        modelled = next((row.modelled for row in self.rows if row.modelled is not None), None)
        there = "" if modelled is None else _milliseconds(modelled.before * 1e3)
        work, memory = ("-", "-") if own.cost is None else (_count(own.cost.macs), size(own.cost.peak))
        return [
            "original", str(before.pop()) if len(before) == 1 else "-", work, memory, size(own.bytes),
            _milliseconds(own.milliseconds), *[there] * bool(self.told["target"]), "0",
        ]  # fmt: skip

    def _cells(self, row: Row) -> list[str]:
        tokens, work = row.contestant.tokens(), row.work(self.original)
        low, high = row.harm.interval()
        verdict = [] if row.check is None else ["ok" if row.check.ok else "not ok"]
        there = "-" if row.modelled is None else f"{row.modelled.ratio:.2f}"
        return [
            row.name + " *" * bool(self.beaten_by(row)),
            "-" if tokens is None else f"{tokens[0]}→{tokens[1]}",
            "-" if work is None else f"{work:.3f}",
            "-" if row.cost is None else size(row.cost.peak),
            size(row.bytes),
            f"{row.time.median:.3f}\n{row.time.low:.2f}-{row.time.high:.2f}",
            *[there] * bool(self.told["target"]),
            f"{row.harm.mean:.3g}\n{low:.2g}-{high:.2g}",
            *verdict,
        ]

    def _lines(self) -> Iterator[str]:
        told = self.told
        yield self.verdict()
        yield f"original: {self.original.file}"
        yield f"time: share of the original's, on ONNX Runtime in turn with it; {self.run()}; beneath: 95 % interval"
        yield f"harm: {'; '.join(self.harm())}; mean of {told['samples']} samples, {told['data']}; beneath: 95 % interval"
        yield "work: share of the multiply-accumulates, counted; memory: peak of the activations; file: on disk"
        if told["target"]:
            yield f"{told['target']}: share of the original's time there, by a model of its cost, unmeasured"
        if any(self.beaten_by(row) for row in self.rows):
            yield "*: another is no slower and harms no more, one of the two by more than chance; or the original is as fast"
        for row in self.rows:
            for reason in () if row.check is None else row.check.reasons:
                yield f"{row.name}: check fails: {reason}"
            yield from (f"{row.name}: {note}" for note in row.notes)
        if self.page is not None:
            yield f"written: {self.page}"

    def run(self) -> str:
        """How time was taken."""
        threads = self.told["threads"]
        return f"batch {self.told['batch']}, {threads} thread{'s' * (threads != 1)}"

    def harm(self) -> Iterator[str]:
        """What harm is, of which output where they differ."""
        kinds = {*self.measures.values()}
        if len(kinds) == 1:
            yield kinds.pop()
        else:
            yield from (f"of {name} {measure}" for name, measure in self.measures.items())


def ordered(rows: Sequence[Row], whole: Whole, by: Sort) -> list[Row]:
    """Rows by what is asked for, the least first; as they came where two are alike, or nothing is asked."""
    keys = {
        "given": lambda row: 0,
        "time": lambda row: row.time.median,
        "harm": lambda row: row.harm.mean,
        "work": lambda row: row.work(whole) or 0,
        "memory": lambda row: 0 if row.cost is None else row.cost.peak,
        "size": lambda row: row.bytes,
    }
    return sorted(rows, key=keys[by])


def finite(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if abs(value) != float("inf") else "inf"


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _count(number: int) -> str:
    return next(
        (
            f"{number / 10**power:.3g} {unit}"
            for power, unit in ((9, "G"), (6, "M"), (3, "k"))
            if number >= 10**power
        ),
        str(number),
    )


def _milliseconds(number: float) -> str:
    return f"{number:.0f} ms" if number >= 100 else f"{number:.3g} ms"


def size(number: int) -> str:
    """Bytes as people read them."""
    return f"{number / 1e6:.3g} MB" if number >= 1e5 else f"{number / 1e3:.3g} kB"
