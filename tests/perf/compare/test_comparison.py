"""Which models another one beats: by what is measured, and by no more than is sure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenrt.perf.compare.comparison import ORIGINAL, Comparison, Row, Whole, ordered
from tokenrt.perf.compare.contestants import Contestant
from tokenrt.perf.planner.costs import Cost
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.latency.modelled import Modelled
from tokenrt.perf.profile.timing import Ratio

WHOLE = Whole("vit", Path("vit.onnx"), 1_000_000, Cost(1, 1000, 0, 0, 4000, ""), 10.0)
NOISE = np.random.default_rng(0).normal(0, 0.01, 12)


def row(
    name: str, time: float, harm: float, *, doubt: float = 0.01, there: float | None = None, macs: int = 500
) -> Row:
    images = {"y": tuple(map(float, harm + NOISE))}
    modelled = None if there is None else Modelled("h100", 1, 1.0, there, 10, 5)
    ratio = Ratio(name, "", time, time - doubt, time + doubt, 96, time * 10, 10.0)
    file = Path(f"{name}.onnx")
    cost = Cost(1, macs, 0, 0, 2 * macs, "")
    return Row(Contestant(name, file, file, None), macs, cost, ratio, Harm(images), modelled=modelled)


def of(*rows: Row) -> Comparison:
    return Comparison(
        WHOLE, rows, {"data": "d", "samples": 12, "batch": 1, "threads": 2, "target": None}, {"y": "far"}
    )


def test_a_trade_beats_nobody() -> None:
    fast, mild = row("fast", 0.6, 0.3), row("mild", 0.8, 0.1)
    found = of(fast, mild)
    assert not found.beaten_by(fast)
    assert not found.beaten_by(mild)
    assert found.verdict() == (
        "To choose from: fast at 0.60 of the time, harm 0.3; mild at 0.80 of the time, harm 0.1."
    )


def test_slower_and_more_harmful_is_beaten() -> None:
    better, worse = row("better", 0.6, 0.1), row("worse", 0.8, 0.3)
    assert of(worse, better).beaten_by(worse) == ["better"]
    assert not of(worse, better).beaten_by(better)
    assert "Beaten: worse (by better)." in of(worse, better).verdict()


def test_as_fast_within_the_intervals_is_beaten_by_harm_alone() -> None:
    one, other = row("one", 0.700, 0.1), row("other", 0.705, 0.3)
    assert of(one, other).beaten_by(other) == ["one"]


def test_a_lead_in_both_that_chance_explains_beats_nobody() -> None:
    one, other = row("one", 0.70, 0.1), row("other", 0.71, 0.1)
    assert not of(one, other).beaten_by(other)


def test_the_original_beats_what_is_surely_no_faster() -> None:
    slow, unsure = row("slow", 1.1, 0.1), row("unsure", 1.005, 0.1)
    assert of(slow).beaten_by(slow) == [ORIGINAL]
    assert not of(unsure).beaten_by(unsure)
    assert of(slow).verdict() == "Change nothing: beaten are slow (by the original)."


def test_a_model_that_pays_on_the_target_is_not_beaten_by_the_original() -> None:
    there, nowhere = row("there", 1.1, 0.1, there=0.8), row("nowhere", 1.1, 0.1, there=1.2)
    assert not of(there).beaten_by(there)
    assert of(nowhere).beaten_by(nowhere) == [ORIGINAL]


def test_who_is_slower_on_the_target_beats_nobody_there() -> None:
    here, there = row("here", 0.6, 0.1, there=0.9), row("there", 0.8, 0.3, there=0.7)
    assert not of(here, there).beaten_by(there)


def test_infinite_harm_is_written_down() -> None:
    broken = row("broken", 0.5, float("inf"))
    told = of(broken).as_dict()["models"][0]["harm"]
    assert told["mean"] == "inf"
    assert set(told["samples"]) == {"inf"}
    assert told["interval_95"] == ["inf", "inf"]


@pytest.mark.parametrize(
    ("by", "names"),
    [("given", "bac"), ("time", "abc"), ("harm", "cba"), ("work", "cab"), ("memory", "cab"), ("size", "cab")],
)
def test_rows_are_sorted_by_what_is_asked(by: str, names: str) -> None:
    rows = [row("b", 0.7, 0.2, macs=900), row("a", 0.6, 0.3, macs=800), row("c", 0.8, 0.1, macs=700)]
    assert "".join(each.name for each in ordered(rows, WHOLE, by)) == names  # type: ignore[arg-type]
