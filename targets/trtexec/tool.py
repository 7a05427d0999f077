"""Build an engine with trtexec, where it is and TensorRT's Python bindings are not, and take nothing but a whole one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import onnx_ir as ir

from tokenrt.errors import BuildError, DeviceError
from tokenrt.files import atomic
from tokenrt.passes.graph.model import save
from tokenrt.targets.engines.batch import Batch, shapes_of
from tokenrt.targets.profiles.profile import Target
from tokenrt.targets.rtx.builder import Engine, Port, Progress
from tokenrt.targets.trtexec import command as trtexec
from tokenrt.targets.trtexec.files import release
from tokenrt.targets.trtexec.machine import Here
from tokenrt.targets.trtexec.workplace import Step, Workplace, workplace

JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
BUILD_S = 3600
"""Bound of one build, in seconds."""

PASSED = "&&&& PASSED TensorRT.trtexec"
REFUSED = "Engine deserialization failed"
"""Written by releases that go on to say that they passed."""


@dataclass(frozen=True)
class Tool:
    """A trtexec: where it is, its release, and what is to be said of the two."""

    path: str
    release: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    def run(self, command: Iterable[str]) -> tuple[str, ...]:
        """A command with this trtexec as its program."""
        return (self.path, *[*command][1:])

    @property
    def version(self) -> str:
        return ".".join(map(str, self.release))


def find() -> Path | None:
    """The trtexec of this machine: on the path, or where JetPack keeps it."""
    found = shutil.which("trtexec")
    return Path(found) if found else JETPACK if JETPACK.is_file() else None


def version(path: Path) -> str:
    """The release of a trtexec here. Raises: BuildError where it does not start."""
    try:
        told = subprocess.run(
            [path, "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise BuildError(f"{path} does not start: {cause}") from cause
    found = release(told.stdout + told.stderr)
    if found is None:
        raise BuildError(
            f"{path} --help does not tell its release: {(told.stderr or told.stdout).strip()[:200]}"
        )
    return ".".join(map(str, found))


def tool(place: Workplace, target: Target) -> Tool:
    """The trtexec a machine has. Raises: DeviceError where there is none, or not one for the target's major."""
    name, path = place.machine.name, place.facts.get("trtexec")
    if not path:
        raise DeviceError(
            f"{name} has no trtexec, neither on the path of a login without a terminal nor at {JETPACK}: install "
            "TensorRT there (on a Jetson: apt-get install tensorrt), or say where it is with --trtexec"
        )
    found = release(place.facts.get("banner", ""))
    if found is None:
        raise DeviceError(
            f"{path} on {name} does not start, or does not tell its release: run `{path} --help` there"
        )
    wanted = target.tensorrt or found
    there, profiled = f"{found[0]}.{found[1]}", ".".join(map(str, wanted))
    if found[0] != wanted[0]:
        raise DeviceError(
            f"{name} has TensorRT {there}, and {target.name} is profiled with {profiled}, which takes other options and "
            f"models: give --tensorrt {there}"
        )
    notes = (
        [] if found[:2] == wanted[:2] else [f"{name} has TensorRT {there}; the model was made for {profiled}"]
    )
    return Tool(path, found, tuple(notes))


def compile_engine(
    model: ir.Model,
    output: Path,
    *,
    target: Target,
    batch: Batch | None,
    workspace: int | None = None,
    plugins: Iterable[Path] = (),
    timing_cache: Path,
    verbose: bool = False,
    progress: Progress = lambda stage: None,
) -> Engine:
    """Build `model`, which is legal for the target, and write the engine to `output`.

    timing_cache: taken when it is there, and left there for the next build.

    Raises: BuildError with trtexec's own words; DeviceError for a trtexec of another major.
    """
    shapes = shapes_of(model, batch)
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder, workplace(Here(), tell=progress) as place:
        found = tool(place, target)
        for file in written(model, Path(folder), "model"):
            place.put(file, file.name)
        if timing_cache.is_file():
            place.put(timing_cache, "timing")
        command = trtexec.build_command(
            target,
            PurePath("model.onnx"),
            PurePath("out/engine"),
            shapes=shapes,
            plugins=[library.resolve() for library in plugins],
            workspace=workspace,
            timing_cache=PurePath("timing"),
        )
        place.run([Step(f"building for {target.name}", found.run(command), BUILD_S), KEEP_TIMING])
        log = place.log("1")
        if verbose:
            print(log, file=sys.stderr)
        check_log(log, "building")
        for file in place.fetch(Path(folder), ["engine"]):
            if not file.stat().st_size:
                raise BuildError("trtexec says it passed and wrote an empty engine; nothing was taken")
            shutil.copyfile(file, output)
        keep_timing(place, Path(folder), timing_cache)
    inputs, outputs = (
        tuple(
            _port(value, shapes.get(str(value.name)))
            for value in side
            if value.name not in model.graph.initializers
        )
        for side in (model.graph.inputs, model.graph.outputs)
    )
    return Engine(inputs, outputs, found.notes, {"trtexec": list(command[1:])})


KEEP_TIMING = Step("keeping the timing cache", ("sh", "-c", "test ! -e timing || cp timing out/timing"))


def written(model: ir.Model, folder: Path, name: str) -> list[Path]:
    """The files of a model, written into a folder under a name."""
    path = save(model, folder / f"{name}.onnx")
    return [path, *filter(Path.exists, [path.with_name(path.name + ".data")])]


def keep_timing(place: Workplace, folder: Path, timing_cache: Path) -> None:
    """Put the timing cache where the next build finds it."""
    if "timing" in place.results():
        with atomic(timing_cache) as file:
            shutil.copyfile(place.fetch(folder, ["timing"])[0], file)


def check_log(log: str, work: str) -> None:
    """Raises: BuildError where trtexec ended well without saying so, or says so of an engine it could not read."""
    if PASSED not in log or REFUSED in log:
        lines = [line.strip() for line in log.splitlines() if "[E]" in line] or log.split("\n")[-1:]
        raise BuildError(
            f"trtexec ended {work} without having passed: {lines[-1][:300] or 'it printed nothing'}"
        )


def _port(value: ir.Value, shapes: tuple[tuple[int, ...], ...] | None) -> Port:
    static = tuple(size for size in value.shape or () if isinstance(size, int))
    kind = "unknown" if value.dtype is None else value.dtype.name.lower()
    return Port(str(value.name), kind, shapes or (static,))
