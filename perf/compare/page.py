"""A comparison as a page that people read: every model in the trade of time against harm, and what became of the samples."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.compare.comparison import Comparison, Row, size
from tokenrt.perf.compare.contestants import Contestant
from tokenrt.perf.planner.weights import Weights
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.machine import about, processor
from tokenrt.perf.report import look, samples
from tokenrt.perf.report.document import Change, Command, Document, Entry, Measures, Model, Sample, Time
from tokenrt.perf.report.measured import check_of, sha256, work

SHOWN = 6
"""Photographs or texts in a page."""

Views = Sequence[Sequence[Change]]


@dataclass(frozen=True)
class Looked:
    """The unreduced model, samples that are shown, and by name what became of them; missing: by section, why there is nothing."""

    model: Model
    samples: Sequence[Sample] = ()
    views: Mapping[str, Views] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def looked(
    original: Path,
    reducer: Callable[[], Reducer],
    contestants: Sequence[Contestant],
    data: Path | None,
    runs: Sequence[Feed],
    folder: Path,
    tell: Callable[[str], None],
) -> Looked:
    """Ask the plans of the models where every token went. folder: for weights."""
    plans = {each.name: each.plan for each in contestants if each.plan is not None}
    if not plans:
        return Looked(
            Model(original.name),
            missing=dict.fromkeys(("flow", "samples"), "no model says by which plan it was made"),
        )
    try:
        prepared = reducer().prepared
    except TokenrtError as error:
        told = str(error).splitlines()[0]
        return Looked(Model(original.name), missing=dict.fromkeys(("flow", "samples"), told))
    structure = prepared.transformers[look.shown(next(iter(plans.values())))]
    grid = tuple(structure.grid) if structure.grid else None
    model = Model(original.name, structure.tokens, structure.protect, len(structure.blocks), grid)
    if data is None:
        return Looked(model, missing={"samples": "the models were run on seeded noise: give --data"})
    shown, why = samples.fitting(data, SHOWN, structure)
    if not shown:
        return Looked(model, missing={"samples": why})
    bench = Workbench(reducer(), Weights.of(prepared.model, folder), timing.default_threads())
    views = dict[str, Views]()
    for name, plan in plans.items():
        tell(f"looking at the tokens of {name}")
        try:
            views[name] = look.look(bench, plan, runs, len(shown))
        except TokenrtError:  # a plan of another model, whose row has its figures all the same
            views[name] = ()
    if not any(any(each) for each in views.values()):
        return Looked(
            model,
            missing={"samples": "no plan tells of its tokens sample by sample, so that none can be drawn"},
        )
    return Looked(model, shown, views)


def document(found: Comparison, seen: Looked, asked: Sequence[str]) -> Document:
    """The document of a comparison. asked: the words of the command, without the page."""
    told, whole, checked = found.told, found.original, any(row.check is not None for row in found.rows)
    unchecked = {} if checked else {"checks": "the models were compared with --no-check"}
    return Document(
        kind="compare",
        title=f"{whole.name}: {len(found.rows)} reduced model{'s' * (len(found.rows) != 1)}",
        verdict=found.verdict(),
        model=seen.model,
        measures=Measures(
            f"time as a share of the original's, {found.run()}",
            f"{'; '.join(found.harm())}, mean of {told['samples']} samples",
            "measured",
        ),
        entries=[_entry(found, row, seen.views.get(row.name, ())) for row in found.rows],
        unreduced=None if whole.cost is None else work(whole.cost),
        samples=seen.samples,
        notes=[f"{row.name}: {note}" for row in found.rows for note in row.notes],
        commands=_commands(found, asked),
        manifest=_manifest(found),
        missing={**seen.missing, **unchecked},
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _entry(found: Comparison, row: Row, views: Views) -> Entry:
    plan, told = row.contestant.plan, found.told
    where = f"ONNX Runtime on this CPU ({processor()}), {found.run()}"
    return Entry(
        name=row.name,
        cost=row.time.median,
        harm=row.harm.mean,
        interval=row.harm.interval(),
        harms=row.harm.images,
        sites=0 if plan is None else len(plan.sites) + len(plan.behind),
        spec="" if plan is None else plan.spec(),
        file=str(row.contestant.given),
        front=not found.beaten_by(row),
        flow=() if plan is None else look.steps(plan),
        views=views,
        work=None if row.cost is None else work(row.cost),
        time=Time(
            where,
            "measured",
            row.time.median,
            row.time.low,
            row.time.high,
            row.time.base_milliseconds,
            row.time.milliseconds,
        ),
        check=None if row.check is None else check_of(row.check, f"the first of {told['data']}"),
    )


def _commands(found: Comparison, asked: Sequence[str]) -> list[Command]:
    original = str(found.original.file)
    lines = [Command("Compare again, and make this page", shlex.join([*asked, "-o", "report.html"]))]
    for row in found.rows:
        given = str(row.contestant.given)
        if row.contestant.given != row.contestant.file:
            made = f"{row.contestant.given.stem}.onnx"
            lines.append(
                Command(
                    f"Make the model of {row.name}",
                    shlex.join(["tokenrt", "reduce", original, "--plan", given, "-o", made]),
                )
            )
        elif not found.beaten_by(row):
            lines.append(
                Command(
                    f"See in which blocks the time of {row.name} is",
                    shlex.join(["tokenrt", "profile", given, "--original", original]),
                )
            )
    return lines


def _manifest(found: Comparison) -> dict[str, dict[str, str]]:
    told, whole, target = found.told, found.original, found.told["target"]
    there = {
        row.name: f"{row.modelled.ratio:.3f} of the original's time"
        for row in found.rows
        if row.modelled is not None
    }
    beaten = {row.name: " and ".join(found.beaten_by(row)) for row in found.rows if found.beaten_by(row)}
    here = about()
    groups = {
        "Original": {"file": str(whole.file), "sha256": sha256(whole.file), "on disk": size(whole.bytes)},
        "On disk": {row.name: size(row.bytes) for row in found.rows},
        "Beaten by": beaten,
        f"On {target} (a model of its cost, unmeasured)": there,
        "Run": {name: str(told[name]) for name in ("data", "samples", "batch", "threads")},
        "Versions": here["versions"],
        "Machine": here["machine"],
    }
    return {heading: facts for heading, facts in groups.items() if facts}
