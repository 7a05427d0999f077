"""The document behind a report: the plans or models that were tried on one model, what was measured of them, and what was not.

A command fills it with what it measured and hands it to `write.write`:

    Document(
        kind="compare", title=..., verdict=..., model=Model(...), measures=Measures(cost=..., harm=...),
        entries=[Entry(name=..., cost=0.68, harm=0.037, flow=..., work=..., time=..., check=...), ...],
        missing={"samples": "the models were compared without --data"}, commands=..., manifest=...,
    )

Everything but names is optional. What was not measured stays None or empty, and `missing` says why for the section that it
would have filled (`SECTIONS`); the page shows the reason in its place. Numbers are shares, milliseconds or bytes, as each field
says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

VERSION = 1
"""Of the form of the document; readers refuse what is newer."""

SECTIONS = {
    "trade": "The trade-off",
    "flow": "Tokens, block by block",
    "samples": "What became of the tokens",
    "time": "Time, block by block",
    "work": "Work and memory",
    "checks": "Checks",
    "commands": "Make it again",
    "manifest": "Where this comes from",
}
"""Sections of the page, in their order, by the name that `missing` calls them."""

Kind = Literal["tune", "demo", "compare"]
Evidence = Literal["measured", "counted", "predicted", "modelled"]
"""How a cost is known: timed, counted on the graph, predicted from measured blocks, or by a model of a chip that never ran."""


@dataclass(frozen=True)
class Model:
    """The unreduced model. tokens: N of its first transformer, `protected` of them, in a grid of h x w or one row."""

    name: str
    tokens: int = 0
    protected: int = 0
    blocks: int = 0
    grid: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Measures:
    """What the two numbers that entries are compared by are, in words that follow "cost is" and "harm is"."""

    cost: str
    harm: str
    evidence: Evidence = "counted"


@dataclass(frozen=True)
class Step:
    """Tokens that reach a site, and those that are left behind it."""

    block: int
    arriving: int
    leaving: int
    method: str = ""


@dataclass(frozen=True)
class Work:
    """Counted on the graph for `batch` images; see `tokenrt.perf.planner.costs.Cost`. peak: of activations, in bytes."""

    batch: int
    macs: int
    moved: int
    weights: int
    peak: int


@dataclass(frozen=True)
class Part:
    """Milliseconds of one part of a model, as of block 3: in the unreduced one and here. None: that one has no such part."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Time:
    """Time as a share of the unreduced model's, with a 95 % interval where it was measured in pairs.

    where: target, batch and threads in words. parts: under a profiler, whose totals are no plain run's.
    """

    where: str
    evidence: Evidence
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None
    after: float | None = None
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Check:
    """The verdict of `tokenrt check`, and the lines it asked. data: on what, in words."""

    ok: bool
    reasons: Sequence[str]
    samples: int
    data: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """Behind a block the cells `cells` of a sample live in the tokens `tokens` from there on; -1: they were dropped.

    Cells count row by row through the grid, protected tokens left out; a token has the number of its first cell. Before the first
    change each cell is a token of its own.
    """

    block: int
    cells: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Sample:
    """A photograph as a data URI of `width` x `height`, or a text as its words, a token each."""

    name: str
    picture: str = ""
    width: int = 0
    height: int = 0
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """A plan that was tried, or a reduced model.

    cost: as a share of the unreduced model's. harm: the mean, within `interval`; on every sample, in their order, `harms`. sites:
    how many. views: what became of each sample of the document, empty where it was not looked at.
    """

    name: str
    cost: float | None = None
    harm: float | None = None
    interval: tuple[float, float] | None = None
    harms: Sequence[float] = ()
    sites: int = 0
    spec: str = ""
    file: str = ""
    front: bool = False
    recommended: bool = False
    flow: Sequence[Step] = ()
    views: Sequence[Sequence[Change]] = ()
    work: Work | None = None
    time: Time | None = None
    check: Check | None = None


@dataclass(frozen=True)
class Command:
    """A line to type, and what it does."""

    words: str
    line: str


@dataclass(frozen=True)
class Document:
    """A report.

    state: in a word or two, as "met". unreduced: the work of the model itself. notes: what a reader must know besides.
    manifest: groups of facts by their headings. missing: by section, why it is empty.
    """

    kind: Kind
    title: str
    verdict: str
    model: Model
    measures: Measures
    entries: Sequence[Entry]
    state: str = ""
    unreduced: Work | None = None
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
    commands: Sequence[Command] = ()
    manifest: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    made: str = ""
    first: int | None = None

    @property
    def shown(self) -> int | None:
        """The entry that the page opens with: `first` where it is said, else the recommended one, one on the front, or any."""
        if self.first is not None:
            return self.first
        rank = {place: (not each.recommended, not each.front) for place, each in enumerate(self.entries)}
        return min(rank, key=lambda place: (rank[place], place), default=None)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: what is not finite becomes None."""
        made: dict[str, Any] = _plain({"version": VERSION, "shown": self.shown, **asdict(self)})
        return made


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
