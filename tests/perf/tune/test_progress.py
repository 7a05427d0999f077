"""What is told of a search: the time left is that of all plans that may still come, at the pace of those that were run."""

from __future__ import annotations

import pytest

from tokenrt.perf.planner import pace
from tokenrt.perf.planner.pace import Pace
from tokenrt.perf.tune.progress import Progress


def test_time_left_counts_the_stages_ahead_and_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told, run = [0.0], list[str](), Pace()
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    progress = Progress(told.append, run)
    progress.expect({"rules": 3, "shapes": 30, "changes": 2})

    def judged(what: str) -> None:
        clock[0] += 10
        run.one()
        progress.one(what)

    progress.begin("rules")
    progress.one("known before")
    run.start()
    judged("first")
    progress.begin("changes")
    judged("other")
    judged("last")
    assert told == [
        "known before",
        "first, at most some 6 minutes left",
        "other, at most some 10 seconds left",
        "last",
    ]


def test_answers_that_were_known_say_nothing_of_the_pace() -> None:
    told, run = list[str](), Pace()
    progress = Progress(told.append, run)
    progress.expect({"rules": 40})
    for number in range(3):
        progress.one(f"plan {number}")
    assert told == ["plan 0", "plan 1", "plan 2"]
    assert run.left(40) == ""
