"""Plans judged on data: each run on the real model, compared with the original, and written down once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Feed, feeds, first, inputs_of
from tokenrt.passes.graph.model import ModelLike
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.journal import Journal, digest
from tokenrt.perf.planner.pace import Pace
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.planner.workers.choose import chosen, parse
from tokenrt.perf.planner.workers.contract import Workers
from tokenrt.perf.planner.workers.exam import Exam
from tokenrt.perf.planner.workers.parcel import Parcel

Label = TypeVar("Label")


@dataclass(frozen=True)
class Judge:
    """A workbench with data, workers that run plans on it, and a journal of what was judged before.

    told: where the data is from. key: of the model, the data and the runtime, by their content, so that a journal serves
    whatever it is given again. known: what the journal holds. pace: of the plans that were run.
    """

    bench: Workbench
    data: Sequence[Feed]
    told: str
    key: str
    workers: Workers
    journal: Journal | None
    known: dict[str, Any]
    pace: Pace = field(default_factory=Pace)

    @classmethod
    @contextmanager
    def of(
        cls,
        model: ModelLike,
        data: str | Path | Mapping[str, Any] | None,
        *,
        journal: str | os.PathLike[str] | None = None,
        samples: int = 32,
        batch: int = 4,
        seed: int = 0,
        threads: int | None = None,
        workers: int | str | None = None,
        **preparing: Any,
    ) -> Iterator[Judge]:
        """Prepare a model and answer all data once.

        data: a folder of pictures or arrays, an .npz, a .txt with a text in each line, arrays, or nothing for seeded noise,
        of which the first `samples` runs' worth is taken. journal: a file that is added to. threads: that run plans, and the
        original. workers: so many processes that run plans, or the address of a Dask scheduler whose workers do; this process
        when left out. preparing: `shape` and `protect`, as of `Workbench.of`.

        Raises: TokenrtError for data that does not fit, for a model that gives what is not finite, and for no workers.
        """
        asked = parse(workers)
        with Workbench.of(model, threads=threads, **preparing) as bench:
            prepared = bench.reducer.prepared.model
            runs, told = feeds(
                inputs_of(prepared, prepared),
                prepared,
                data=data,
                batch=batch,
                seed=seed,
                samples=-(-samples // batch),
                most=samples,
            )
            taken = [*first(runs, samples)]
            exam = Exam.of(bench, taken)
            kept = None if journal is None else Journal(Path(journal))
            known = {} if kept is None else kept.answers()
            with chosen(asked, exam, partial(Parcel.of, model, exam, preparing), bench.threads) as found:
                yield cls(bench, taken, told, exam.key, found, kept, known)

    def __call__(self, plan: Plan) -> Harm:
        """The harm of a plan, from the journal where it is there. Raises: TokenrtError, as `tokenrt.reduce` does."""
        ((_, found),) = self.map([(plan, plan)])
        if isinstance(found, TokenrtError):
            raise found
        return found

    def map(self, asked: Iterable[tuple[Label, Plan]]) -> Iterator[tuple[Label, Harm | TokenrtError]]:
        """For each plan its label with its harm, or with why it has none, in the order asked.

        What the journal knows is not run again. The rest runs several at a time, and each answer is written down as it comes.
        `asked` is read ahead of the answers, so it must not depend on them: what depends on them is another call. Then the
        answers, and what a search makes of them, are the same however many workers there are.
        """
        labels, fresh = list[Label](), list[tuple[int, Plan]]()
        found = dict[int, Harm | TokenrtError]()

        def unknown() -> Iterator[Plan]:
            for place, (label, plan) in enumerate(asked):
                labels.append(label)
                known = self.known.get(self._key_of(plan))
                if known is None:
                    fresh.append((place, plan))
                    yield plan
                else:
                    found[place] = Harm(
                        {name: tuple(map(float, each)) for name, each in known["harm"].items()}
                    )

        shown = 0
        self.pace.start()
        for number, answer in self.workers.run(unknown()):
            place, plan = fresh[number]
            found[place] = answer
            self._keep(plan, answer)
            while shown in found:
                yield labels[shown], found.pop(shown)
                shown += 1
        yield from ((labels[place], found[place]) for place in range(shown, len(labels)))

    def _keep(self, plan: Plan, answer: Harm | TokenrtError) -> None:
        if isinstance(answer, TokenrtError):
            return
        self.pace.one()
        if self.journal is not None:
            told = {name: [_shown(value) for value in values] for name, values in answer.outputs.items()}
            key = self._key_of(plan)
            self.known[key] = self.journal.put(key, {"plan": plan.spec(), "harm": told})

    def _key_of(self, plan: Plan) -> str:
        return digest(self.key, plan.to_toml())


def _shown(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if value != float("inf") else "inf"
