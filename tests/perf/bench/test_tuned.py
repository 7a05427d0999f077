"""Tuned plans beside what a person would have picked: the comparison on a small model, and what the committed page claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import results
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.bench.tuned import gpu
from tokenrt.perf.bench.tuned.comparison import RULES, Crossed, Part, compared
from tokenrt.perf.bench.tuned.tuned import TunedReport
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.tune import search
from tokenrt.perf.tune.meters import Counted

SMALL = PlainViT(width=32, heads=2, blocks=3, patch=16, image=64, classes=5)
PAGE = Path(__file__).parents[3] / "docs/results/tuned.json"


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    for name in ("SHAPES", "TRIES"):
        monkeypatch.setattr(search, name, 2)
    pictures = np.random.default_rng(0).standard_normal((6, 3, 64, 64)).astype(np.float32)
    path = SMALL.write(tmp_path / "model.onnx")
    with Judge.of(path, {"x": pictures}, journal=tmp_path / "journal.jsonl", threads=1) as made:
        yield made


def halves(judge: Judge) -> list[Part]:
    return [Part.within(judge, slice(start, None, 2)) for start in (0, 1)]


def test_a_part_tells_the_harm_of_its_images(judge: Judge) -> None:
    plan = judge.bench.reducer.plan("topk", Budget.remove(2))
    seen, held = (part(plan).images for part in halves(judge))
    whole = judge(plan).images
    assert (seen, held) == (whole[::2], whole[1::2])


def test_what_is_compared_is_the_harm_on_what_was_held_out(judge: Judge) -> None:
    found = compared("small", *halves(judge), Counted(), 0.7, names=["topk", "tome"], rules=["topk"])
    assert all(row.cost <= 0.7 for row in (found.tuned, *found.others))
    assert {row.origin.partition(",")[0] for row in found.others} == {"topk"}
    assert found.ratio == found.tuned.held.mean / min(row.held.mean for row in found.others)
    told = found.as_dict()
    assert told["ratio"] == told["tuned"]["held"] / min(each["held"] for each in told["others"])
    page = found.told()
    assert f"harms {found.ratio:.3f} times as much" in page
    assert page.count("\n| ") == 3 + len(found.others)


def test_every_image_counts_once_where_it_was_held_out(judge: Judge) -> None:
    one, other = halves(judge)
    parts = [
        compared("half", *each, Counted(), 0.7, names=["topk"], rules=["topk", "tome"], bound=None)
        for each in ((one, other), (other, one))
    ]
    found = Crossed("crossed", parts)
    assert len(found.tuned.images) == 6
    assert found.tuned.images == (*parts[0].tuned.held.images, *parts[1].tuned.held.images)
    for origin, harm in found.others.items():
        (plan,) = (row.plan for row in parts[0].others if row.origin == origin)
        assert harm.mean == pytest.approx(judge(plan).mean)
    told = found.as_dict()
    assert told["ratio"] == told["tuned"]["held"] / min(each["held"] for each in told["others"])
    page = found.told()
    assert "6 in all" in page
    assert page.count("### half") == 2


def test_on_a_gpu_a_small_model_is_left_alone(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BATCHES", ())
    monkeypatch.setattr(gpu, "REMOVED", (2,))
    monkeypatch.setattr(gpu, "METHODS", ("topk",))
    monkeypatch.setattr(gpu, "_layers", lambda model, batch: len(model.graph))
    found = gpu.run(judge)
    assert not found.pays
    assert "none pays" in found.told()
    nearest, like = found.rows
    assert nearest.sites < like.sites
    assert nearest.layers is not None
    assert like.layers is not None
    assert nearest.layers < like.layers
    page = TunedReport([], found).page(results.circumstances())
    assert page.startswith("# Tuned plans")


def page() -> dict[str, Any]:
    """The committed figures, nothing where the benchmark was not run yet."""
    return dict(json.loads(PAGE.read_text())) if PAGE.exists() else {"comparisons": [], "gpu": {}}


def told() -> list[dict[str, Any]]:
    return [*page()["comparisons"], *page()["gpu"].get("comparisons", [])]


@pytest.mark.parametrize("each", told(), ids=lambda each: each["title"])
def test_the_page_shows_no_tuned_plan_that_harms_more_than_is_asked(each: dict[str, Any]) -> None:
    best = min(other["held"] for other in each["others"])
    assert each["bound"] is None or each["tuned"]["held"] <= each["bound"] * best
    for part in each.get("parts", [each]):
        assert max(part["tuned"]["cost"], *(other["cost"] for other in part["others"])) <= part["most"] + 1e-9
    named = [other["accuracy"] for other in each["others"] if "accuracy" in other]
    if named:
        assert each["tuned"]["accuracy"] >= max(named)
    methods = {other["origin"].partition(",")[0] for other in each["others"]}
    assert methods == set(RULES) or "on this machine" in each["title"] or each["bound"] is None
    assert methods <= {*RULES, "tome --remove 20"}


@pytest.mark.skipif(not PAGE.exists(), reason="the benchmark of tuned plans was not run yet")
def test_the_page_shows_few_launches_on_a_gpu() -> None:
    told = page()["gpu"]
    for own, every in zip(told["rows"][::2], told["rows"][1::2], strict=True):
        assert own["layers"] < every["layers"] / 2
        assert own["work"] == pytest.approx(every["work"], abs=0.05)
    assert told["often_us"] > told["unreduced_us"]  # so that at this time changing nothing harms least
