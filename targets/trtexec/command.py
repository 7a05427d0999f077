"""The trtexec command lines that build and measure an engine, for the TensorRT release of a target.

Options that changed their default from 10 to 11 are set so that both measure the same: CUDA graph, spin wait, no
transfers. Nothing here runs trtexec.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from tokenrt.errors import BuildError, TargetError
from tokenrt.targets.profiles.profile import Target
from tokenrt.targets.trtexec.options import MAJORS, read

PINNED: Mapping[int, tuple[str, ...]] = {10: ("--useCudaGraph", "--useSpinWait", "--noDataTransfers"), 11: ()}
"""What makes both majors measure alike. On 11 these are the defaults, and it has switches for the opposite only."""

TYPED: Mapping[int, tuple[str, ...]] = {10: ("--stronglyTyped",), 11: ()}
"""The types are those of the model. 11 knows nothing else."""

OPTIMIZATION_LEVEL, AVERAGE_TIMINGS = 3, 8
WARM_UP_MS, DURATION_S, ITERATIONS = 500, 10, 100

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""Smallest, usual and largest shape of every input that is not static."""


@dataclass(frozen=True)
class Commands:
    """What to run where TensorRT is, in order."""

    target: str
    tensorrt: str
    commands: tuple[tuple[str, ...], ...]
    verbatim: ClassVar[bool] = True
    """Printed without a line being wrapped or cut."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "tensorrt": self.tensorrt,
            "commands": [list(command) for command in self.commands],
        }

    def __str__(self) -> str:
        return "\n".join(map(shell, self.commands))

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(str(self))


def build_command(
    target: Target,
    model: PurePath,
    engine: PurePath,
    *,
    shapes: Shapes | None = None,
    plugins: Iterable[PurePath] = (),
    workspace: int | None = None,
    timing_cache: PurePath | None = None,
) -> tuple[str, ...]:
    """The command that builds `engine` from `model`, which is legal for the target, and measures nothing.

    shapes: of the inputs with a dynamic batch. plugins: libraries with the tokenrt plugins, loaded into the plugin
    registry; the engine needs them again when it runs. workspace: MiB.

    Raises: TargetError for a release nothing is known of.
    """
    major = _major(target)
    return _checked(
        major,
        f"--onnx={model}",
        f"--saveEngine={engine}",
        *TYPED[major],
        *_shapes(shapes or {}),
        *_plugins(plugins),
        *([f"--memPoolSize=workspace:{workspace}"] if workspace is not None else []),
        *([f"--timingCacheFile={timing_cache}"] if timing_cache is not None else []),
        f"--builderOptimizationLevel={OPTIMIZATION_LEVEL}",
        f"--avgTiming={AVERAGE_TIMINGS}",
        "--profilingVerbosity=detailed",
        "--skipInference",
    )


def measure_command(
    target: Target, engine: PurePath, *, shapes: Shapes | None = None, plugins: Iterable[PurePath] = ()
) -> tuple[str, ...]:
    """The command that times `engine` at its usual shapes and writes times, layer profile and layers beside it.

    Raises: TargetError for a release nothing is known of.
    """
    tag = engine.stem
    times, profile, layers = (
        engine.with_name(f"{kind}_{tag}.json") for kind in ("times", "profile", "layers")
    )
    return time_command(target, engine, times, shapes=shapes, plugins=plugins, profile=profile, layers=layers)


def time_command(
    target: Target,
    engine: PurePath,
    times: PurePath,
    *,
    shapes: Shapes | None = None,
    plugins: Iterable[PurePath] = (),
    profile: PurePath | None = None,
    layers: PurePath | None = None,
) -> tuple[str, ...]:
    """The command that times `engine` and writes the times; in a run of its own also the layers and their times.

    Raises: TargetError for a release nothing is known of.
    """
    major = _major(target)
    usual = {name: sizes[len(sizes) // 2] for name, sizes in (shapes or {}).items()}
    return _checked(
        major,
        f"--loadEngine={engine}",
        *([f"--shapes={_spec(usual)}"] if usual else []),
        *_plugins(plugins),
        *PINNED[major],
        "--infStreams=1",
        f"--warmUp={WARM_UP_MS}",
        f"--duration={DURATION_S}",
        f"--iterations={ITERATIONS}",
        "--avgRuns=1",
        "--percentile=50,90,99",
        # The profiler slows the layers it times, so it gets a run of its own.
        *(["--separateProfileRun"] if profile is not None else []),
        f"--exportTimes={times}",
        *([f"--exportProfile={profile}"] if profile is not None else []),
        *([f"--exportLayerInfo={layers}"] if layers is not None else []),
    )


def shell(command: Iterable[str]) -> str:
    """A command as a shell reads it, one option a line."""
    words = [(" \\\n  " if word.startswith("--") else " ") + shlex.quote(word) for word in command]
    return "".join(words).lstrip()


def lower_command(
    target: Target, model: Path, output: Path, *, plugin: bool, release: str | None, folder: Path | None
) -> tuple[str, ...]:
    """The command that writes the form of `model` the target takes."""
    options = ["--target", target.name]
    for name, value in (("--tensorrt", release), ("--targets", folder)):
        options += [] if value is None else [name, str(value)]
    return ("tokenrt", "lower", str(model), "-o", str(output), *options, *["--plugin"] * plugin)


def _major(target: Target) -> int:
    release = target.tensorrt
    if release is None:
        raise TargetError(f"{target.name} has no TensorRT release on record; give one, as --tensorrt 10.15")
    if release[0] not in MAJORS:
        raise TargetError(f"the options of trtexec are known for TensorRT 10 and 11, not for {release[0]}")
    return release[0]


def _checked(major: int, *arguments: str) -> tuple[str, ...]:
    read(arguments, major)
    return ("trtexec", *arguments)


def _plugins(libraries: Iterable[PurePath]) -> list[str]:
    # A name without a folder is looked for where the system keeps its libraries, not here.
    return [f"--dynamicPlugins={'./' * (len(library.parts) == 1)}{library}" for library in libraries]


def _shapes(shapes: Shapes) -> list[str]:
    if not shapes:
        return []
    return [
        f"--{name}={_spec({key: sizes[index] for key, sizes in shapes.items()})}"
        for index, name in enumerate(("minShapes", "optShapes", "maxShapes"))
    ]


def _spec(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name in shapes:
        if set(name) & set(",:'*"):
            raise BuildError(
                f"input {name!r}: trtexec reads , : ' and * in its shapes as its own; rename the input, or fix its "
                "batch when reducing"
            )
    return ",".join(f"{name}:{'x'.join(map(str, sizes))}" for name, sizes in shapes.items())
