"""Compare the methods with vectors recorded from the published implementations.

Run it as a script: `python -m tests.golden.runner`, or `make golden-check`. The vectors lie in the folder
that the environment variable TOKENRT_GOLDEN names, else in ../shared/golden beside the project, else in data/
here (those whose licence allows a copy). One line a method; the exit status is 1 when any case fails, 2 when
there are no vectors.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.checks import checks
from tests.golden.compare import Unsupported
from tokenrt.passes.methods.systems import NO_REWRITE

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "data"
BESIDE = HERE.parents[2] / "shared" / "golden"
MANIFESTS = "manifest*.json"
BACKENDS = ("numpy", "onnxruntime")
CHECKS = checks()
ARCHITECTURE = "no rewrite of a graph"
"""Vectors of a system that docs/systems.md gives a reason for being no method."""


@dataclass(frozen=True)
class Outcome:
    """How one case ended: passed, failed, unsupported or no rewrite of a graph, and why."""

    method: str
    case: str
    status: str
    reason: str = ""


def folder() -> Path:
    """Return the folder of vectors. Raises: FileNotFoundError when TOKENRT_GOLDEN names none."""
    named = os.environ.get("TOKENRT_GOLDEN")
    if named:
        if not any(Path(named).glob(MANIFESTS)):
            raise FileNotFoundError(f"TOKENRT_GOLDEN={named} holds no manifest.json, nor any {MANIFESTS}")
        return Path(named)
    return next(path for path in (BESIDE, COMMITTED) if (path / "manifest.json").is_file())


def run(root: Path) -> Iterator[Outcome]:
    """Run every case of every manifest in `root`."""
    for manifest in sorted(root.glob(MANIFESTS)):
        listed = json.loads(manifest.read_text())["methods"]
        entries = (
            listed.items() if isinstance(listed, dict) else ((entry["method"], entry) for entry in listed)
        )
        for method, entry in entries:
            cases = entry["cases"]
            for name, case in cases.items() if isinstance(cases, dict) else enumerate(cases):
                yield _run_case(root, method, str(case.get("case", name)), case)


def _run_case(root: Path, method: str, name: str, case: Mapping[str, Any]) -> Outcome:
    if method not in CHECKS:
        known = next((why for system, why in NO_REWRITE.items() if system.lower() == method), "")
        if known:
            return Outcome(method, name, ARCHITECTURE, known)
        return Outcome(method, name, "unsupported", "no such method in this version")
    try:
        with np.load(root / (case.get("file") or case["path"])) as file:
            arrays = {key: file[key] for key in file.files}
        for backend in BACKENDS:
            CHECKS[method](arrays, case.get("params", {}), backend)
    except Unsupported as reason:
        return Outcome(method, name, "unsupported", str(reason))
    except Exception as reason:  # one case that cannot be read or compared must not end the others
        return Outcome(method, name, "failed", f"{type(reason).__name__}: {reason}")
    return Outcome(method, name, "passed")


def main() -> int:
    """Print one line a method and the totals."""
    try:
        root = folder()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = list(run(root))
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.method == method]
        print(f"{method:24s} {_totals(own)}")
        for outcome in own:
            if outcome.status != "passed" and (outcome.status != "unsupported" or method in CHECKS):
                print(f"    {outcome.case}: {outcome.status}: {outcome.reason}")
    print(_totals(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _totals(outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    named = ("passed", "failed", "unsupported", *([ARCHITECTURE] if counts[ARCHITECTURE] else []))
    return ", ".join(f"{counts[status]} {status}" for status in named)


if __name__ == "__main__":
    sys.exit(main())
