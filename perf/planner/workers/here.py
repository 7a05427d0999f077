"""Plans run by threads of this process: the next is made while the last ones run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.workers.exam import Exam

OPEN = 2
"""Plans with a session at a time: the runs of one fill what opening the other leaves idle."""


@dataclass(frozen=True)
class Here:
    """The threads of this process. Models are made in the one that asks; ONNX Runtime opens and runs them in others.

    The runs of a plan are divided among `threads`, so that there are two copies of a model's weights in memory, however many
    threads there are.
    """

    exam: Exam
    threads: int

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[int, Harm | TokenrtError]]:
        """As `Workers.run` says."""
        open_at_once = min(OPEN, self.threads)
        with ThreadPoolExecutor(open_at_once) as judging, ThreadPoolExecutor(self.threads) as running:
            waiting: dict[Future[Harm], int] = {}
            try:
                for place, plan in enumerate(plans):
                    try:
                        made = self.exam.made(plan)
                    except TokenrtError as error:
                        yield place, error
                        continue
                    while len(waiting) >= open_at_once:
                        yield from _done(waiting)
                    waiting[judging.submit(self.exam.harm, made, running.map)] = place
                while waiting:
                    yield from _done(waiting)
            finally:
                judging.shutdown(wait=False, cancel_futures=True)
                running.shutdown(wait=False, cancel_futures=True)


def _done(waiting: dict[Future[Harm], int]) -> Iterator[tuple[int, Harm | TokenrtError]]:
    """Those that are done by now, one at the least."""
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        place = waiting.pop(future)
        try:
            yield place, future.result()
        except TokenrtError as error:
            yield place, error
