"""Compare a reduced model with its original: the ratio of their times, and where it is. ONNX Runtime on this CPU is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tokenrt.errors import TargetError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.graph.model import ModelLike, load, on_disk
from tokenrt.perf.profile import groups, node_profile, timing
from tokenrt.perf.profile.node_profile import NodeProfile
from tokenrt.targets import Target
from tokenrt.targets import load as load_target
from tokenrt.targets.trtexec import tool
from tokenrt.targets.trtexec.machine import Here, Machine

if TYPE_CHECKING:
    from tokenrt.perf.profile.device_profile import DeviceProfile

HERE = "ort-cpu"
REPEATS, ROUNDS = 12, 8
"""Times the sessions are made anew, and rounds with each: where their memory lies changes their speed while they live."""

PROFILED = 20
"""Runs under the profiler, at least."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """Times of a model, with those of the original where it was given."""

    model: str
    target: str
    batch: int
    threads: int
    ratio: timing.Ratio | None
    nodes: NodeProfile
    original: NodeProfile | None

    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Every group with its milliseconds in the original and in the model, in the order of the model."""
        before: Mapping[str, float] = {} if self.original is None else self.original.groups
        names = dict.fromkeys([*self.nodes.groups, *before])
        return [(name, before.get(name), self.nodes.groups.get(name)) for name in names]

    @property
    def reduction(self) -> float:
        """Milliseconds in what the reduction put into the model."""
        return sum(time for name, time in self.nodes.groups.items() if groups.of_the_reduction(name))

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target,
            "batch": self.batch,
            "threads": self.threads,
            "ratio": None if self.ratio is None else self.ratio.as_dict(),
            "milliseconds": round(self.nodes.total, 3),
            "original_milliseconds": None if self.original is None else round(self.original.total, 3),
            "reduction_milliseconds": round(self.reduction, 3),
            "covered": round(self.nodes.covered, 4),
            "groups": [
                {"group": name, "original_milliseconds": _round(before), "milliseconds": _round(after)}
                for name, before, after in self.rows()
            ],
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("where", "original, ms", "here, ms", box=None, pad_edge=False)
        for name, before, after in self.rows():
            table.add_row(name, *("" if time is None else f"{time:.2f}" for time in (before, after)))
        told = f"{self.model}: batch {self.batch}, {self.threads} threads, {self.nodes.total:.2f} ms under the profiler"
        if self.ratio is not None:
            low, high = self.ratio.low, self.ratio.high
            told += (
                f"\n{self.ratio.median:.3f} of the original's time, 95 % interval {low:.3f} to {high:.3f}, "
                f"{self.ratio.rounds} rounds in pairs"
            )
        spent = f"\n{self.reduction:.2f} ms in the reduction; the table covers {self.nodes.covered:.1%} of the time"
        return Group(Text(told), table, Text(spent))


def profile(
    model: ModelLike,
    *,
    original: ModelLike | None = None,
    target: str | Target = HERE,
    batch: int = 1,
    rounds: int = ROUNDS,
    threads: int | None = None,
    machine: Machine | None = None,
    progress: Told | None = None,
    **device: Any,
) -> Profile | DeviceProfile:
    """Time `model` in pairs with `original`, and say which blocks the time is in.

    On "ort-cpu" that is ONNX Runtime on this CPU; for a target that TensorRT builds for, trtexec builds and times both
    on `machine`: here when left out, or `tokenrt.targets.trtexec.machine.host("user@jetson")`. Further options there are
    those of `tokenrt.perf.profile.device.profile`.

    original: the model before reduction. Without it there is no ratio, and blocks are those of a model that is
    not reduced. rounds: in each of twelve repeats. threads: of one operator; four at most when left out; both for
    ONNX Runtime.

    Raises: TargetError for a target that does not run here; TokenrtError when the runtime refuses a model; DeviceError,
        BuildError for what fails on the machine.
    """
    chosen = load_target(target) if isinstance(target, str) else target
    if chosen.builder == "tensorrt" and (machine is not None or device.get("tool") or tool.find()):
        from tokenrt.perf.profile import device as on_device

        return on_device.profile(
            model,
            original=original,
            target=chosen,
            machine=machine or Here(),
            batch=batch,
            tell=progress or (lambda stage: None),
            **device,
        )
    if chosen.name != HERE:
        raise TargetError(
            f"{chosen.name} does not run here: there is no trtexec. --host USER@DEVICE runs it there over ssh; or run the "
            f"last command of `tokenrt build ... --target {chosen.name} --print` on the device"
            if chosen.builder == "tensorrt"
            else f"{chosen.name} does not run here: profile runs {HERE}, and targets that TensorRT builds for"
        )
    if machine is not None:
        raise TargetError(f"{HERE} is this machine: --host goes with a target that TensorRT builds for")
    tell = progress or (lambda stage: None)
    count = threads or timing.default_threads()
    tell("finding the blocks")
    prepared = prepare(model if original is None else original)
    known = groups.groups_of(prepared)
    ratio = None
    if original is not None:
        tell("timing both in turn")
        with on_disk(original) as first, on_disk(model) as second:
            ratio = timing.compare_afresh(
                lambda: {"original": _run(first, count, batch), "reduced": _run(second, count, batch)},
                base="original",
                rounds=rounds,
                repeats=REPEATS,
            )["reduced"]
    tell("timing the nodes")
    asked = {"batch": batch, "runs": max(rounds, PROFILED), "threads": count}
    whole = None if original is None else node_profile.profile(prepared.model, known, **asked)
    nodes = node_profile.profile(prepared.model if original is None else load(model), known, **asked)
    name = str(model.graph.name or "model") if isinstance(model, ir.Model) else os.fspath(model)
    return Profile(name, chosen.name, batch, count, ratio, nodes, whole)


def _run(model: Path, threads: int, batch: int) -> timing.Run:
    opened = timing.session(model, threads=threads)
    return timing.runner(opened, timing.feeds(opened, batch))


def _round(time: float | None) -> float | None:
    return None if time is None else round(time, 4)
