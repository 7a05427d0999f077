"""Whether a sweep predicts plans that it has not timed: predicted against measured, on ONNX Runtime here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.models import DEIT_TI, exported
from tokenrt.perf.demo.subject import model_file
from tokenrt.perf.planner.latency.sweep import sweep
from tokenrt.perf.planner.latency.table import Table
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing

MODELS: Mapping[str, Callable[[], Path]] = {
    "DeiT-Ti/16": lambda: exported(DEIT_TI),
    "DINOv2 ViT-S/14, saliency": model_file,
}
METHODS = ("tome", "topk")
NEAR = 0.08
"""What a predicted ratio may be off."""

SWEPT, REPEATS, ROUNDS = 12, 4, 12
UNSEEN: Mapping[str, tuple[str, Budget]] = {
    "`tome --remove 5`": ("tome", Budget.remove(5)),
    "`tome --remove 10`": ("tome", Budget.remove(10)),
    "`tome --keep 0.8 --layers 2,5,8`": ("tome", Budget.keep(0.8, [2, 5, 8])),
    "`tome --keep 0.6 --layers 1,7`": ("tome", Budget.keep(0.6, [1, 7])),
    "`tome --keep 0.65 --layers 4`": ("tome", Budget.keep(0.65, [4])),
    "`topk --remove 9`": ("topk", Budget.remove(9)),
    "`topk --keep 0.75 --layers 1,4,7,10`": ("topk", Budget.keep(0.75, [1, 4, 7, 10])),
    "`topk --keep 0.5 --layers 4`": ("topk", Budget.keep(0.5, [4])),
    "`topk --keep 0.4 --layers 2`": ("topk", Budget.keep(0.4, [2])),
    "`topk --keep 0.9 --layers 0,1,2,3,4,5`": ("topk", Budget.keep(0.9, range(6))),
}
HEAD = ("model", "plan", "tokens left:", "predicted:", "measured:", "95 % interval", "off:")


@dataclass(frozen=True)
class Row:
    """A plan that the sweep has not timed. predicted, measured: time as a share of the unreduced model's."""

    model: str
    plan: str
    tokens: int
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1

    def cells(self) -> list[str]:
        interval = f"{self.low:.3f} to {self.high:.3f}"
        ratios = f"{self.predicted:.3f}", f"{self.measured:.3f}"
        return [self.model, self.plan, str(self.tokens), *ratios, interval, f"{self.off:+.1%}"]


@dataclass(frozen=True)
class LatencyReport:
    """All rows, and by model the milliseconds of an unreduced run and the error that the sweep states."""

    rows: Sequence[Row]
    models: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        return {"models": self.models, "rows": [asdict(row) | {"off": row.off} for row in self.rows]}

    def __rich__(self) -> Any:
        rows = ([cell.strip("`") for cell in row.cells()] for row in self.rows)
        return results.shown(
            HEAD, rows, "time of plans that were not timed, as a share of the unreduced model's"
        )

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        worst = max((abs(row.off) for row in self.rows), default=0.0)
        beyond = sum(abs(row.off) > NEAR for row in self.rows)
        told = (
            "Time of one image in ONNX Runtime on this CPU as a share of the unreduced model's: predicted by the table of "
            f"`tokenrt profile --sweep --methods {','.join(METHODS)}`, and measured in pairs, {REPEATS} times with sessions made "
            f"anew and {ROUNDS} rounds with each. None of these plans was timed in the sweep. "
            f"Farthest off: {worst:.1%}; {beyond} of {len(self.rows)} by more than {NEAR:.0%}. "
            "Made by `python -m tokenrt.perf.bench latency`."
        )
        table = results.table(HEAD, [row.cells() for row in self.rows])
        stated = ". ".join(
            f"{name}: {each['milliseconds']:.0f} ms, the sweep states an error of {each['error']:.1%}, and a plan becomes a "
            f"proven model and a session in {each['trial_seconds']:.2f} s of the processor, where `reduce` and a session take "
            f"{each['reduce_seconds']:.2f} s"
            for name, each in self.models.items()
        )
        return "\n\n".join(["# Predicted latency", told, table, f"{stated}.", results.told(where)])


def run(models: Mapping[str, Callable[[], Path]] = MODELS) -> LatencyReport:
    """Sweep each model, then predict and measure the plans that were left out of it."""
    rows, stated, journal = list[Row](), dict[str, dict[str, float]](), Journal.of("plan_latency")
    for name, find in models.items():
        path = find()
        key = digest(path, repr((METHODS, UNSEEN, SWEPT, REPEATS, ROUNDS)), repr(results.circumstances()))
        found = journal.get(key) or journal.put(key, _measured(name, path))
        stated[name] = found["stated"]
        rows += [Row(**row) for row in found["rows"]]
    return LatencyReport(rows, stated)


def _measured(name: str, path: Path) -> dict[str, Any]:
    with Workbench.of(path) as bench:
        table = sweep(bench, METHODS, rounds=SWEPT)
        rows = [asdict(_row(bench, table, name, told)) for told in UNSEEN]
        pairs = [
            (_spent(partial(bench.trial, plan)), _spent(partial(_reduced, path, plan)))
            for plan in _some(bench)
        ]
    tried, plain = np.median(np.array(pairs), axis=0).tolist()
    stated = {
        "milliseconds": table.milliseconds,
        "error": table.error,
        "trial_seconds": tried,
        "reduce_seconds": plain,
    }
    return {"stated": stated, "rows": rows}


def _some(bench: Workbench) -> Iterator[Plan]:
    """A few of the plans, to see what one costs to try."""
    return (bench.reducer.plan(*asked) for asked in [*UNSEEN.values()][::3])


def _reduced(path: Path, plan: Plan) -> Any:
    return timing.session(reduce(path, plan=plan).model)


def _spent(run: Callable[[], object]) -> float:
    """Seconds of the processor: what else the machine does is not in them."""
    start = time.process_time()
    run()
    return time.process_time() - start


def _row(bench: Workbench, table: Table, model: str, told: str) -> Row:
    plan = bench.reducer.plan(*UNSEEN[told])
    reduced = bench.reducer.reduce(plan).model
    feed = timing.feeds(bench.original(), table.batch)
    ratio = timing.compare_afresh(
        lambda: {
            "original": timing.runner(bench.original(), feed),
            "reduced": timing.runner(bench.session(reduced), feed),
        },
        base="original",
        rounds=ROUNDS,
        repeats=REPEATS,
    )["reduced"]
    predicted = table.predict(plan).ratio
    return Row(model, told, plan.counts()[-1], predicted, ratio.median, ratio.low, ratio.high)
