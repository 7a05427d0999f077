"""The search itself: rules, simple shapes, sums over single places, then changes of the best; every plan is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.request import Request
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.tune.families import FAMILIES, FIRST, Candidate, Freedom, families
from tokenrt.perf.tune.improve import Improver
from tokenrt.perf.tune.judged import Judged, ranked
from tokenrt.perf.tune.meters import Meter
from tokenrt.perf.tune.progress import Progress
from tokenrt.perf.tune.proposals import FEW, PENALTIES, SHARES, proposals
from tokenrt.perf.tune.shapes import Shape, spectrum

HOPELESS = 1.5
"""A method is left out whose first rules harm more than so many times as much as the best."""

SHAPES, TRIES = 24, 8
"""Simple shapes that are run, and changed plans that are drawn."""

BROAD = 2
"""Methods whose even steps are run, the best ones."""

ROUND = 8
"""So many of them are changes of one plan, the best when they are drawn, so that they can run at the same time."""

AROUND = (1.15, 0.85)
"""Costs at which the best method is run too, as shares of the one that is wished."""

BEST = 3
"""Methods that go on to the next cost where the wish is about harm."""

STEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Costs at which plans are sought where the wish is about harm."""


@dataclass
class Search:
    """What was run so far, in order.

    asked: the options that all plans share. beyond: the cheapest plan of each rule that has none that is cheap enough.
    """

    judge: Judge
    meter: Meter
    names: Sequence[str]
    asked: Request
    progress: Progress
    seed: int = 0
    judged: list[Judged] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    beyond: list[Candidate] = field(default_factory=list)

    def at(self, most: float) -> None:
        """Look for the least harm at a cost, and at costs around it among the best families."""
        rules = {
            "first": len(self.names) * len(FIRST),
            "rules": len(self.names) * (len(FAMILIES) - len(FIRST)),
            "around": len(AROUND) * len(FIRST),
        }
        self.progress.expect(rules | self._last())
        self._run("first", self._families(most, self.names, FIRST))
        names = self._hopeful(most)
        self._run("rules", self._families(most, names))
        best = self.ranked_methods()[:1]
        around = (self._families(most * share, best, FIRST) for share in AROUND if most * share < 1)
        self._run("around", itertools.chain.from_iterable(around))
        self._searched(most, names)
        if not self.judged:
            self._run("nearest", sorted(self.beyond, key=lambda each: each.ratio)[:1])

    def down_to(self, drop: float) -> None:
        """Look for the least cost at which the mean harm is at most `drop`."""
        names = self.names
        rules = {str(most): min(len(names), BEST) * len(FAMILIES) for most in STEPS}
        self.progress.expect(rules | {str(STEPS[0]): len(names) * len(FAMILIES)} | self._last())
        for most in STEPS:
            before = len(self.judged)
            self._run(str(most), self._families(most, names))
            new = self.judged[before:]
            if not new or min(each.mean for each in new) > drop:
                break
            names = [*dict.fromkeys(each.plan.method for each in sorted(new, key=_mean))][:BEST]
        within = [each for each in self.judged if each.mean <= drop]
        if within:
            self._searched(min(each.ratio for each in within) * AROUND[1], names)

    def _last(self) -> dict[str, int]:
        """What follows the rules: how many plans at the most."""
        blocks = len(self.judge.bench.reducer.prepared.structure.blocks)
        return {"shapes": SHAPES, "sums": blocks * FEW * len(SHARES) + len(PENALTIES), "changes": TRIES}

    def within(self, most: float) -> list[Judged]:
        """What was run and is cheap enough."""
        return [each for each in self.judged if each.ratio <= most * (1 + 1e-9)]

    def ranked_methods(self) -> list[str]:
        """Methods by their least harm so far."""
        return [*dict.fromkeys(each.plan.method for each in sorted(self.judged, key=_mean))]

    def _families(
        self, most: float, names: Sequence[str], rules: Iterable[str] = tuple(FAMILIES)
    ) -> Iterator[Candidate]:
        for each in families(self.judge.bench, self.meter, names, most, self.asked, rules):
            if each.ratio <= most:
                yield each
            else:
                self.beyond.append(each)

    def _hopeful(self, most: float) -> list[str]:
        """The methods that are worth further rules, the best first; why the others are not is told."""
        best: dict[str, float] = {}
        for each in sorted(self.within(most), key=_mean):
            best.setdefault(each.plan.method, each.mean)
        least = min(best.values(), default=0.0)
        for name, harm in best.items():
            if harm > HOPELESS * least:
                self.left_out[f"other rules of {name}"] = (
                    f"it harms at least {harm / least:.1f} times as much as {next(iter(best))}"
                )
        return [name for name in best if best[name] <= HOPELESS * least] or [*self.names]

    def _searched(self, most: float, names: Sequence[str]) -> None:
        if not self.within(most):
            return
        improver = Improver(self.judge.bench, self.meter, names, most, self.seed)
        self._shapes(improver)
        plans = ranked(self.within(most))
        sums = proposals(self.judge, self.meter, improver, plans, self.asked, self.progress.one)
        self._run("sums", sums)
        for number, left in enumerate(range(TRIES, 0, -ROUND)):
            best = ranked(self.within(most))[0]
            self._run("changes", improver.neighbours(best, min(ROUND, left), number))

    def _shapes(self, improver: Improver) -> None:
        """Even steps of the best methods at every stride; then the numbers of the best shape, one after the other."""
        like = ranked(self.within(improver.most))[0].plan
        numbers, tried = spectrum(like.blocks, improver.names), dict[Shape, Candidate]()
        even = [
            Shape(name, name, 0, like.blocks, stride, 0.0, like.proportional_attention)
            for name in improver.names[:BROAD]
            for stride in numbers["stride"]
        ]
        best = self._best_of(even, tried, like, improver)
        for name, values in numbers.items():
            if best is not None:
                near = [replace(best, **{name: value}) for value in values]
                best = self._best_of(near, tried, like, improver)

    def _best_of(
        self, shapes: Sequence[Shape], tried: dict[Shape, Candidate], like: Plan, improver: Improver
    ) -> Shape | None:
        """Run a round of shapes, as many as SHAPES leaves; the best of all that were tried, None where there is none."""
        for shape in shapes:
            left = SHAPES - len({each.plan.spec() for each in tried.values()})
            if shape in tried or shape.first >= shape.behind or left <= 0:
                continue
            fitted = improver.fitted(like, shape.mixture(like.tokens, like.blocks))
            if fitted is not None:
                tried[shape] = Candidate(str(shape), *fitted, Freedom.SHAPE)
        self._run("shapes", (tried[shape] for shape in shapes if shape in tried))
        place = {each.plan.spec(): at for at, each in enumerate(ranked(self.within(improver.most)))}
        return min(tried, key=lambda shape: place.get(tried[shape].plan.spec(), len(place)), default=None)

    def _run(self, stage: str, candidates: Iterable[Candidate]) -> None:
        """Run a round of candidates, which depend on earlier rounds alone; each plan once. stage: of those expected."""
        self.progress.begin(stage)
        for (candidate, ratio), harm in self.judge.map(self._new(candidates)):
            if isinstance(harm, TokenrtError):
                self.left_out[candidate.origin] = str(harm).splitlines()[0]
                continue
            self.judged.append(Judged(candidate, harm, ratio))
            self.progress.one(f"plan {len(self.judged)}: {candidate.origin}")

    def _new(self, candidates: Iterable[Candidate]) -> Iterator[tuple[tuple[Candidate, float], Plan]]:
        """Those that were not asked for before, with what they cost."""
        for candidate in candidates:
            spec = candidate.plan.spec()
            if spec in self.seen:
                continue
            self.seen.add(spec)
            try:
                yield (candidate, self.meter.exact(candidate.plan)), candidate.plan
            except TokenrtError as error:
                self.left_out[candidate.origin] = str(error).splitlines()[0]


def _mean(judged: Judged) -> float:
    return judged.mean
