"""Plans judged on data: each run on the real model, compared with the original, and written down once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.passes.checking.check_data import Feed, feeds, first, inputs_of
from tokenrt.passes.graph.model import ModelLike, skeleton
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm, check_finite, harm
from tokenrt.perf.planner.journal import Journal, digest
from tokenrt.perf.planner.workbench import Answer, Workbench, answers
from tokenrt.version import __version__


@dataclass(frozen=True)
class Judge:
    """A workbench with data, the original's answers to it, and a journal of what was judged before.

    told: where the data is from. key: of the model, the data and the runtime, by their content, so that a journal serves
    whatever it is given again.
    """

    bench: Workbench
    data: Sequence[Feed]
    told: str
    original: Sequence[Answer]
    journal: Journal | None
    key: str

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
        **options: Any,
    ) -> Iterator[Judge]:
        """Prepare a model and answer all data once.

        data: a folder of pictures or arrays, an .npz, a .txt with a text in each line, arrays, or nothing for seeded noise,
        of which the first `samples` runs' worth is taken. journal: a file that is added to. options: those of `Workbench.of`.

        Raises: TokenrtError for data that does not fit, and for a model that gives what is not finite.
        """
        with Workbench.of(model, **options) as bench:
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
            found = answers(bench.original(), taken)
            check_finite(found)
            kept = None if journal is None else Journal(Path(journal))
            yield cls(bench, taken, told, found, kept, _key(prepared, taken))

    def __call__(self, plan: Plan) -> Harm:
        """The harm of a plan, from the journal where it is there. Raises: TokenrtError, as `tokenrt.reduce` does."""
        key = digest(self.key, plan.to_toml())
        known = None if self.journal is None else self.journal.get(key)
        if known is not None:
            return Harm({name: tuple(map(float, values)) for name, values in known["harm"].items()})
        found = harm(self.original, self.bench.trial(plan).answers(self.data))
        if self.journal is not None:
            told = {name: [_shown(value) for value in values] for name, values in found.outputs.items()}
            self.journal.put(key, {"plan": plan.spec(), "harm": told})
        return found


def _shown(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if value != float("inf") else "inf"


def _key(model: ir.Model, data: Sequence[Feed]) -> str:
    import onnxruntime

    proto, weights = skeleton(model)
    given = [part for run in data for name, array in run.items() for part in (name, array.tobytes())]
    told = json.dumps([__version__, onnxruntime.__version__])
    return digest(
        told,
        proto.SerializeToString(deterministic=True),
        *(tensor.tobytes() for tensor in weights.values()),
        *given,
    )
