"""The search itself: rules first, then sums over single places, then changes of the best; every plan is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.request import Request
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.tune.families import Candidate, families
from tokenrt.perf.tune.improve import Improver
from tokenrt.perf.tune.judged import Judged
from tokenrt.perf.tune.meters import Meter
from tokenrt.perf.tune.proposals import proposals

TRIES = 40
"""Changed plans that are drawn."""

AROUND = (1.15, 0.85)
"""Costs at which the best method is run too, as shares of the one that is wished."""

BEST = 3
"""Methods that go on to the next cost where the wish is about harm."""

STEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Costs at which plans are sought where the wish is about harm."""


@dataclass
class Search:
    """What was run so far, in order. asked: the options that all plans share."""

    judge: Judge
    meter: Meter
    names: Sequence[str]
    asked: Request
    tell: Callable[[str], None]
    seed: int = 0
    judged: list[Judged] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)

    def at(self, most: float) -> None:
        """Look for the least harm at a cost, and at costs around it among the best families."""
        self._run(self._families(most, self.names))
        for share in AROUND:
            cost = most * share
            if cost < 1:
                self._run(self._families(cost, self.ranked_methods()[:1]))
        self._searched(most)

    def down_to(self, drop: float) -> None:
        """Look for the least cost at which the mean harm is at most `drop`."""
        names = self.names
        for most in STEPS:
            before = len(self.judged)
            self._run(self._families(most, names))
            new = self.judged[before:]
            if not new or min(each.mean for each in new) > drop:
                break
            names = [*dict.fromkeys(each.plan.method for each in sorted(new, key=_mean))][:BEST]
        within = [each for each in self.judged if each.mean <= drop]
        if within:
            self._searched(min(each.ratio for each in within) * AROUND[1])

    def within(self, most: float) -> list[Judged]:
        """What was run and is cheap enough."""
        return [each for each in self.judged if each.ratio <= most * (1 + 1e-9)]

    def ranked_methods(self) -> list[str]:
        """Methods by their least harm so far."""
        return [*dict.fromkeys(each.plan.method for each in sorted(self.judged, key=_mean))]

    def _families(self, most: float, names: Sequence[str]) -> Iterable[Candidate]:
        return families(self.judge.bench, self.meter, names, most, self.asked)

    def _searched(self, most: float) -> None:
        ranked = sorted(self.within(most), key=_mean)
        if not ranked:
            return
        improver = Improver(self.judge.bench, self.meter, self.names, most, self.seed)
        self._run(proposals(self.judge, self.meter, improver, ranked, self.asked, self.tell))
        self._run(improver.neighbours(lambda: min(self.within(most), key=_mean), TRIES), TRIES)

    def _run(self, candidates: Iterable[Candidate], about: int = 0) -> None:
        """Run candidates, each plan once. about: how many there may be."""
        for number, candidate in enumerate(candidates):
            spec = candidate.plan.spec()
            if any(each.plan.spec() == spec for each in self.judged):
                continue
            self.tell(f"plan {len(self.judged) + 1}: {candidate.origin}{self._left(about - number)}")
            start = time.perf_counter()
            try:
                ratio = self.meter.exact(candidate.plan)
                self.judged.append(Judged(candidate, self.judge(candidate.plan), ratio))
            except TokenrtError as error:
                self.left_out[candidate.origin] = str(error).splitlines()[0]
            self.spent.append(time.perf_counter() - start)

    def _left(self, plans: int) -> str:
        if plans <= 0 or not self.spent:
            return ""
        seconds = plans * sum(self.spent) / len(self.spent)
        return f", {seconds / 60:.0f} minutes left" if seconds >= 90 else f", {seconds:.0f} seconds left"


def _mean(judged: Judged) -> float:
    return judged.mean
