"""Which tokens never leave, and why: learned ones, those that the model reads by position, and those the user names.

Positions are of the model's own order. Behind the first reduction protected tokens stand in front, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import Array

Spans = Sequence[tuple[int, int | None]]
"""Positions as (first, end); negative ones count from the end, and an end of None is behind the last token."""

LEARNED = "learned: no input reaches it"
LAST = "under a causal mask the next token is read from the last"
WANTED = "as was asked for (--protect)"


@dataclass(frozen=True)
class Guard:
    """Protected tokens `first` to `end - 1`, and why they are."""

    first: int
    end: int
    why: str

    @property
    def positions(self) -> range:
        return range(self.first, self.end)

    def as_dict(self) -> dict[str, int | str]:
        return {"first": self.first, "last": self.end - 1, "why": self.why}

    def __str__(self) -> str:
        last = self.end - 1
        which = f"token {self.first}" if last == self.first else f"tokens {self.first} to {last}"
        return f"{which}: {self.why}"


def positions(guards: Iterable[Guard]) -> tuple[int, ...]:
    """All that are protected, in ascending order, each once."""
    return tuple(sorted({place for guard in guards for place in guard.positions}))


def guards(places: Iterable[int], why: str) -> tuple[Guard, ...]:
    """Positions, run by run."""
    runs = groupby(enumerate(sorted(set(places))), key=lambda pair: pair[1] - pair[0])
    found = ([token for _, token in run] for _, run in runs)
    return tuple(Guard(run[0], run[-1] + 1, why) for run in found)


def guarded(
    given: Mapping[str, Iterable[int]], tokens: int, follow: Callable[[tuple[int, ...]], Flow]
) -> tuple[tuple[Guard, ...], Flow]:
    """The tokens that never leave, and the flow of the tokens with these protected, which `follow` gives.

    given: why some of them are protected, and which.
    """
    kept = tuple(guard for why, places in given.items() for guard in guards(places, why))
    while True:
        flow = follow(positions(kept))
        more = read_by_position(flow, tokens, positions(kept))
        if not more:
            return kept, flow
        kept = (*kept, *more)


def read_by_position(flow: Flow, tokens: int, known: Sequence[int]) -> tuple[Guard, ...]:
    """The few tokens that nodes read apart from the others, as heads do that sit on a class token or on learned queries.

    Of each node the smaller part counts: what it takes, or what it leaves away. Where parts of one length are so many that
    they leave less than half of the tokens free, all tokens are read, one group after the other: those have no place of
    their own, and come back before the node instead.
    """
    parts: dict[frozenset[int], str] = {}
    for stop in flow.blocked:
        for part in map(frozenset, stop.parts):
            rest = frozenset(range(tokens)) - part
            small = min(part, rest, key=len) - frozenset(known)
            if small and stop.node is not None:
                parts.setdefault(small, f"read by position by {stop.node.op_type} node {stop.node.name!r}")
    taken = set(known)
    found: list[Guard] = []
    for _, alike in groupby(sorted(parts, key=len), key=len):
        group = [*alike]
        if len(taken.union(*group)) * 2 <= tokens:
            found.extend(guard for part in group for guard in guards(part - taken, parts[part]))
            taken.update(*group)
    return tuple(found)


def resolved(spans: Spans, tokens: int) -> tuple[int, ...] | None:
    """These positions among `tokens`; None where there are not so many tokens."""
    found: set[int] = set()
    for first, end in spans:
        start = first + tokens if first < 0 else first
        stop = tokens if end is None else end + tokens if end < 0 else end
        if start == tokens and end is None:
            continue  # What lies behind a span that ends with the last token.
        if not 0 <= start < stop <= tokens:
            return None
        found.update(range(start, stop))
    return tuple(sorted(found))


def text(given: str | Sequence[int] | None) -> str:
    """What the user protects, as a plan says it."""
    return given or "" if isinstance(given, str | None) else ",".join(map(str, given))


def outside(span: str | None) -> str:
    """All tokens but those of a span `S:E`, as text; nothing without one. Raises: PlanError."""
    if span is None:
        return ""
    start, stop = _ends(
        span, f"--span {span}: expected S:E, the first token that may leave and the one behind"
    )
    before = [] if start == 0 else [f"0:{start}"]
    return ",".join(before if stop is None else [*before, f"{stop}:"])


def words(given: str, protected: Sequence[int], tokens: int) -> tuple[int, int] | None:
    """Where the words lie that methods read beside the tokens that may leave: (first, end), from S:E or all behind these.

    Behind the tokens that may leave both count from the end, 0 for the end itself, so that they hold however many have left.
    None where nothing is said and nothing lies behind. Raises: PlanError.
    """
    leaving = free(protected, tokens)
    first, end = int(leaving[0]), int(leaving[-1]) + 1
    if not given:
        return (end - tokens, 0) if end < tokens else None
    places = resolved(
        [_ends(given, f"--text {given}: expected S:E, the first word and the one behind")], tokens
    )
    if places is None:
        raise PlanError(f"--text {given}: the words must lie among the {tokens} tokens, 0 to {tokens - 1}")
    if places[-1] < first:
        return places[0], places[-1] + 1
    if places[0] < end:
        raise PlanError(
            f"--text {given}: tokens {first} to {end - 1} may leave, and words never do; name some in front of these or behind"
        )
    return places[0] - tokens, places[-1] + 1 - tokens


def _ends(given: str, told: str) -> tuple[int, int | None]:
    """Read `S:E`. Raises: PlanError, as `told` says what was expected."""
    first, colon, end = given.strip().partition(":")
    try:
        start, stop = int(first or 0), int(end) if end else None
    except ValueError:
        colon = ""
    if (
        not colon
        or (stop is not None and start < 0 <= stop)
        or (stop is not None and start >= 0 < stop <= start)
    ):
        raise PlanError(f"{told} the last, as in 8:72")
    return start, stop


def parse(given: str) -> Spans:
    """Read `0,-1,200:217`: positions, and ranges without their end. Raises: PlanError."""
    found: list[tuple[int, int | None]] = []
    for part in given.split(",") if given else ():
        first, colon, end = part.strip().partition(":")
        try:
            start = int(first) if first or not colon else 0
            stop = (int(end) if end else None) if colon else (start + 1 or None)
        except ValueError:
            raise PlanError(
                f"--protect {given}: expected positions and ranges with commas between, as in 0,-1,200:217"
            ) from None
        found.append((start, stop))
    return tuple(found)


def free(protected: Sequence[int], tokens: int) -> Array:
    """The positions that may leave, in ascending order."""
    return np.setdiff1d(np.arange(tokens), protected)


def arranged(protected: Sequence[int], tokens: int) -> Array:
    """[N] int64: the positions in the order that reductions keep, protected ones first."""
    return np.concatenate([np.asarray(protected, np.int64), free(protected, tokens)])
