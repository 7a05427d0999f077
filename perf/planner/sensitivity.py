"""How much each place for a reduction harms at each count, one place at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.planning.request import Request
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.judge import Judge

SHARES = (0.9, 0.75, 0.5, 0.25)
"""Of the tokens of a transformer, how many stay where it is tried."""

Told = Callable[[str, int, int], None]
"""Called with what was tried, how many were tried by now, and how many there are."""


@dataclass(frozen=True)
class Place:
    """A reduction at one block: how many tokens stay of those that arrive."""

    method: str
    block: int
    tokens: int
    arriving: int


@dataclass(frozen=True)
class Sensitivity:
    """What each place harms, and why others cannot be tried."""

    harms: dict[Place, Harm]
    refused: dict[Place, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "places": [
                vars(place) | {"harm": {name: list(values) for name, values in harm.outputs.items()}}
                for place, harm in self.harms.items()
            ],
            "refused": [vars(place) | {"reason": reason} for place, reason in self.refused.items()],
        }


def sensitivity(
    judge: Judge,
    names: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    asked: Request | None = None,
    progress: Told | None = None,
) -> Sensitivity:
    """Try every method at every block of the first transformer, leaving each share of its tokens, or as few as the method can.

    A place that cannot be tried is refused with the reason. Raises: MethodError for a name that is no method's.
    """
    asked = asked or Request()
    places = [*_places(judge, names, shares, asked)]
    found = Sensitivity({}, {})

    def plans() -> Iterator[tuple[Place, Plan]]:
        for place in places:
            try:
                budget = Budget.tokens([place.tokens], [place.block])
                yield place, judge.bench.reducer.plan(place.method, budget, asked)
            except TokenrtError as error:
                found.refused[place] = _reason(error)

    for number, (place, answer) in enumerate(judge.map(plans()), 1):
        if isinstance(answer, TokenrtError):
            found.refused[place] = _reason(answer)
        else:
            found.harms[place] = answer
        if progress is not None:
            told = f"{place.method} at block {place.block}: {place.tokens} of {place.arriving}"
            progress(told, number, len(places))
    return found


def _reason(error: TokenrtError) -> str:
    return str(error).splitlines()[0]


def _places(judge: Judge, names: Sequence[str], shares: Sequence[float], asked: Request) -> Iterator[Place]:
    structure = judge.bench.reducer.prepared.structure
    tokens, protect = structure.tokens, structure.protect
    for name in names:
        fewest = methods.for_graph(name, asked.options or {}).fewest(tokens, protect)
        counts = dict.fromkeys(max(round(share * tokens), fewest) for share in shares)
        for block in range(len(structure.blocks)):
            yield from (Place(name, block, count, tokens) for count in counts if count < tokens)
