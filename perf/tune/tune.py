"""`tokenrt tune`: from a model, data and a wish to a recommended plan, the plans around it, and the reasons."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenrt import files
from tokenrt.errors import MethodError
from tokenrt.passes.analysis import protected
from tokenrt.passes.analysis.prepare import Protect, ShapeOption
from tokenrt.passes.methods import for_graph
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.planning.request import Request
from tokenrt.passes.reduce import reduce
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.latency.sweep import sweep
from tokenrt.perf.planner.latency.table import Table
from tokenrt.perf.profile.machine import about
from tokenrt.perf.tune.judged import Judged, cheapest, front, least_harm
from tokenrt.perf.tune.meters import PLAIN, Counted, Meter, Modelled, Swept
from tokenrt.perf.tune.outcome import MODEL, Outcome, State, check_same
from tokenrt.perf.tune.progress import Progress
from tokenrt.perf.tune.refusals import refused
from tokenrt.perf.tune.search import Search
from tokenrt.perf.tune.wish import Wish
from tokenrt.targets import load
from tokenrt.targets.profiles.profile import Target

METHODS = ("tome", "pitome", "topk", "evit", "atc", "dpcknn")
"""Training-free methods that compete unless others are named."""

JOURNAL, SWEEP = "journal.jsonl", "sweep.json"
HERE = "ort-cpu"
"""The target that is this machine."""


def tune(
    model: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    flops: float | None = None,
    speedup: float | None = None,
    latency: float | None = None,
    max_drop: float | None = None,
    methods: Sequence[str] = METHODS,
    target: Target | str | None = None,
    batch: int = 1,
    samples: int = 32,
    seed: int = 0,
    site: str | None = None,
    grid: Sequence[int] | None = None,
    protect: Protect = None,
    span: str | None = None,
    shape: ShapeOption = None,
    threads: int | None = None,
    workers: int | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Search the static plan that harms least within a wish, and write what was found into the folder `output`.

    One of flops (a share of the multiply-accumulates), speedup (times as fast), latency (milliseconds) and max_drop (the largest
    mean harm; the cheapest plan within it). data: a folder of pictures or arrays, an .npz, or a .txt with a text in each line, of
    which `samples` go through every plan. methods: those that compete. target: whose time a speed-up or latency is of, this
    machine's when left out, for `batch` images at a time. site, grid, protect, span, shape: as for `plan`. A folder of an earlier
    run of the same is gone on with: what was judged is read from its journal. threads: that run plans, and of a model that is
    timed. workers: so many processes run plans, or those of the Dask scheduler at this address do, which need tokenrt and nothing
    of this machine's disk; threads of this process when left out. The same seed gives the same plans, whoever runs them.

    Returns: an Outcome, whose `ok` says whether the wish is met; only then a model is written.
    Raises: TokenrtError.
    """
    wish = Wish.of(flops=flops, speedup=speedup, latency=latency, max_drop=max_drop)
    asked = Request(site=site, grid=grid, protect=protect, span=span, shape=shape)
    tell, names = progress or (lambda stage: None), [*dict.fromkeys(methods)]
    for name in names:
        for_graph(name, {})
    if not names:
        raise MethodError("tune needs a method: name one with --methods")
    if isinstance(target, str):
        target = load(target)
    folder = files.folder(output)
    tell("answering the data with the unreduced model")
    with Judge.of(
        Path(model),
        Path(data),
        journal=folder / JOURNAL,
        samples=samples,
        seed=seed,
        shape=asked.shape,
        protect=asked.kept,
        threads=threads,
        workers=workers,
    ) as judge:
        away = refused(judge.bench.reducer, names, asked)
        able = [name for name in names if name not in away]
        meter = _meter(judge, wish, target, batch, asked, able, folder, tell)
        search = Search(judge, meter, able, asked, Progress(tell, judge.pace), seed, left_out=away)
        told = {
            "key": judge.key,
            "model": str(model),
            "wish": {"kind": wish.kind, "value": wish.value, "words": str(wish)},
            "data": judge.told,
            "samples": sum(len(next(iter(run.values()))) for run in judge.data),
            "methods": [*names],
            "cost": meter.told,
            "target": None if target is None else target.name,
            "batch": batch,
            "seed": seed,
            "unreduced_ms": meter.milliseconds,
            **about(),
            "asked": {
                "folder": os.getcwd(),
                "data": str(data),
                "samples": samples,
                **_options(asked, threads),
            },
        }
        check_same(folder, told)
        most = wish.most(meter.milliseconds)
        if most is None:
            search.down_to(wish.value)
        elif most < 1:
            search.at(most)
        found = _outcome(search, wish, most, told, folder)
    if found.recommended is not None:
        tell("writing the reduced model")
        reduce(model, plan=found.recommended.plan, shape=shape, output=folder / MODEL)
    return found.write()


def _options(asked: Request, threads: int | None) -> dict[str, Any]:
    """The options that all plans share as the command line takes them, those left out left out."""
    shape = asked.shape.items() if isinstance(asked.shape, Mapping) else ()
    given = {
        "site": asked.site,
        "grid": "x".join(map(str, asked.grid or ())),
        "protect": protected.text(asked.protect),
        "span": asked.span,
        "shape": [f"{name}={'x'.join(map(str, axes))}" for name, axes in shape] or [*(asked.shape or ())],
        "threads": threads,
    }
    return {name: value for name, value in given.items() if value}


def _meter(
    judge: Judge,
    wish: Wish,
    target: Target | None,
    batch: int,
    asked: Request,
    names: Sequence[str],
    folder: Path,
    tell: Callable[[str], None],
) -> Meter:
    """What costs are counted in. Raises: TokenrtError where time is wished for and none can be told."""
    if wish.kind == "flops" or (wish.kind == "max-drop" and target is None):
        return Counted()
    if target is None or target.name == HERE:
        path = folder / SWEEP
        if (
            path.exists()
            and (table := Table.load(path)).model == judge.key
            and {*names} <= {*table.reductions}
        ):
            return Swept(table)
        table = sweep(
            judge.bench,
            names,
            model=judge.key,
            batch=batch,
            progress=lambda what, number, of: tell(f"timing {number + 1} of {of}: {what}"),
        )
        table.save(path)
        return Swept(table)
    found = Modelled(judge.bench.reducer, target, batch)
    middle = len(judge.bench.reducer.prepared.structure.blocks) // 2
    found.ratio(judge.bench.reducer.plan(PLAIN, Budget.keep(0.5, [middle]), asked))
    return found


def _outcome(search: Search, wish: Wish, most: float | None, told: dict[str, Any], folder: Path) -> Outcome:
    plans = search.judged
    paying = [each for each in plans if each.ratio < 1]
    best = cheapest(paying, wish.value) if most is None else least_harm(search.within(min(most, 1.0)))
    shown = front(paying)
    state: State
    if best is not None and best.ratio < 1:
        state, verdict, nearest = "met", _recommendation(best, wish, search.meter), None
    elif most is not None and most >= 1:
        state, best, nearest = "nothing helps", None, None
        verdict = f"Change nothing: the model as it is takes {search.meter.milliseconds:.3g} ms, which is within the wish."
    elif not paying:
        state, best = "nothing helps", None
        nearest = min(plans, key=lambda each: each.ratio, default=None)
        verdict = (
            f"Change nothing: no plan that was tried costs less than the model as it is ({search.meter.told})"
        )
        verdict += "." if nearest is None else f"; the nearest is {_near(nearest, search.meter)}."
    else:
        state, best = "not met", None
        nearest = min(paying, key=(lambda each: each.ratio) if most is not None else lambda each: each.mean)
        verdict = f"{str(wish).capitalize()} cannot be had; the nearest is {_near(nearest, search.meter)}."
    return Outcome(state, verdict, told, plans, shown, best, nearest, search.left_out, folder)


def _near(judged: Judged, meter: Meter) -> str:
    return f"{judged.candidate.origin}: {_told(judged)} ({meter.why(judged.plan)})"


def _recommendation(best: Judged, wish: Wish, meter: Meter) -> str:
    doubt = " One image says little of others." if len(best.harm.images) == 1 else ""
    return f"Take {best.candidate.origin}: {_told(best)}. Wished was {wish}; cost is {meter.told}.{doubt}"


def _told(judged: Judged) -> str:
    low, high = judged.interval()
    sites = len(judged.plan.sites)
    return (
        f"{judged.ratio:.1%} of the unreduced cost, mean harm {judged.mean:.4g} (95 % between {low:.3g} and {high:.3g}), "
        f"{sites} site{'s' * (sites != 1)}"
    )
