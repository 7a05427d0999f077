"""A classifier trained on handwritten digits: at equal work the tuned plan names as many that it has not seen as any rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx

from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.bench.journal import Journal
from tokenrt.perf.bench.quality import digits
from tokenrt.perf.bench.tuned.comparison import Comparison, Part, Row, compared
from tokenrt.perf.demo.subject import Array
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.workbench import answers
from tokenrt.perf.tune.meters import Counted

SHARES = (0.5, 0.35)
SEEN = 256
"""Digits of the training set that the search sees."""

BATCH = 50


def run(threads: int | None = None) -> Iterator[Comparison]:
    """At half and at a third of the work."""
    pictures, _, tested, labels = digits.data()
    (given,) = onnx.load(digits.model(), load_external_data=False).graph.input
    every = np.concatenate([pictures[:SEEN], tested])
    with Judge.of(
        digits.model(),
        {given.name: every},
        journal=Journal.of("tuned").path,
        samples=len(every),
        batch=BATCH,
        threads=threads,
    ) as judge:
        seen, held = Part.within(judge, slice(SEEN)), Part.within(judge, slice(SEEN, None))
        for share in SHARES:
            found = compared(f"Digits at {share:.0%} of the work", seen, held, Counted(), share)
            yield replace(
                found,
                tuned=_named(judge, found.tuned, labels),
                others=[_named(judge, row, labels) for row in found.others],
            )


def _named(judge: Judge, row: Row, labels: Array) -> Row:
    return row.having(accuracy=_accuracy(judge, row.plan, labels))


def _accuracy(judge: Judge, plan: Plan, labels: Array) -> float:
    """Of the digits held out."""
    session = judge.bench.session(judge.bench.reducer.reduce(plan).model)
    (name,) = (value.name for value in session.get_outputs())
    found = np.concatenate([answer[name] for answer in answers(session, judge.data)])
    return float((found[SEEN:].argmax(1) == labels).mean())
