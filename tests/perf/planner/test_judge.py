"""Harm measured as what outputs are, image by image; kept in a journal that a stopped run goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.harm import Harm, harm, kind_of
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.sensitivity import Place, sensitivity
from tokenrt.perf.planner.workers.exam import Exam

SMALL = PlainViT(width=64, heads=2, blocks=3, patch=16, image=64, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("judge") / "model.onnx")


def _pictures(count: int) -> dict[str, Any]:
    drawn = np.random.default_rng(0).standard_normal((count, 3, 64, 64))
    return {"x": drawn.astype(np.float32)}


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [("logits", (2, 5), "logits"), ("pooled", (2, 5), "embedding"), ("logits", (2, 5, 4), "dense")],
)
def test_kinds(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(name, np.random.default_rng(0).standard_normal(shape)) == kind


def test_probabilities_are_known_by_their_sum() -> None:
    assert kind_of("output", np.array([[0.25, 0.75], [0.5, 0.5]])) == "logits"


def test_measures_by_hand() -> None:
    before = {
        "logits": np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)),
        "vector": np.array([[3.0, -4.0], [1.0, 0.0]], np.float32),
        "map": np.array([[[3.0], [4.0]], [[0.0], [0.0]]], np.float32),
        "index": np.zeros((2, 3), np.int64),
    }
    after = {
        "logits": np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)) + 7,
        "vector": np.array([[4.0, 3.0], [5.0, 0.0]], np.float32),
        "map": np.array([[[3.0], [4.5]], [[0.0], [0.0]]], np.float32),
        "index": np.ones((2, 3), np.int64),
    }
    found = harm([before], [after])
    wanted = 0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)
    assert found.outputs["logits"] == pytest.approx((wanted, 0), abs=1e-6)
    assert found.outputs["vector"] == pytest.approx((1, 0))
    assert found.outputs["map"] == pytest.approx((0.1, 0))
    assert set(found.outputs) == {"logits", "vector", "map"}
    assert found.images == pytest.approx((1, 0), abs=1e-6)
    assert found.mean == pytest.approx(0.5)


def test_what_is_not_finite_is_infinitely_bad() -> None:
    after = {"map": np.array([[[np.nan]], [[1.0]]], np.float32)}
    assert harm([{"map": np.ones((2, 1, 1), np.float32)}], [after]).images == (float("inf"), 0.0)


def test_a_plan_harms_and_doing_less_harms_less(model: Path) -> None:
    with Judge.of(model, _pictures(6), samples=5, batch=2, threads=1) as judge:
        assert sum(len(next(iter(run.values()))) for run in judge.data) == 6
        much, little = (judge(judge.bench.reducer.plan("topk", Budget.remove(n, [0]))) for n in (14, 2))
    assert len(much.images) == 6
    assert much.mean > little.mean > 0


def test_a_journal_is_gone_on_with(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal.jsonl"

    def places() -> dict[Place, Harm]:
        with Judge.of(model, _pictures(2), journal=journal, threads=1) as judge:
            return sensitivity(judge, ["topk"], shares=(0.5,)).harms

    first = places()
    assert len(first) == 3
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    # Killed while the last line was written: that place alone is tried again, and the journal stays readable.
    journal.write_text("\n".join([*lines[:2], lines[2][:40]]))
    tried = list[object]()
    made = Exam.made
    monkeypatch.setattr(Exam, "made", lambda *given: tried.append(given) or made(*given))
    assert places() == first
    assert len(tried) == 1
    assert places() == first
    assert len(tried) == 1


def test_other_data_is_another_question(model: Path, tmp_path: Path) -> None:
    keys = set()
    for count in (1, 2):
        with Judge.of(model, _pictures(count), journal=tmp_path / "j.jsonl", threads=1) as judge:
            keys.add(judge.key)
    assert len(keys) == 2


def test_places_that_cannot_be_tried_say_why(model: Path) -> None:
    with Judge.of(model, _pictures(1), threads=1) as judge:
        found = sensitivity(judge, ["tome", "topk"], shares=(0.25, 1.0))
    assert {place.tokens for place in found.harms if place.method == "tome"} == {9}
    assert {place.tokens for place in found.harms if place.method == "topk"} == {4}
    assert not found.refused


def test_a_model_that_gives_nan_is_refused(model: Path, tmp_path: Path) -> None:
    broken = onnx.load(model)
    bias = next(tensor for tensor in broken.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    with (
        pytest.raises(
            TokenrtError, match="unreduced model gives values of output 'logits' that are not finite"
        ),
        Judge.of(tmp_path / "broken.onnx", _pictures(1), threads=1),
    ):
        pass


def test_one_method_name_wrong(model: Path) -> None:
    with Judge.of(model, _pictures(1), threads=1) as judge, pytest.raises(TokenrtError, match="tomee"):
        sensitivity(judge, ["tomee"])
