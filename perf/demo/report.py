"""What came of the demonstration: rows of its summary table, and the manifest of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tokenrt.files import atomic
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.demo import subject
from tokenrt.perf.profile.timing import Ratio, default_threads
from tokenrt.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

    from tokenrt.perf.planner.costs import Cost
    from tokenrt.perf.report.document import Change

MANIFEST = "manifest.json"
FRONT = "pictures/front.jpg"
CHECKED = 2
"""Photographs the check runs on; what the models make of all of them is compared anyway."""

PAGE, DOCUMENT = "report.html", "report.json"
PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx-cu13-bindings",
    subject.WHEEL,
    subject.PICTURES,
)


@dataclass(frozen=True)
class Variant:
    """One way of reducing the model; `options` is its budget as the command line says it."""

    key: str
    method: str
    budget: Budget
    options: str

    @property
    def title(self) -> str:
        """The first option, for the head of a column."""
        return f"{self.method} --{self.options.split('--')[1].strip()}"

    @property
    def note(self) -> str:
        """The options that are not in the title."""
        return "".join(f"{rest.strip()}, " for rest in self.options.split("--")[2:])


@dataclass(frozen=True)
class EngineResult:
    """An engine, or the reason why there is none."""

    built: bool
    reason: str = ""
    seconds: float = 0.0
    bytes: int = 0
    sha256: str = ""
    kept: bool = False

    def as_dict(self) -> dict[str, Any]:
        if not self.built:
            return {"built": False, "reason": self.reason}
        return {**vars(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Row:
    """One reduced model: its plan, its correlations by photograph, and what was measured.

    inside, whole: correlation of the saliency maps over the photograph, and over the model's whole output
    with the black border around the photograph. became: what happened to the patches of each photograph, site by site.
    """

    key: str
    method: str
    options: str
    plan: Plan
    inside: Mapping[str, float]
    whole: Mapping[str, float]
    check: tuple[str, ...] | None = None
    speed: Mapping[int, Ratio] = field(default_factory=dict)
    engines: Mapping[str, EngineResult] = field(default_factory=dict)
    became: Sequence[Sequence[Change]] = ()
    cost: Cost | None = None

    @property
    def model(self) -> str:
        return f"{self.key}.onnx"

    @property
    def work(self) -> float:
        """Multiply-accumulates, as a share of the original's."""
        return self.plan.macs_after / self.plan.macs_before

    def checked(self, reasons: tuple[str, ...]) -> Row:
        return replace(self, check=reasons)

    def timed(self, speed: Mapping[int, Ratio]) -> Row:
        return replace(self, speed=speed)

    def built(self, engines: Mapping[str, EngineResult]) -> Row:
        return replace(self, engines=engines)

    def told(self) -> str:
        """The row in one line, for the progress."""
        counts = self.plan.counts()
        return f"{counts[0]} -> {counts[-1]} tokens, {self.work:.1%} of the work, {self.agreement()}"

    def agreement(self) -> str:
        """How like the original's the saliency maps are."""
        return (
            f"median correlation {median(self.inside.values()):.4f} over the photographs, "
            f"{median(self.whole.values()):.4f} with the black borders around them"
        )

    def measured(self) -> str:
        """Work, time at the smallest batch where it is sure, and agreement over all photographs: a line for a picture."""
        batch = min(self.speed, default=0)
        sure = batch > 0 and self.speed[batch].sure
        time = f"{self.speed[batch].median:.2f} of the time (batch {batch}, CPU), " if sure else ""
        agree = f"saliency correlation {median(self.inside.values()):.3f} (median of {len(self.inside)})"
        return f"{self.work:.2f} of the work, {time}{agree}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "model": self.model,
            "method": self.method,
            "budget": self.options,
            "plan": self.plan.as_dict(),
            "tokens_left": self.plan.counts()[-1],
            "macs_ratio": round(self.work, 4),
            "correlation": _summary(self.inside),
            "correlation_with_border": _summary(self.whole),
            "check": None if self.check is None else {"ok": not self.check, "reasons": list(self.check)},
            "time_ratio": {str(batch): ratio.as_dict() for batch, ratio in self.speed.items()},
            "engines": {target: engine.as_dict() for target, engine in self.engines.items()},
        }


@dataclass(frozen=True)
class DemoReport:
    """The summary of a demonstration, and where its files are."""

    out: Path
    source: Path
    photographs: tuple[subject.Photograph, ...]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def manifest(self) -> Path:
        return self.out / MANIFEST

    def files(self) -> list[Path]:
        """Everything the demonstration writes but the manifest; some engines are deleted again."""
        names = [name for row in self.rows for name in (row.model, f"{row.key}.toml")]
        names += [
            f"pictures/{name}.png" for name in ("overview", *(photo.name for photo in self.photographs))
        ]
        names += [FRONT, PAGE, DOCUMENT]
        engines = [f"engines/{row.key}.{target}.engine" for row in self.rows for target in row.engines]
        return [self.out / name for name in (*names, *engines, *(f"{name}.json" for name in engines))]

    def as_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "manifest": str(self.manifest),
            "model": {
                "package": subject.WHEEL,
                "version": subject.version(subject.WHEEL),
                "file": subject.MODEL,
            },
            "photographs": [photo.name for photo in self.photographs],
            "threads": default_threads(),
            "variants": [row.as_dict() for row in self.rows],
            "seconds": round(self.seconds, 1),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        lines = [f"{row.method} {row.options}: {row.agreement()}" for row in self.rows]
        for row in self.rows:
            lines += [f"{row.key}: the check says: {reason}" for reason in row.check or ()]
        lines += self._engines()
        last = f"written to {self.out}: {PAGE}, models, plans, pictures, engines, {MANIFEST}; {self.seconds:.0f} s in all"
        return Group(self.table(), *map(Text, lines), Text(last))

    def _engines(self) -> list[str]:
        """Targets with their engines, then every engine that was not built and why."""
        built = dict.fromkeys(
            name for row in self.rows for name, engine in row.engines.items() if engine.built
        )
        kept = [path.name for path in self.files() if path.suffix == ".engine" and path.is_file()]
        lines = [f"engines built for {', '.join(built)}; {len(kept)} of them are kept"] if built else []
        missing = {
            (name, engine.reason): row.key
            for row in self.rows
            for name, engine in row.engines.items()
            if not engine.built
        }
        return lines + [f"{key}: no engine for {name}: {reason}" for (name, reason), key in missing.items()]

    def table(self) -> Table:
        from rich import box
        from rich.table import Table

        tokens = self.rows[0].plan.tokens if self.rows else 0
        table = Table(
            title=f"{subject.WHEEL}: DINOv2 ViT-S/14 saliency, {tokens} tokens, {len(self.photographs)} photographs",
            caption="corr.: saliency against the unreduced model; time: median of paired ratios to it (batch b, "
            f"ONNX Runtime CPU, {default_threads()} threads)",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=0,
        )
        table.add_column("method\nand budget", no_wrap=True)
        for head in ("tokens\nleft", "MACs\nratio", "corr.\nmedian", "corr.\nleast"):
            table.add_column(head, justify="right")
        batches = list(dict.fromkeys(batch for row in self.rows for batch in row.speed))
        for batch in batches:
            table.add_column(f"time\nb={batch}", justify="right")
        table.add_column("check")
        table.add_column("engines")
        for row in self.rows:
            table.add_row(
                f"{row.method}\n{row.options.replace('--', '')}",
                str(row.plan.counts()[-1]),
                f"{row.work:.3f}",
                f"{median(row.inside.values()):.4f}",
                f"{min(row.inside.values()):.4f}",
                *(f"{row.speed[batch].median:.3f}" if batch in row.speed else "-" for batch in batches),
                "-" if row.check is None else "failed" if row.check else "ok",
                f"{sum(engine.built for engine in row.engines.values())} of {len(row.engines)}",
            )
        return table


def write_manifest(report: DemoReport) -> None:
    """Write the report with versions and every file's digest beside the files."""
    files = [path for path in report.files() if path.is_file()]
    document = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **report.as_dict(),
        "out": ".",
        "manifest": MANIFEST,
        "source": {
            "file": subject.MODEL,
            "bytes": report.source.stat().st_size,
            "sha256": digest(report.source),
        },
        "pictures_of": {
            photo.name: {"file": photo.file.name, "sha256": digest(photo.file)}
            for photo in report.photographs
        },
        "versions": _versions(),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "processors": os.cpu_count(),
        },
        "files": {
            path.relative_to(report.out).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in files
        },
    }
    with atomic(report.manifest) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    """The file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {package: subject.version(package) for package in PACKAGES}
    installed = {package: version for package, version in found.items() if version is not None}
    return {"python": platform.python_version(), "tokenrt": __version__, **installed}


def _summary(values: Mapping[str, float]) -> dict[str, Any]:
    return {
        "median": round(median(values.values()), 6),
        "least": round(min(values.values()), 6),
        "by_photograph": {name: round(value, 6) for name, value in values.items()},
    }
