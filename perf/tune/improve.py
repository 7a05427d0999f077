"""Plans changed a little and run again: what the sum over single places has missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenrt.errors import NothingToDoError, TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Plan, PlannedSite
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.tune.families import Candidate, Freedom
from tokenrt.perf.tune.judged import Judged
from tokenrt.perf.tune.meters import Meter

HALVINGS = 9


@dataclass(frozen=True)
class Leaving:
    """How many tokens leave at a block, against the other blocks, and by which method."""

    block: int
    tokens: float
    method: str


@dataclass(frozen=True)
class Mixture:
    """What leaves at the blocks of a transformer, and whether attention counts sizes."""

    steps: tuple[Leaving, ...]
    proportional: bool

    @classmethod
    def of(cls, plan: Plan) -> Mixture:
        """That of the sites of the first transformer."""
        pairs = zip(plan.sites, plan.arriving(), strict=True)
        steps = (
            Leaving(site.block, before - site.tokens, site.method or plan.method) for site, before in pairs
        )
        return cls(tuple(steps), plan.proportional_attention)


@dataclass(frozen=True)
class Improver:
    """Draws neighbours of plans that are as cheap as `most` allows. names: methods that sites may have."""

    bench: Workbench
    meter: Meter
    names: Sequence[str]
    most: float
    seed: int

    def neighbours(self, best: Judged, tries: int, number: int) -> Iterator[Candidate]:
        """Changes of a plan; those that cannot be made are left out. number: of the round, each of which draws others."""
        random, parent = np.random.default_rng([self.seed, number]), best.plan
        for _ in range(tries):
            change = CHANGES[int(random.integers(len(CHANGES)))]
            changed = change(random, Mixture.of(parent), parent.blocks, self.names)
            found = None if changed is None else self.fitted(parent, changed)
            if found is not None:
                yield Candidate("changed and run", *found, Freedom.SITES)

    def fitted(self, like: Plan, mixture: Mixture) -> tuple[Plan, float] | None:
        """As much of these removals as the cost asks for, all in the same proportion; None where it cannot be reached."""
        low, high, found = 0.0, 2.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            try:
                plan = planned(self.bench, like, mixture, middle)
                ratio = self.meter.ratio(plan)
            except NothingToDoError:
                low = middle
                continue
            except TokenrtError:
                high = middle
                continue
            if ratio <= self.most:
                high, found = middle, (plan, ratio)
            else:
                low = middle
        return found


def planned(bench: Workbench, like: Plan, mixture: Mixture, scale: float = 1.0) -> Plan:
    """A plan with these removals times `scale`, checked, its work counted. Raises: TokenrtError.

    What is cut off to whole tokens at one site leaves at the next ones, so that any number can leave in all.
    """
    here, wanted, sites = like.tokens, float(like.tokens), list[PlannedSite]()
    where = like.sites[0].where if like.sites else "after-attention"
    main = Counter(step.method for step in mixture.steps).most_common(1)[0][0]
    like = like if main == like.method else replace(like, method=main, options={})
    for step in sorted(mixture.steps, key=lambda step: step.block):
        unit = methods.get(step.method)().unit
        wanted -= step.tokens * scale
        leave = int((here - wanted) / unit + 1e-9) * unit
        if leave > 0:
            here -= leave
            method = "" if step.method == like.method else step.method
            sites.append(PlannedSite(step.block, where, here, method=method))
    proportional = mixture.proportional
    return bench.reducer.counted(
        replace(like, sites=tuple(sites), proportional_attention=proportional, notes=())
    )


Change = Callable[[np.random.Generator, Mixture, int, Sequence[str]], Mixture | None]
"""A mixture for a model of so many blocks, changed; None where this change changes nothing."""


def _moved(
    random: np.random.Generator, mixture: Mixture, blocks: int, names: Sequence[str]
) -> Mixture | None:
    """Some of what leaves at one block leaves at another."""
    source = mixture.steps[random.integers(len(mixture.steps))]
    part = max(round(source.tokens * random.choice([0.25, 0.5, 1.0])), 1)
    other = int(random.integers(blocks))
    if other == source.block:
        return None
    leave = {step.block: step for step in mixture.steps}
    leave[source.block] = replace(source, tokens=source.tokens - part)
    there = leave.get(other, Leaving(other, 0, source.method))
    leave[other] = replace(there, tokens=there.tokens + part)
    return replace(mixture, steps=tuple(step for step in leave.values() if step.tokens > 0))


def _dropped(
    random: np.random.Generator, mixture: Mixture, blocks: int, names: Sequence[str]
) -> Mixture | None:
    """One site goes, the others take over."""
    if len(mixture.steps) < 2:
        return None
    gone = mixture.steps[random.integers(len(mixture.steps))]
    return replace(mixture, steps=tuple(step for step in mixture.steps if step is not gone))


def _other_method(
    random: np.random.Generator, mixture: Mixture, blocks: int, names: Sequence[str]
) -> Mixture | None:
    """One site, or all of them, by another method."""
    name, one = names[int(random.integers(len(names)))], int(random.integers(len(mixture.steps) + 1))
    every = one == len(mixture.steps)
    steps = tuple(
        replace(step, method=name) if every or place == one else step
        for place, step in enumerate(mixture.steps)
    )
    return None if steps == mixture.steps else replace(mixture, steps=steps)


def _other_attention(
    random: np.random.Generator, mixture: Mixture, blocks: int, names: Sequence[str]
) -> Mixture | None:
    """Attention that counts sizes, or does not."""
    return replace(mixture, proportional=not mixture.proportional)


CHANGES: Sequence[Change] = (_moved, _moved, _moved, _dropped, _other_method, _other_attention)
