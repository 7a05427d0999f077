from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.profile import timing


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = PlainViT(width=32, heads=2, blocks=2, patch=16, image=64, classes=5)
    return form.write(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


def test_every_contestant_runs_once_a_round() -> None:
    runs: list[str] = []
    contestants = {name: (lambda name=name: runs.append(name)) for name in "abc"}
    found = timing.compare(contestants, base="a", rounds=7, warm_up=2)
    assert sorted(found) == ["b", "c"]
    assert {ratio.rounds for ratio in found.values()} == {7}
    rounds = [tuple(runs[place : place + 3]) for place in range(0, len(runs), 3)]
    assert len(rounds) == 9
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds[2:])) > 1, "the order changes from round to round"


def test_the_time_limit_leaves_three_rounds() -> None:
    found = timing.compare({"a": int, "b": int}, base="a", rounds=1000, seconds=0.0)
    assert found["b"].rounds == 3


def test_the_ratio_is_the_median_of_the_rounds_and_lies_in_its_interval() -> None:
    found = timing._ratio("b", "a", [[2.0, 9.0, 3.0]], [[1.0, 3.0, 2.0]], 0)
    assert found.median == 2.0
    assert found.low <= found.median <= found.high
    assert found.as_dict()["interval_95"] == [found.low, found.high]


def test_contestants_made_anew_are_pooled() -> None:
    made: list[int] = []

    def make() -> dict[str, timing.Run]:
        made.append(0)
        return {"a": int, "b": int}

    found = timing.compare_afresh(make, base="a", rounds=4, repeats=3)
    assert len(made) == 3
    assert found["b"].rounds == 12
    assert found["b"].low <= found["b"].median <= found["b"].high


def test_the_interval_of_repeats_is_drawn_from_whole_repeats() -> None:
    same, apart = [[1.0] * 4] * 3, [[1.0] * 4, [1.2] * 4, [1.4] * 4]
    found = timing._ratio("b", "a", apart, same, 0)
    assert (found.low, found.median, found.high) == (1.0, 1.2, 1.4)
    assert found.rounds == 12
    together = timing._ratio("b", "a", [[1.0, 1.2, 1.4]] * 3, [[1.0] * 3] * 3, 0)
    assert (together.low, together.median, together.high) == (1.2, 1.2, 1.2)


def test_the_interval_is_seeded_and_closes_round_a_constant() -> None:
    values = np.random.default_rng(0).normal(1, 0.1, 50)
    assert timing.interval(values, 3) == timing.interval(values, 3)
    assert timing.interval([1.5] * 10) == (1.5, 1.5)


def test_feeds_fill_open_axes_with_the_batch(tiny: Path) -> None:
    opened = timing.session(tiny, threads=1)
    fed = timing.feeds(opened, 3)
    assert {name: (value.shape, value.dtype) for name, value in fed.items()} == {
        "pixel_values": ((3, 3, 64, 64), np.dtype(np.float32))
    }
    assert np.array_equal(fed["pixel_values"], timing.feeds(opened, 3)["pixel_values"])
    assert timing.runner(opened, fed)()[0].shape == (3, 5)  # type: ignore[index]


def test_a_model_the_runtime_does_not_take_is_one_message(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(TokenrtError, match="ONNX Runtime does not take the model"):
        timing.session(broken)
