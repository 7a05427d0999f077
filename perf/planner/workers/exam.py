"""A model, data and the model's own answers to it: all that is needed to tell how much any plan harms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm, check_finite, harm
from tokenrt.perf.planner.workbench import Answer, Workbench, answer

THREADS = 1
"""Of every session that is judged: sums are split among threads, and their last digits depend on how."""


@dataclass(frozen=True)
class Exam:
    """The runs that a plan is judged by, as [samples of a run, ...], and what the unreduced model gives for them."""

    bench: Workbench
    data: Sequence[Feed]
    original: Sequence[Answer]

    @classmethod
    def of(cls, bench: Workbench, data: Sequence[Feed]) -> Exam:
        """Answer the data with the unreduced model, several runs at a time. Raises: TokenrtError where answers are not finite."""
        session = bench.opener(bench.reducer.prepared.model, THREADS)()
        with ThreadPoolExecutor(bench.threads) as running:
            found = [*running.map(partial(answer, session), data)]
        check_finite(found)
        return cls(bench, data, found)

    def made(self, plan: Plan) -> Callable[[], Any]:
        """The plan as a proven model, and what opens a session of it, in any thread. Raises: TokenrtError."""
        return self.bench.opener(self.bench.reducer.reduce(plan).model, THREADS)

    def harm(self, answers: Iterable[Answer]) -> Harm:
        """How far answers to the data lie from the original's. Raises: TokenrtError where nothing can be compared."""
        return harm(self.original, [*answers])

    def __call__(self, plan: Plan) -> Harm:
        """The harm of a plan, run by this thread alone. Raises: TokenrtError, as `tokenrt.reduce` does."""
        session = self.made(plan)()
        return self.harm(answer(session, feed) for feed in self.data)
