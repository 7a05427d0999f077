"""The bench of choices made one after the other: both forms choose the same, and what it prints is what it found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import results
from tokenrt.perf.bench.cpu import greedy
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.profile.timing import Ratio

TINY = PlainViT(width=32, heads=2, blocks=2, patch=16, image=32, classes=3)
GPUS = greedy.OnGpus(20, 70, dict.fromkeys(greedy.TARGETS, 190.4), 2, dict.fromkeys(greedy.TARGETS, 80.6))


@pytest.mark.parametrize("name", greedy.CHOICES)
def test_numpy_chooses_what_the_reference_does(name: str) -> None:
    choice, rng = greedy.CHOICES[name], np.random.default_rng(1)
    given = [rng.standard_normal((1, 300, 128), np.float32), rng.random((1, 300), np.float32)]
    (wanted,) = expect(choice.operator, given, choice.settled)
    np.testing.assert_array_equal(choice.numpy(*given), wanted)


def test_what_is_timed_chooses_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = TINY.write(tmp_path / "tower.onnx")
    against, shares = greedy.timed(tower, 1, 1)
    assert [*against] == [*shares] == [*greedy.CHOICES]
    assert all(ratio.milliseconds > 0 for ratio in (*against.values(), *shares.values()))
    other = greedy.Choice("TokenCoverSelect", {"power": 0.0, "mix": 1.0}, "", greedy.CHOICES["max-min"].plain)
    monkeypatch.setattr(greedy, "CHOICES", {"max-min": other})
    with pytest.raises(TokenrtError, match=r"TokenCoverSelect \(max-min\) and NumPy choose different tokens"):
        greedy.timed(tower, 1, 1)


def test_the_page_has_a_row_for_each_objective() -> None:
    ratio = Ratio("x", "y", 1.5, 1.25, 1.75, 9, 30.0, 20.0)
    named = dict.fromkeys(greedy.CHOICES, ratio)
    made = greedy.GreedyCost(named, named, dict.fromkeys(greedy.CHOICES, GPUS))
    page = made.page(results.circumstances())
    assert (
        "| determinant | `TokenDeterminantSelect` | `cdpruner` | 30.0 | 20.0 | 1.50 | 1.25 to 1.75 | 150.00 % |"
        in page
    )
    assert "| max-min | 20 | 70 | 2 | 190 / 81 | 190 / 81 | 190 / 81 | 190 / 81 |" in page
    assert made.as_dict()["gpus"]["max-sum"]["plugin_launches"] == 2


def test_a_tower_that_does_not_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenrtError, match="nothing was timed"):
        greedy.run(tmp_path / "none.onnx", rounds=1, tower_rounds=1)
