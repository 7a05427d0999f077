"""`tokenrt compare`: several reduced models on one table, on the same data and in the same rounds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.analysis.prepare import ShapeOption
from tokenrt.passes.checking.check_data import feeds, first, samples_of
from tokenrt.passes.graph.model import load
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.compare import measure, page
from tokenrt.perf.compare.comparison import Comparison, Row, Sort, Whole, ordered
from tokenrt.perf.compare.contestants import Contestant, entered, places
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.planner.latency.modelled import Modelled, modelled
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.profile import HERE, REPEATS, ROUNDS
from tokenrt.perf.report.write import check_page, write
from tokenrt.targets import load as load_target
from tokenrt.targets.profiles.profile import Target

Name = str | os.PathLike[str]


def compare(
    models: Sequence[Name],
    *,
    original: Name,
    data: Name | None = None,
    samples: int = 32,
    batch: int | None = None,
    rounds: int = ROUNDS,
    threads: int | None = None,
    seed: int = 0,
    check: bool = True,
    target: Target | str | None = None,
    sort: Sort = "given",
    shape: ShapeOption = None,
    output: Name | None = None,
    progress: measure.Told | None = None,
) -> Comparison:
    """Measure reduced models of one original side by side: work, memory, size, time, harm, and whether `check` holds.

    models: ONNX files, whether tokenrt made them or not; plans (.toml), applied to the original; folders of either; and runs of
    `tune`, of which the recommended model is taken. data: a folder of pictures or arrays, an .npz, a .txt with a text in each
    line, or nothing for seeded noise; `samples` of them are answered by every model. batch: images at a time when timed; 1 when
    left out, or as the models have it fixed. rounds: with each of twelve sets of sessions. threads: of one operator. check: ask
    whether each model passes `check`, on the first eight samples. target: a GPU whose time is modelled besides. sort: order of
    the rows. shape: of inputs whose axes are open, as for `reduce`. output: a page to write, .html.

    Raises: TokenrtError for models that cannot be compared, and for data that does not fit.
    """
    tell, whole = progress or (lambda stage: None), Path(original)
    source, target = None if data is None else Path(data), _gpu(target)
    if output is not None:
        check_page(output)
    read = load(whole)
    named = places([Path(model) for model in models], whole)
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as temporary:
        folder = Path(temporary)

        @cache
        def reducer() -> Reducer:
            tell("reading the original")
            return Reducer.of(read, shape)

        contestants = entered(named, folder, reducer)
        setting = measure.Setting.of(whole, contestants, folder)
        size = setting.batch(batch)
        runs, told = feeds(
            setting.inputs,
            read,
            data=source,
            batch=measure.RUN,
            seed=seed,
            samples=-(-samples // measure.RUN),
            most=samples,
        )
        runs = [*first(runs, samples)]
        harms, kinds = measure.harms(setting, runs, threads, tell)
        verdicts = measure.checked(setting, contestants, runs, tell) if check else {}
        tell("counting work and memory")
        shapes = setting.shapes(runs[0])
        own, _ = measure.counted(whole, shapes, size)
        costs = {each.name: measure.counted(each.file, shapes, size) for each in contestants}
        there = _modelled(reducer, contestants, target, size, tell)
        times = measure.timed(setting, setting.served(runs[0], size), threads, rounds, REPEATS, tell)
        rows = [
            Row(
                each,
                measure.bytes_of(each.file),
                costs[each.name][0],
                times[each.name],
                harms[each.name],
                verdicts.get(each.name),
                there[each.name][0],
                tuple(note for _, note in (costs[each.name], there[each.name]) if note),
            )
            for each in contestants
        ]
        unreduced = Whole(
            whole.stem, whole, measure.bytes_of(whole), own, next(iter(times.values())).base_milliseconds
        )
        how = {
            "data": told,
            "samples": sum(map(samples_of, runs)),
            "batch": size,
            "threads": threads or timing.default_threads(),
            "target": None if target is None else target.name,
        }
        found = Comparison(unreduced, ordered(rows, unreduced, sort), how, kinds)
        if output is None:
            return found
        asked = {
            "data": data,
            "samples": samples,
            "batch": batch,
            "rounds": rounds,
            "threads": threads,
            "seed": seed,
            "target": how["target"],
            "sort": sort,
            "shape": _pairs(shape),
        }
        words = [*(str(Path(model)) for model in models), "--original", str(whole), *_options(asked)]
        seen = page.looked(whole, reducer, contestants, source, runs, folder, tell)
        write(
            page.document(found, seen, ["tokenrt", "compare", *words, *([] if check else ["--no-check"])]),
            output,
        )
    return replace(found, page=Path(output))


def _options(given: Mapping[str, Any]) -> Iterator[str]:
    """The words of options that are not left out."""
    usual = {"samples": 32, "rounds": ROUNDS, "seed": 0, "sort": "given"}
    for name, value in given.items():
        if value is not None and value != usual.get(name):
            for each in value if isinstance(value, list) else [value]:
                yield from (f"--{name}", str(each))


def _pairs(shape: ShapeOption) -> list[str]:
    """Shapes as the command line takes them."""
    if isinstance(shape, Mapping):
        return [f"{name}={'x'.join(map(str, axes))}" for name, axes in shape.items()]
    return [*(shape or ())]


def _gpu(target: Target | str | None) -> Target | None:
    """The target whose time is modelled; this machine's is measured in any case. Raises: TargetError."""
    found = load_target(target) if isinstance(target, str) else target
    if found is None or found.name == HERE:
        return None
    Chip.of(found)
    return found


def _modelled(
    reducer: Callable[[], Reducer],
    contestants: Sequence[Contestant],
    target: Target | None,
    batch: int,
    tell: measure.Told,
) -> dict[str, tuple[Modelled | None, str]]:
    """By name the time of each model's plan on a target, or why there is none; nothing where no target is meant."""
    found: dict[str, tuple[Modelled | None, str]] = {}
    for each in contestants:
        found[each.name] = None, ""
        if target is None:
            continue
        tell(f"modelling the time of {each.name} on {target.name}")
        try:
            found[each.name] = _time(reducer, each, target, batch), ""
        except TokenrtError as error:
            found[each.name] = None, f"time on {target.name} is not modelled: {str(error).splitlines()[0]}"
    return found


def _time(reducer: Callable[[], Reducer], contestant: Contestant, target: Target, batch: int) -> Modelled:
    """Raises: TokenrtError where it cannot be modelled."""
    plan = contestant.plan
    if plan is None:
        raise UnsupportedError("the model does not say by which plan it was made")
    if plan.behind or not plan.sites:
        raise UnsupportedError("the model of time knows reductions in blocks alone")
    return modelled(reducer(), plan, target, batch=batch)
