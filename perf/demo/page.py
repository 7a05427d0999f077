"""The demonstration as a report: what it measured on its way, and the time of its headline block by block."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from statistics import mean, median

import numpy as np
from PIL import Image

from tokenrt.files import atomic
from tokenrt.passes.graph.model import load
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.report import CHECKED, DOCUMENT, PAGE, DemoReport, Row, digest
from tokenrt.perf.planner.costs import cost_of
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.profile import groups, node_profile, timing
from tokenrt.perf.profile.machine import about, processor
from tokenrt.perf.profile.profile import HERE, Profile
from tokenrt.perf.report import look, samples
from tokenrt.perf.report import write as page
from tokenrt.perf.report.document import Check, Command, Document, Entry, Measures, Model, Sample, Time
from tokenrt.perf.report.measured import time_of, work

RUNS, WARM_UP = 8, 2
"""Of each model under the profiler."""


def write(report: DemoReport, reducer: Reducer, headline: str) -> None:
    """Write the page and its document into the demonstration's folder. headline: the key of the row that it opens with."""
    told = document(report, reducer, headline)
    with atomic(report.out / DOCUMENT) as temporary:
        temporary.write_text(json.dumps(told.as_dict(), allow_nan=False) + "\n", encoding="utf-8")
    page.write(told, report.out / PAGE)


def document(report: DemoReport, reducer: Reducer, headline: str) -> Document:
    """What is known of every row, and where the time of the headline is."""
    structure, rows = reducer.prepared.structure, report.rows
    first = next((place for place, row in enumerate(rows) if row.key == headline), 0)
    parts = _profile(report, reducer, rows[first])
    return Document(
        kind="demo",
        title="A vision transformer that works on fewer tokens",
        verdict=_verdict(rows[first]),
        model=Model(
            f"{subject.WHEEL} (DINOv2 ViT-S/14, saliency)",
            structure.tokens,
            structure.protect,
            len(structure.blocks),
            tuple(structure.grid or ()) or None,
        ),
        measures=Measures(
            "multiply-accumulates, counted",
            "1 - correlation with the unreduced model's saliency map, over the photograph without its border, averaged over "
            f"{len(report.photographs)} photographs",
        ),
        entries=[_entry(report, row, parts if place == first else None) for place, row in enumerate(rows)],
        first=first,
        unreduced=work(cost_of(reducer.prepared.model)),
        samples=[_sample(photo) for photo in report.photographs],
        notes=[
            f"{row.key}: no engine for {target}: {engine.reason}"
            for row in rows
            for target, engine in row.engines.items()
            if not engine.built
        ],
        commands=_commands(report, rows[first]),
        manifest=_manifest(report),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _verdict(row: Row) -> str:
    counts = row.plan.counts()
    return f"{row.method} {row.options} leaves {counts[-1]} of {counts[0]} tokens: {row.measured()}."


def _harms(row: Row) -> tuple[float, ...]:
    return tuple(1 - value for value in row.inside.values())


def _entry(report: DemoReport, row: Row, parts: Profile | None) -> Entry:
    harms, others = _harms(row), [each for each in report.rows if each is not row]
    beaten = any(each.work <= row.work and mean(_harms(each)) <= mean(harms) for each in others)
    known = row.check is not None
    return Entry(
        name=f"{row.method} {row.options}",
        cost=row.work,
        harm=mean(harms),
        interval=Harm({subject.SALIENCY: harms}).interval(),
        harms=harms,
        sites=len(row.plan.sites),
        spec=row.plan.spec(),
        file=f"{row.key}.toml",
        front=not beaten,
        flow=look.steps(row.plan),
        views=row.became,
        work=None if row.cost is None else work(row.cost),
        time=_time(row, parts),
        check=Check(
            not row.check, row.check or (), min(CHECKED, len(report.photographs)), "the first photographs"
        )
        if known
        else None,
    )


def _profile(report: DemoReport, reducer: Reducer, row: Row) -> Profile:
    """Where the time of a row and of the unreduced model is, at the smallest batch that was timed."""
    batch, threads, known = (
        min(row.speed, default=1),
        timing.default_threads(),
        groups.groups_of(reducer.prepared),
    )
    before, after = (
        node_profile.profile(model, known, batch=batch, runs=RUNS, warm_up=WARM_UP, threads=threads)
        for model in (reducer.prepared.model, load(report.out / row.model))
    )
    return Profile(row.model, HERE, batch, threads, row.speed.get(batch), after, before)


def _time(row: Row, parts: Profile | None) -> Time | None:
    if parts is not None:
        return time_of(parts)
    if not row.speed:
        return None
    batch, found = min(row.speed.items())
    where = f"ONNX Runtime on this CPU ({processor()}), {timing.default_threads()} threads, batch {batch}"
    times = found.base_milliseconds, found.milliseconds
    return Time(where, "measured", found.median, found.low, found.high, *times)


def _sample(photo: subject.Photograph) -> Sample:
    """A photograph as the model sees it, with its border, at the resolution of drawings."""
    side = subject.SHARP * subject.SIDE
    whole = np.zeros((side, side, 3), np.uint8)
    top, left = subject.SHARP * photo.top, subject.SHARP * photo.left
    whole[top : top + photo.sharp.shape[0], left : left + photo.sharp.shape[1]] = photo.sharp
    image = Image.fromarray(whole)
    image.thumbnail((samples.SIDE, samples.SIDE), Image.Resampling.LANCZOS)
    return samples.framed(photo.name, image)


def _commands(report: DemoReport, row: Row) -> list[Command]:
    model, out = str(report.source), report.out
    lines = {
        "Run the demonstration again": ["tokenrt", "demo", "--out", str(out)],
        f"Reduce as {row.key} does": [
            "tokenrt", "reduce", model, "--method", row.method, *row.options.split(), "-o", row.model,
        ],
        "Let the budget choose itself": [
            "tokenrt", "tune", model, "--data", "PICTURES", "--flops", f"{row.work:.2g}", "-o", "run",
        ],
        "Make this page": ["tokenrt", "report", str(out), "-o", PAGE],
    }  # fmt: skip
    return [Command(words, shlex.join(line)) for words, line in lines.items()]


def _manifest(report: DemoReport) -> dict[str, dict[str, str]]:
    here = about()
    built = {
        target: [row.engines[target] for row in report.rows if row.engines[target].built]
        for target in (report.rows[0].engines if report.rows else ())
    }
    engines = {
        target: f"{len(found)} of {len(report.rows)} built"
        + (f", {median(each.seconds for each in found):.1f} s each" if found else "")
        for target, found in built.items()
    }
    return {
        "Model": {
            "package": f"{subject.WHEEL} {subject.version(subject.WHEEL)}",
            "file": subject.MODEL,
            "sha256": digest(report.source),
        },
        "Reduced models": {row.model: digest(report.out / row.model) for row in report.rows},
        **({"Engines": engines} if engines else {}),
        "Versions": here["versions"],
        "Machine": here["machine"] | {"threads": str(timing.default_threads())},
    }
