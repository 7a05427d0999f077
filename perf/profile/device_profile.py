"""What engines' own files say of a reduction: time before and after, per block, fusions lost, layouts changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.perf.profile import engine_blocks, groups, timing
from tokenrt.perf.profile.engine_blocks import Trace
from tokenrt.targets.trtexec.files import read_layers, read_profile, read_times


@dataclass(frozen=True)
class Measured:
    """One engine: GPU milliseconds of its runs, round by round, and of its layers under the profiler, by group.

    fused: whether the attention of a block is one layer. reformats: how many layers only change a layout or type, and
    their milliseconds.
    """

    name: str
    tag: str
    batch: int
    rounds: tuple[tuple[float, ...], ...]
    groups: Mapping[str, float]
    fused: Mapping[str, bool]
    reformats: tuple[int, float]
    layers: int

    @classmethod
    def read(
        cls,
        name: str,
        tag: str,
        batch: int,
        *,
        rounds: Sequence[Path],
        profile: Path,
        layers: Path,
        traced: Trace,
    ) -> Measured:
        """From the files of --exportTimes of every round, --exportProfile and --exportLayerInfo. Raises: DeviceError."""
        times, engine = read_profile(profile), read_layers(layers).layers
        return cls(
            name,
            tag,
            batch,
            tuple(read_times(path).compute for path in rounds),
            engine_blocks.add_up(engine, times, traced),
            engine_blocks.fused_attention(engine, traced),
            engine_blocks.reformats(engine, times),
            len(engine),
        )

    @property
    def medians(self) -> tuple[float, ...]:
        return tuple(float(np.median(runs)) for runs in self.rounds)

    @property
    def milliseconds(self) -> float:
        """The median over the rounds of the median run."""
        return float(np.median(self.medians))

    @property
    def percentiles(self) -> dict[str, float]:
        """Over the runs of all rounds."""
        runs = np.concatenate([np.asarray(part) for part in self.rounds])
        return {f"p{share}": float(np.percentile(runs, share)) for share in (50, 90, 99)}

    def as_dict(self) -> dict[str, Any]:
        count, spent = self.reformats
        return {
            "model": self.name,
            "tag": self.tag,
            "batch": self.batch,
            "milliseconds": round(self.milliseconds, 4),
            "rounds": [round(median, 4) for median in self.medians],
            "runs": sum(map(len, self.rounds)),
            "percentiles": {name: round(value, 4) for name, value in self.percentiles.items()},
            "layers": self.layers,
            "layer_milliseconds": round(sum(self.groups.values()), 4),
            "reformat_layers": count,
            "reformat_milliseconds": round(spent, 4),
            "fused_attention": dict(self.fused),
        }


@dataclass(frozen=True)
class DeviceProfile:
    """An engine's times, with those of the original's where it was given."""

    target: str
    machine: str
    tensorrt: str
    model: Measured
    original: Measured | None
    ratio: timing.Ratio | None
    notes: tuple[str, ...]
    device: Mapping[str, str]
    folder: Path | None

    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Every group with its milliseconds in the original and in the model, in the order of the engines."""
        before: Mapping[str, float] = {} if self.original is None else self.original.groups
        names = dict.fromkeys([*self.model.groups, *before])
        return [(name, before.get(name), self.model.groups.get(name)) for name in names]

    @property
    def reduction(self) -> float:
        """Milliseconds in what the reduction put into the model."""
        return sum(time for name, time in self.model.groups.items() if groups.of_the_reduction(name))

    @property
    def lost_fusions(self) -> tuple[str, ...]:
        """Blocks whose attention is one layer in the original and several in the model."""
        if self.original is None:
            return ()
        return tuple(
            block
            for block, one in self.original.fused.items()
            if one and self.model.fused.get(block) is False
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "machine": self.machine,
            "tensorrt": self.tensorrt,
            "ratio": None if self.ratio is None else self.ratio.as_dict(),
            "model": self.model.as_dict(),
            "original": None if self.original is None else self.original.as_dict(),
            "reduction_milliseconds": round(self.reduction, 4),
            "lost_attention_fusions": list(self.lost_fusions),
            "groups": [
                {"group": name, "original_milliseconds": _round(before), "milliseconds": _round(after)}
                for name, before, after in self.rows()
            ],
            "device": dict(self.device),
            "notes": list(self.notes),
            "folder": None if self.folder is None else str(self.folder),
        }

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shares = ", ".join(f"{name} {value:.3f}" for name, value in self.model.percentiles.items())
        told = (
            f"{self.model.name}: {self.model.milliseconds:.3f} ms on the GPU ({shares}), batch {self.model.batch}, "
            f"{self.target} on {self.machine}, TensorRT {self.tensorrt}"
        )
        if self.ratio is not None:
            told += (
                f"\n{self.ratio.median:.3f} of the original's {self.ratio.base_milliseconds:.3f} ms, 95 % interval "
                f"{self.ratio.low:.3f} to {self.ratio.high:.3f}, {self.ratio.rounds} rounds in turn"
            )
        table = Table("where", "original, ms", "here, ms", box=None, pad_edge=False)
        for name, before, after in self.rows():
            table.add_row(name, *("" if time is None else f"{time:.3f}" for time in (before, after)))
        return Group(Text(told), table, Text("\n".join(self._remarks())))

    def _remarks(self) -> list[str]:
        count, spent = self.model.reformats
        was = "" if self.original is None else f"; {self.original.reformats[0]} in the original"
        lines = [
            f"{self.reduction:.3f} ms in the reduction, layers timed one by one",
            f"{count} layer{'s' * (count != 1)} that only change a layout or type, {spent:.3f} ms{was}",
        ]
        if self.lost_fusions:
            lines.append(f"attention is no longer one layer in {', '.join(self.lost_fusions)}")
        for tool, text in self.device.items():
            first = [line.strip() for line in text.splitlines() if line.strip()][-1:]
            lines.append(f"{tool}: {' '.join(first)}")
        if self.folder is not None:
            lines.append(f"trtexec's files: {self.folder}")
        return [*lines, *(f"note: {note}" for note in self.notes)]


def compare(
    model: Measured,
    original: Measured | None = None,
    *,
    target: str,
    machine: str,
    tensorrt: str,
    notes: Sequence[str] = (),
    device: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> DeviceProfile:
    """The profile of a model beside that of the original, round by round."""
    ratio = None
    if original is not None:
        ratios = [own / base for own, base in zip(model.medians, original.medians, strict=True)]
        low, high = timing.interval(ratios)
        ratio = timing.Ratio(
            "reduced",
            "original",
            float(np.median(ratios)),
            low,
            high,
            len(ratios),
            model.milliseconds,
            original.milliseconds,
        )
    return DeviceProfile(
        target, machine, tensorrt, model, original, ratio, tuple(notes), device or {}, folder
    )


def _round(time: float | None) -> float | None:
    return None if time is None else round(time, 4)
