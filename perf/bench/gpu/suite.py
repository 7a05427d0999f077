"""The tests on a GPU, as a step of `make gpu`: pytest in a process of its own, its counts read from its report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tokenrt.perf.bench.gpu.card import Card
from tokenrt.perf.bench.gpu.deadline import Deadline

ROOT = Path(__file__).parents[3]
SHARE = 0.5
"""Of the time that is left, which the tests may take."""


def run(card: Card | None, deadline: Deadline, folder: Path = ROOT / "tests" / "gpu") -> dict[str, Any]:
    """Run the tests of a folder: how many passed, failed and were skipped, and the names of those that failed."""
    if not folder.is_dir():
        return {"failed": 0, "complete": False, "left_out": f"there is no {folder}: run from a checkout"}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            str(folder),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=SHARE * max(deadline.left(), 1),
            )
        except subprocess.TimeoutExpired:
            return {
                "failed": 0,
                "complete": False,
                "left_out": f"the tests took more than {SHARE:.0%} of the time",
            }
        if not report.is_file():
            return {"failed": 1, "complete": False, "left_out": " ".join(done.stdout.split())[-300:]}
        return counted(report.read_text(encoding="utf-8"))


def counted(xml: str) -> dict[str, Any]:
    """What a JUnit report says."""
    cases = [*ElementTree.fromstring(xml).iter("testcase")]
    states = [{child.tag for child in case} for case in cases]
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case, state in zip(cases, states, strict=True)
        if state & {"failure", "error"}
    ]
    skipped = sum("skipped" in state for state in states)
    passed = len(cases) - len(bad) - skipped
    return {"failed": len(bad), "complete": True, "passed": passed, "skipped": skipped, "names": bad[:20]}
