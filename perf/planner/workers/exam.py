"""A model, data and the model's own answers to it: all that is needed to tell how much any plan harms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.graph.model import skeleton
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm, check_finite, harm
from tokenrt.perf.planner.journal import digest
from tokenrt.perf.planner.workbench import Answer, Workbench, answer
from tokenrt.version import __version__

THREADS = 1
"""Of every session that is judged: sums are split among threads, and their last digits depend on how."""

Open = Callable[[], Any]
"""Opens a session of ONNX Runtime."""

Map = Callable[[Callable[[Feed], Answer], Sequence[Feed]], Any]
"""Answers each of many runs, perhaps several at a time."""


@dataclass(frozen=True)
class Exam:
    """The runs that a plan is judged by, and what the unreduced model gives for them."""

    bench: Workbench
    data: Sequence[Feed]
    original: Sequence[Answer]

    @classmethod
    def of(cls, bench: Workbench, data: Sequence[Feed]) -> Exam:
        """Answer the data with the unreduced model, several runs at a time. Raises: TokenrtError where answers are not finite."""
        session = bench.opener(bench.reducer.prepared.model, THREADS, reuse=False)()
        with ThreadPoolExecutor(bench.threads) as running:
            found = [*running.map(partial(answer, session), data)]
        check_finite(found)
        return cls(bench, data, found)

    @cached_property
    def key(self) -> str:
        """Of the prepared model, the data and the software that runs it, by their content."""
        import onnxruntime

        proto, weights = skeleton(self.bench.reducer.prepared.model)
        given = [part for run in self.data for name, array in run.items() for part in (name, array.tobytes())]
        return digest(
            json.dumps([__version__, onnxruntime.__version__]),
            proto.SerializeToString(deterministic=True),
            *(tensor.tobytes() for tensor in weights.values()),
            *given,
        )

    def made(self, plan: Plan) -> Open:
        """The plan as a proven model, to be opened in any thread; for one thread at a time. Raises: TokenrtError."""
        return self.bench.opener(self.bench.reducer.reduce(plan).model, THREADS, reuse=False)

    def harm(self, made: Open, run: Map = map) -> Harm:
        """Open what was made, run it on the data, and compare. Raises: TokenrtError where nothing can be compared."""
        return harm(self.original, [*run(partial(answer, made()), self.data)])
