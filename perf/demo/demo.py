"""The demonstration: a trained vision transformer loses tokens, still sees the same, and becomes engines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.demo import page, pictures, subject
from tokenrt.perf.demo.report import (
    CHECKED,
    FRONT,
    DemoReport,
    EngineResult,
    Row,
    Variant,
    digest,
    write_manifest,
)
from tokenrt.perf.demo.subject import SALIENCY, Array, Photograph
from tokenrt.perf.profile import timing

if TYPE_CHECKING:
    import onnx_ir as ir

    from tokenrt.passes.reducer import Reducer

EVERY_THIRD = (3, 6, 9)

VARIANTS = (
    Variant("tome-remove-8", "tome", Budget.remove(8), "--remove 8"),
    Variant("tome-remove-16", "tome", Budget.remove(16), "--remove 16"),
    Variant("evit-keep-85", "evit", Budget.keep(0.85, EVERY_THIRD), "--keep 0.85 --layers 3,6,9"),
    Variant("evit-keep-65", "evit", Budget.keep(0.65, EVERY_THIRD), "--keep 0.65 --layers 3,6,9"),
)
"""Two methods, each at about 84 % and 69 % of the model's work."""

HEADLINE = "tome-remove-16"
"""The variant whose engines stay in the folder (the others' are built, recorded and deleted: 2 GB in all)."""

SHOWN = ("astronaut", "coffee")
"""Photographs of the front page's picture, where they are among those of the run."""

ENGINE_BATCH = "1:4:8"
BATCHES = {1: 12.0, 4: 20.0}
"""Batch sizes that are timed, and the seconds each may take."""

NEEDS = (("PIL", "pillow"), ("matplotlib", "matplotlib"), ("jinja2", "jinja2"))


def run(
    out: str | os.PathLike[str],
    *,
    photographs: Sequence[str] = tuple(subject.PHOTOGRAPHS),
    variants: Sequence[Variant] = VARIANTS,
    targets: Sequence[str] | None = None,
    seconds: Mapping[int, float] | None = None,
) -> DemoReport:
    """Run the whole chain and write the folder `out`: models, plans, engines, pictures, a report and a manifest.

    targets: names of those to build for; all with engines when left out, none when empty. seconds: the time
    spent on each batch size. Progress goes to standard error.

    Raises: DependencyError when the model's or the photographs' wheel is missing; TokenrtError otherwise.
    """
    subject.require(*NEEDS)
    source = subject.model_file()
    photos = [subject.photograph(name) for name in photographs]
    folder = _folder(out)
    started = time.perf_counter()
    stages = _Stages()
    with stages("reading the model"):
        from tokenrt.passes.reducer import Reducer

        reducer = Reducer.of(source)
    rows, panels = [], [_unreduced(source, photos, stages)]
    for variant in variants:
        with stages(f"reducing: {variant.method} {variant.options}"):
            row, views = _reduce(reducer, variant, photos, panels[0], folder)
        stages.tell(f"  {row.told()}")
        rows.append(row)
        panels.append(views)
    for place, row in enumerate(rows):
        with stages(f"checking {row.key}"):
            rows[place] = row.checked(_check(source, folder, row, photos))
    with stages("drawing"):
        _draw(folder, photos, panels, rows)
    with stages("timing, all models in turn"):
        ratios = _time(source, folder, rows, photos, BATCHES if seconds is None else seconds)
    rows = [row.timed({batch: found[row.key] for batch, found in ratios.items()}) for row in rows]
    _front(folder, photos, panels, rows)
    rows = _build(folder, rows, _targets(targets), stages)
    with stages("writing the report"):
        report = DemoReport(folder, source, tuple(photos), tuple(rows), time.perf_counter() - started)
        page.write(report, reducer, HEADLINE)
    report = replace(report, seconds=time.perf_counter() - started)
    write_manifest(report)
    return report


def _folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        for inner in ("", "pictures", "engines"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise TokenrtError(
            f"cannot write to the folder {folder}: {cause.strerror}; choose another with --out"
        ) from None
    return folder


def _reduce(
    reducer: Reducer,
    variant: Variant,
    photos: Sequence[Photograph],
    unreduced: list[pictures.Panel],
    folder: Path,
) -> tuple[Row, list[pictures.Panel]]:
    """Write the reduced model and its plan; see what it sees."""
    from tokenrt.passes.graph.interface import MAP
    from tokenrt.passes.graph.model import save
    from tokenrt.perf.planner.costs import cost_of
    from tokenrt.perf.report import look

    reduced = reducer.reduce(reducer.plan(variant.method, variant.budget))
    save(reduced.model, folder / f"{variant.key}.onnx")
    reduced.plan.save(folder / f"{variant.key}.toml")
    seen = _see(reducer.reduce(reduced.plan, source_map="every").model, photos)
    saliency, where = seen[SALIENCY][:, 0], seen[MAP]
    became = look.read(reduced.plan, reducer.prepared.structure, seen)
    count = reduced.plan.counts()[-1]
    pairs = list(zip(photos, unreduced, saliency, strict=True))
    inside = {photo.name: correlation(photo.crop(new), photo.crop(old.saliency)) for photo, old, new in pairs}
    whole = {photo.name: correlation(new, old.saliency) for photo, old, new in pairs}
    views = [
        pictures.Panel(
            variant.title,
            f"{variant.note}r = {inside[photo.name]:.3f}",
            count,
            new,
            patches.reshape(pictures.GRID, -1),
        )
        for (photo, _, new), patches in zip(pairs, where[:, 1:], strict=True)
    ]
    row = Row(variant.key, variant.method, variant.options, reduced.plan, inside, whole)
    return replace(row, became=became, cost=cost_of(reduced.model)), views


def _unreduced(source: Path, photos: Sequence[Photograph], stages: _Stages) -> list[pictures.Panel]:
    with stages(f"looking at {len(photos)} photographs"):
        saliency = _see(source, photos)[SALIENCY][:, 0]
    count = pictures.GRID**2 + 1
    return [pictures.Panel("unreduced", f"{count} tokens in every block", count, one) for one in saliency]


def _see(model: Path | ir.Model, photos: Sequence[Photograph]) -> dict[str, Array]:
    """The outputs by name: saliency maps [photographs,1,SIDE,SIDE] and, where the model has them, source maps."""
    opened = timing.session(model)
    names = [value.name for value in opened.get_outputs()]
    pixels = np.stack([photo.pixels() for photo in photos])
    return dict(zip(names, opened.run(names, {opened.get_inputs()[0].name: pixels}), strict=True))


def correlation(left: Array, right: Array) -> float:
    """Pearson correlation of two maps; 0 where one of them is constant."""
    a, b = (np.asarray(side, np.float64).ravel() - np.mean(side, dtype=np.float64) for side in (left, right))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _check(source: Path, folder: Path, row: Row, photos: Sequence[Photograph]) -> tuple[str, ...]:
    """Reasons why the reduced model fails its check, none when it holds."""
    from tokenrt.passes.checking.check import check

    name = timing.session(source).get_inputs()[0].name
    data = {name: np.stack([photo.pixels() for photo in photos[:CHECKED]])}
    return check(source, folder / row.model, data=data).reasons


def _draw(
    folder: Path,
    photos: Sequence[Photograph],
    panels: Sequence[Sequence[pictures.Panel]],
    rows: Sequence[Row],
) -> None:
    for number, photo in enumerate(photos):
        pictures.draw(photo, [views[number] for views in panels], folder / "pictures" / f"{photo.name}.png")
    sheet, _, heading = _headline(photos, panels, rows)
    pictures.overview(sheet, heading, folder / "pictures" / "overview.png")


def _front(
    folder: Path,
    photos: Sequence[Photograph],
    panels: Sequence[Sequence[pictures.Panel]],
    rows: Sequence[Row],
) -> None:
    """The picture of the front page: two photographs, and what was measured of all."""
    sheet, row, heading = _headline(photos, panels, rows)
    shown = [each for each in sheet if each[0].name in SHOWN] or sheet[: len(SHOWN)]
    pictures.front(shown, heading, row.measured(), folder / FRONT)


def _headline(
    photos: Sequence[Photograph], panels: Sequence[Sequence[pictures.Panel]], rows: Sequence[Row]
) -> tuple[list[tuple[Photograph, pictures.Panel, pictures.Panel]], Row, str]:
    """Photographs before and after the variant that is shown, its row, and a heading."""
    best = next((place for place, row in enumerate(rows) if row.key == HEADLINE), 0)
    row, before, after = rows[best], panels[0], panels[best + 1]
    heading = f"DINOv2 ViT-S/14, {row.method} {row.options}: {before[0].count} tokens become {after[0].count}"
    return list(zip(photos, before, after, strict=True)), row, heading


def _time(
    source: Path,
    folder: Path,
    rows: Sequence[Row],
    photos: Sequence[Photograph],
    seconds: Mapping[int, float],
) -> dict[int, dict[str, timing.Ratio]]:
    """Time of every reduced model over that of the original, by batch size."""
    if not seconds:
        return {}
    models = {"original": source, **{row.key: folder / row.model for row in rows}}
    opened = {key: timing.session(path) for key, path in models.items()}
    pixels = np.stack([photo.pixels() for photo in photos])
    found = {}
    for batch, limit in seconds.items():
        data = np.take(pixels, range(batch), axis=0, mode="wrap")
        runs = {key: timing.runner(item, {item.get_inputs()[0].name: data}) for key, item in opened.items()}
        found[batch] = timing.compare(runs, base="original", rounds=40, seconds=limit, warm_up=1)
    return found


def _targets(wanted: Sequence[str] | None) -> list[str]:
    from tokenrt.targets.profiles.profile import targets

    # Those that build here, one for each capability.
    mine = [item.name for item in targets() if item.builder == "tensorrt-rtx" and item.compute_capability]
    return mine if wanted is None else [*wanted]


def _build(folder: Path, rows: Sequence[Row], targets: Sequence[str], stages: _Stages) -> list[Row]:
    """Build every model for every target, several at once: a builder keeps little more than one thread busy."""
    jobs = [(row.key, target) for row in rows for target in targets]
    found = {}
    if jobs:
        with stages(f"building {len(jobs)} engines"), ThreadPoolExecutor(timing.default_threads()) as pool:
            found = dict(
                zip(jobs, pool.map(lambda job: _engine(folder, job[0], job[1], stages), jobs), strict=True)
            )
    return [row.built({target: found[row.key, target] for target in targets}) for row in rows]


def _engine(folder: Path, key: str, target: str, stages: _Stages) -> EngineResult:
    """One engine; one that is not built says why."""
    from tokenrt.targets.build import build

    path = folder / "engines" / f"{key}.{target}.engine"
    try:
        report = build(folder / f"{key}.onnx", target=target, output=path, batch=ENGINE_BATCH)
    except TokenrtError as error:
        stages.tell(f"  {path.name}: {error}")
        return EngineResult(False, str(error))
    kept = key == HEADLINE
    result = EngineResult(True, "", report.seconds, report.engine_bytes, digest(path), kept)
    if not kept:
        path.unlink()
    stages.tell(f"  {path.name}: {report.seconds:.1f} s")
    return result


class _Stages:
    """Tells on standard error what is being done, and how long it took."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False)

    def tell(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        if self.console.is_terminal:
            with self.console.status(what):
                yield
        else:
            yield
        self.tell(f"{what}: {time.perf_counter() - start:.1f} s")
