"""The demonstration as a benchmark: tokens, work, time and agreement of its variants, without engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tokenrt.files import atomic
from tokenrt.perf.bench import results
from tokenrt.perf.demo import demo
from tokenrt.perf.demo.report import FRONT, DemoReport, Row
from tokenrt.perf.profile.timing import QUOTED, default_threads

PICTURE = Path("docs/images/demo.jpg")
SECONDS = {1: 40.0, 4: 100.0}
"""Time for each batch size, for all rounds to be run even on a slow machine."""

HEAD = (
    "method and budget",
    "tokens:",
    "work:",
    "time, batch 1:",
    "95 % interval",
    "time, batch 4:",
    "95 % interval",
    "agreement, median:",
    "agreement, least:",
    "check",
)


@dataclass(frozen=True)
class Demonstration:
    """What a run of the demonstration measured."""

    report: DemoReport

    def as_dict(self) -> dict[str, Any]:
        told = self.report.as_dict()
        return {
            "model": told["model"],
            "photographs": told["photographs"],
            "threads": default_threads(),
            "rows": [_row(row) for row in self.report.rows],
        }

    def __rich__(self) -> Any:
        return self.report.table()

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        model = self.report.as_dict()["model"]
        told = (
            f"The saliency model of {model['package']} {model['version']} (DINOv2 ViT-S/14, trained), reduced as `tokenrt demo` "
            f"reduces it, on {len(self.report.photographs)} photographs ({', '.join(p.name for p in self.report.photographs)}). "
            "Made by `python -m tokenrt.perf.bench demo`."
        )
        meaning = (
            "tokens: in the first block and behind the last. work: multiply-accumulates over the original's, as the plan counts "
            f"them. time: over the original's, in ONNX Runtime on the CPU with {default_threads()} threads, median of the "
            f"ratios of paired runs; one whose interval is wider than {QUOTED:.0%} of it (a busy machine) is quoted nowhere "
            "else. agreement: correlation of a photograph's saliency map with the original model's, over the photograph without "
            "its black border. "
            "check: what `tokenrt check` says of the first photographs."
        )
        table = results.table(HEAD, [_cells(row) for row in self.report.rows])
        return "\n\n".join(["# The demonstration", told, table, meaning, results.told(where)])


def _row(row: Row) -> dict[str, Any]:
    keys = (
        "key",
        "method",
        "budget",
        "macs_ratio",
        "correlation",
        "correlation_with_border",
        "check",
        "time_ratio",
    )
    whole = row.as_dict()
    return {**{key: whole[key] for key in keys}, "tokens": [row.plan.counts()[0], row.plan.counts()[-1]]}


def _cells(row: Row) -> list[str]:
    counts = row.plan.counts()
    cells = [f"`{row.method} {row.options}`", f"{counts[0]} → {counts[-1]}", f"{row.work:.3f}"]
    for ratio in row.speed.values():
        cells += [f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"]
    agreement = row.inside.values()
    return [*cells, f"{median(agreement):.4f}", f"{min(agreement):.4f}", "failed" if row.check else "ok"]


def run(picture: Path = PICTURE) -> Demonstration:
    """Run the demonstration on all photographs, and keep the picture of the front page as `picture`."""
    with TemporaryDirectory(prefix="tokenrt-demo-") as folder:
        report = demo.run(folder, targets=(), seconds=SECONDS)
        picture.parent.mkdir(parents=True, exist_ok=True)
        with atomic(picture) as temporary:
            temporary.write_bytes((Path(folder) / FRONT).read_bytes())
    return Demonstration(report)
