"""Time engines where TensorRT is, on this machine or over ssh: build them there, run them in turn, bring the files back."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import onnx_ir as ir

from tokenrt.errors import DeviceError, TargetError
from tokenrt.files import atomic
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.forms.legalize import legalize
from tokenrt.passes.graph.model import ModelLike, load
from tokenrt.perf.profile.device_profile import DeviceProfile, Measured, compare
from tokenrt.perf.profile.engine_blocks import Trace, trace
from tokenrt.perf.profile.groups import groups_of
from tokenrt.targets.engines import cache
from tokenrt.targets.engines.batch import batch_of, shapes_of
from tokenrt.targets.profiles.profile import Target
from tokenrt.targets.report import BuildReport
from tokenrt.targets.trtexec import command as trtexec
from tokenrt.targets.trtexec import tool as trtexec_tool
from tokenrt.targets.trtexec.machine import Machine
from tokenrt.targets.trtexec.workplace import PATIENCE_S, Progress, Step, Workplace, workplace

ROUNDS = 3
"""Times every engine is timed, in turn with the other one."""

TOOLS = ("nvpmodel", "jetson_clocks", "nvidia-smi")
"""What a device says of its power mode and clocks."""


@dataclass(frozen=True)
class Subject:
    """One engine to time: the files that make it, or itself, and how its layers are told apart."""

    tag: str
    name: str
    files: tuple[Path, ...]
    built: bool
    shapes: trtexec.Shapes
    batch: int
    traced: Trace


def profile(
    model: ModelLike,
    *,
    original: ModelLike | None,
    target: Target,
    machine: Machine,
    batch: int = 1,
    plugins: Iterable[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
    tool: str = "",
    workspace: int | None = None,
    timeout: int = trtexec_tool.BUILD_S,
    patience: float = PATIENCE_S,
    keep: bool = False,
    tell: Progress = lambda stage: None,
) -> DeviceProfile:
    """Build and time `model`, and `original` in turn with it, with the trtexec of `machine`.

    A model may be an engine that was built for this target. out: a folder for the files trtexec wrote and for
    `profile.json`; the timing cache is kept there too. tool: the path of trtexec there. timeout: seconds for each
    build and each run. patience: seconds a lost connection is tried again. keep: leave the work folder there.

    Raises: DeviceError, BuildError, with nothing taken, nothing written and nothing left on the machine.
    """
    libraries = tuple(map(Path, plugins))
    for library in libraries:
        if not target.fact("plugins", False):
            raise TargetError(f"{target.name} loads no plugin library ({library}): leave --plugins out")
        if not library.is_file():
            raise DeviceError(f"--plugins {library}: no such file")
    place = None if out is None else Path(out)
    with _made(place), tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        forms, results = Path(folder) / "forms", Path(folder) / "results"
        forms.mkdir()
        results.mkdir()
        tell("making the models legal")
        subjects = _subjects(model, original, target, batch, bool(libraries), forms)
        with workplace(machine, trtexec=tool, keep=keep, patience=patience, tell=tell) as work:
            found = trtexec_tool.tool(work, target)
            timing = None if place is None else place / f"{target.name}.timing"
            there = _send(work, subjects, libraries, timing)
            steps = [*_steps(subjects, target, found, there, workspace, timeout)]
            work.run(steps)
            _check_logs(work, steps)
            files = {path.name: path for path in work.fetch(results)}
        tell("reading what came back")
        measured = [_measured(subject, files) for subject in subjects]
        told = {name: _text(files[f"{name}.txt"]) for name in TOOLS if f"{name}.txt" in files}
        report = compare(
            *measured,
            target=target.name,
            machine=machine.name,
            tensorrt=found.version,
            notes=found.notes,
            device=told,
            folder=place,
        )
        if place is not None:
            _keep(place, files, report, timing)
    return report


def _subjects(
    model: ModelLike, original: ModelLike | None, target: Target, batch: int, plugins: bool, folder: Path
) -> list[Subject]:
    """What is timed: the model, and the original behind it."""
    base = model if original is None else original
    known = {} if _is_engine(base) else groups_of(prepare(base))
    asked = [model] if original is None else [model, original]
    tags = [_tag(one) for one in asked]
    if len(set(tags)) < len(tags):
        tags = ["reduced", "original"]
    return [
        _engine(Path(one), tag, target, known, batch)  # type: ignore[arg-type]
        if _is_engine(one)
        else _lowered(one, tag, target, known, batch, plugins, folder)
        for one, tag in zip(asked, tags, strict=True)
    ]


def _lowered(
    model: ModelLike,
    tag: str,
    target: Target,
    known: Mapping[str, str],
    batch: int,
    plugins: bool,
    folder: Path,
) -> Subject:
    legal = load(model)
    fixed = {
        value.shape[0]
        for value in legal.graph.inputs
        if value.name not in legal.graph.initializers and value.shape and isinstance(value.shape[0], int)
    }
    # A batch of 1 is what nobody asked for: a model with another fixed batch is timed at its own.
    span = batch_of(legal, None if fixed and batch == 1 else batch)
    legalize(legal, target.accepts(), bare=plugins)
    # A plugin is found by the name of its call; without plugins the parser would inline the functions itself.
    traced = trace(legal, known, whole=not plugins)
    name = str(legal.graph.name or tag) if isinstance(model, ir.Model) else os.fspath(model)
    size = batch if span else int(next(iter(fixed), batch))
    files = trtexec_tool.written(legal, folder, tag)
    return Subject(tag, name, tuple(files), False, shapes_of(legal, span), size, traced)


def _engine(path: Path, tag: str, target: Target, known: Mapping[str, str], batch: int) -> Subject:
    """An engine that is there; its manifest says for what it was built and which shapes it takes."""
    if not path.is_file():
        raise DeviceError(f"no such engine: {path}")
    try:
        told = BuildReport.read(cache.manifest(path))
    except (OSError, ValueError, KeyError, TypeError):
        return Subject(tag, str(path), (path,), True, {}, batch, Trace(known))
    if told.target != target.name:
        raise DeviceError(
            f"{path} was built for {told.target}, not for {target.name}: build it for this target"
        )
    if told.engine_sha256 != cache.sha256(path):
        raise DeviceError(f"{path} is not the engine that its manifest speaks of; build it again")
    if told.batch is None:
        return Subject(tag, str(path), (path,), True, {}, told.inputs[0].shapes[0][0], Trace(known))
    if not told.batch[0] <= batch <= told.batch[2]:
        span = ":".join(map(str, told.batch))
        raise DeviceError(f"{path} takes a batch of {span}, not {batch}: say one of these with --batch")
    shapes = {port.name: ((batch, *port.shapes[0][1:]),) for port in told.inputs}
    return Subject(tag, str(path), (path,), True, shapes, batch, Trace(known))


def _send(
    work: Workplace, subjects: Sequence[Subject], libraries: Sequence[Path], timing: Path | None
) -> list[PurePath]:
    """Copy everything there, and say where the plugin libraries are then."""
    for subject in subjects:
        for file in subject.files:
            work.put(file, f"{subject.tag}.engine" if subject.built else file.name)
    root = PurePosixPath(work.facts["folder"])
    for number, library in enumerate(libraries):
        work.put(library, f"plugin{number}.so")
    if timing is not None and timing.is_file():
        work.put(timing, "timing")
    return [root / f"plugin{number}.so" for number in range(len(libraries))]


def _steps(
    subjects: Sequence[Subject],
    target: Target,
    tool: trtexec_tool.Tool,
    plugins: Sequence[PurePath],
    workspace: int | None,
    seconds: int,
) -> Iterable[Step]:
    for subject in subjects:
        if subject.built:
            continue
        command = trtexec.build_command(
            target,
            PurePath(f"{subject.tag}.onnx"),
            PurePath(f"{subject.tag}.engine"),
            shapes=subject.shapes,
            plugins=plugins,
            workspace=workspace,
            timing_cache=PurePath("timing"),
        )
        yield Step(f"building {subject.tag}", tool.run(command), seconds)
    for turn in range(ROUNDS):
        # The order turns, so that what the device does meanwhile hits both alike.
        for subject in subjects if turn % 2 else reversed(subjects):
            engine, out = PurePath(f"{subject.tag}.engine"), PurePath("out")
            command = trtexec.time_command(
                target,
                engine,
                out / f"times_{subject.tag}_{turn}.json",
                shapes=subject.shapes,
                plugins=plugins,
                profile=None if turn else out / f"profile_{subject.tag}.json",
                layers=None if turn else out / f"layers_{subject.tag}.json",
            )
            label = f"timing {subject.tag}, {turn + 1} of {ROUNDS}"
            yield Step(label, tool.run(command), seconds)
    # Last, while the device is still warm.
    yield Step("looking at power mode and clocks")
    yield trtexec_tool.KEEP_TIMING


def _check_logs(work: Workplace, steps: Sequence[Step]) -> None:
    ran = [step for step in steps if step.command]
    for number, step in enumerate(ran, 1):
        if step is not trtexec_tool.KEEP_TIMING:
            trtexec_tool.check_log(work.log(str(number)), step.label)


def _measured(subject: Subject, files: Mapping[str, Path]) -> Measured:
    times = [f"times_{subject.tag}_{turn}.json" for turn in range(ROUNDS)]
    wanted = [*times, f"profile_{subject.tag}.json", f"layers_{subject.tag}.json"]
    for name in wanted:
        if name not in files:
            raise DeviceError(f"trtexec ended well and did not write {name}; nothing was taken")
    *rounds, layer_times, layers = (files[name] for name in wanted)
    return Measured.read(
        subject.name,
        subject.tag,
        subject.batch,
        rounds=rounds,
        profile=layer_times,
        layers=layers,
        traced=subject.traced,
    )


def _keep(place: Path, files: Mapping[str, Path], report: DeviceProfile, timing: Path | None) -> None:
    for name, path in files.items():
        if name.endswith(".json"):
            with atomic(place / name) as file:
                shutil.copyfile(path, file)
    if timing is not None and "timing" in files:
        with atomic(timing) as file:
            shutil.copyfile(files["timing"], file)
    with atomic(place / "profile.json") as file:
        file.write_text(report.json(), encoding="utf-8")


def _is_engine(model: ModelLike) -> bool:
    return not isinstance(model, ir.Model) and Path(model).suffix in (".engine", ".plan", ".trt")


def _tag(model: ModelLike) -> str:
    """A name for the files of a model that every shell and every report takes."""
    name = str(model.graph.name or "model") if isinstance(model, ir.Model) else Path(model).stem
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-") or "model"


@contextmanager
def _made(path: Path | None) -> Iterator[None]:
    """Make a folder before the work, and take away what was made when the work fails."""
    new = [] if path is None else [one for one in (path, *path.parents) if not one.exists()]
    try:
        for one in reversed(new):
            one.mkdir()
    except OSError as cause:
        raise DeviceError(f"--out {path}: the folder cannot be made: {cause.strerror}") from cause
    try:
        yield
    except BaseException:
        for one in new:
            with suppress(OSError):
                one.rmdir()
        raise


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()
