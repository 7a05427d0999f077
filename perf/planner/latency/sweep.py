"""Measure a model's latency against token counts: few plans, timed in rounds with the unreduced model, part by part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.planner.journal import digest
from tokenrt.perf.planner.latency.parts import (
    Times,
    attention,
    feedforward,
    measure,
    parts_of,
    reduction,
    total,
)
from tokenrt.perf.planner.latency.table import Table, at, monotone
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.machine import processor

SLICE = "slice"
"""The method that leaves tokens away and computes nothing for it."""

ROUNDS = 12
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Swept:
    """A table and the file it was written to."""

    table: Table
    path: Path

    def as_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), **asdict(self.table)}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table as Shown
        from rich.text import Text

        found = self.table
        shown = Shown("tokens", box=None, pad_edge=False)
        for name in ("attention, ms", "the rest, ms"):
            shown.add_column(name, justify="right")
        most = found.tokens
        for count in dict.fromkeys(round(share * most) for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)):
            shares = at(found.attention, count), at(found.feedforward, count)
            shown.add_row(str(count), *(f"{share * found.milliseconds:.3f}" for share in shares))
        told = (
            f"a block of {found.blocks}, batch {found.batch}, {found.threads} threads, {found.machine}; unreduced "
            f"{found.milliseconds:.2f} ms"
        )
        timed = ", ".join(f"{name} ({len(rows)} sites)" for name, rows in found.reductions.items())
        error = f"plans left out of it were predicted within {found.error:.1%}, nine in ten"
        return Group(Text(told), shown, Text(f"timed: {timed}; {error}"), Text(f"written: {self.path}"))


def run(
    model: str | os.PathLike[str],
    methods: Sequence[str],
    *,
    output: str | os.PathLike[str] | None = None,
    batch: int = 1,
    rounds: int = ROUNDS,
    threads: int | None = None,
    progress: Told | None = None,
) -> Swept:
    """Sweep a model file and write the table: where it is told, or under a name made of the model's digest and the circumstances.

    Raises: TokenrtError.
    """
    key = digest(Path(model))
    with Workbench.of(model, threads=threads) as bench:
        found = sweep(bench, methods, model=key, batch=batch, rounds=rounds, progress=progress)
    name = digest(key, found.target, str(batch), str(found.threads), found.machine)[:12]
    path = Path("out/profile") / f"sweep-{name}.json" if output is None else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return Swept(found, path)


@dataclass(frozen=True)
class Timed:
    """A plan of the sweep, None for the unreduced model, and its times."""

    plan: Plan | None
    times: Times


def sweep(
    bench: Workbench,
    methods: Sequence[str],
    *,
    model: str = "",
    batch: int = 1,
    rounds: int = ROUNDS,
    progress: Told | None = None,
) -> Table:
    """Time plans of these methods, and of plain removal, on ONNX Runtime here.

    model: what the table says it is of. Raises: TokenrtError where a method can be timed at no place.
    """
    prepared = bench.reducer.prepared
    known, feed = parts_of(prepared), timing.feeds(bench.original(), batch)
    plans: list[Plan | None] = [None]
    for method in dict.fromkeys((SLICE, *methods)):
        made = [*_plans(bench, method)]
        if not made:
            raise TokenrtError(
                f"{method} takes no place in the blocks of this model at which it could be timed"
            )
        plans += made
    timed = []
    for number, plan in enumerate(plans):
        if progress is not None:
            progress("the unreduced model" if plan is None else plan.spec(), number, len(plans))
        made_of = prepared.model if plan is None else bench.reducer.reduce(plan).model
        timed.append(Timed(plan, measure(bench, made_of, known, feed, rounds)))
    # One plan's is noise; what the profiler does to a kernel is the same in all of them.
    noted = max(float(np.median([each.times.noted for each in timed])), 0.0)
    timed = [replace(each, times=each.times.without(noted)) for each in timed]
    whole = table(timed, empty(bench, model, batch))
    return replace(whole, error=_error(timed, whole))


def empty(bench: Workbench, model: str, batch: int) -> Table:
    """A table of nothing yet, for this model on this machine."""
    structure = bench.reducer.prepared.structure
    return Table(
        model=model, target="ort-cpu", batch=batch, threads=bench.threads, machine=processor(), milliseconds=0.0,
        tokens=structure.tokens, blocks=len(structure.blocks), attention=(), weighted=(), feedforward=(), around={},
        reductions={},
    )  # fmt: skip


def _plans(bench: Workbench, method: str) -> Iterator[Plan]:
    """Constant removal from little to much, a few large steps, and one."""
    structure = bench.reducer.prepared.structure
    tokens, blocks = structure.tokens, len(structure.blocks)
    budgets = [Budget.remove(max(round(share * tokens / blocks), 1)) for share in (0.25, 0.5, 0.8)]
    budgets += [
        Budget.keep(0.7, sorted({blocks // 4, blocks // 2, 3 * blocks // 4})),
        Budget.keep(0.55, sorted({blocks // 6, blocks // 2})),
        Budget.keep(0.5, [0]),
        Budget.keep(0.75, [0]),
    ]
    for budget in budgets:
        try:
            yield bench.reducer.plan(method, budget)
        except TokenrtError:
            continue


def table(timed: Sequence[Timed], of: Table) -> Table:
    """The table that these times make."""
    plain, weighted, rest = list[tuple[int, float]](), list[tuple[int, float]](), list[tuple[int, float]]()
    around: dict[str, list[float]] = {}
    sites: dict[str, list[tuple[int, int, float]]] = {}
    for each in timed:
        plan, parts = each.plan, each.times.parts
        places = {} if plan is None else {site.block: site for site in plan.sites}
        name = "" if plan is None else plan.method
        around.setdefault(name, []).append(total(each.times, range(of.blocks)))
        here, sized = of.tokens, False
        for block in range(of.blocks):
            (weighted if sized else plain).append((here, parts.get(attention(block), 0.0)))
            site = places.get(block)
            if plan is not None and site is not None:
                sites.setdefault(name, []).append((here, site.tokens, parts.get(reduction(block), 0.0)))
                here = site.tokens
                sized = sized or (plan.at(site).merges and plan.proportional_attention)
            rest.append((here, parts.get(feedforward(block), 0.0)))
    return replace(
        of,
        milliseconds=float(np.median([each.times.milliseconds for each in timed])),
        attention=monotone(plain),
        weighted=monotone(weighted),
        feedforward=monotone(rest),
        around={name: float(np.mean(shares)) for name, shares in around.items()},
        reductions={name: tuple(rows) for name, rows in sites.items()},
    )


def _error(timed: Sequence[Timed], whole: Table) -> float:
    """How far off ratios are that the other plans predict: nine in ten are nearer."""
    off = []
    for left_out in timed:
        others = [each for each in timed if each is not left_out]
        if (
            left_out.plan is None
            or sum(each.plan is not None and each.plan.method == left_out.plan.method for each in others) < 2
        ):
            continue
        told = table(others, whole).predict(left_out.plan).ratio
        off.append(abs(told / left_out.times.whole - 1))
    return float(np.quantile(off, 0.9)) if off else 0.0
