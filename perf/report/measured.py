"""What the rooms beside this one measure, as a document has it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenrt.passes.checking.check import CheckReport
from tokenrt.perf.planner.costs import Cost
from tokenrt.perf.profile.machine import processor
from tokenrt.perf.profile.profile import Profile
from tokenrt.perf.report.document import Check, Part, Time, Work


def work(cost: Cost) -> Work:
    """A counted cost as a document has it."""
    return Work(cost.batch, cost.macs, cost.moved, cost.weights, cost.peak)


def time_of(made: Profile) -> Time:
    """A profile of this machine as a document has it."""
    where = f"ONNX Runtime on this CPU ({processor()}), {made.threads} threads, batch {made.batch}"
    parts = [Part(name, before, after) for name, before, after in made.rows()]
    ratio = made.ratio
    if ratio is None:
        return Time(where, "measured", parts=parts)
    return Time(
        where,
        "measured",
        ratio.median,
        ratio.low,
        ratio.high,
        ratio.base_milliseconds,
        ratio.milliseconds,
        parts,
    )


def check_of(report: CheckReport, data: str) -> Check:
    """A check as a document has it."""
    drift = [
        f"output {each.output}: "
        + ", ".join(
            f"{what} {value:.5f}"
            for what, value in (("least cosine", each.cosine_min), ("relative L2", each.relative_l2))
            if value is not None
        )
        for each in report.outputs
    ]
    return Check(report.ok, report.reasons, report.samples, data, [*drift, *map(str, report.properties)])


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
