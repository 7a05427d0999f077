"""RAS over steps: whoever rests counts, and nobody rests for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

SIDE, STEPS = 6, 10


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_ten_steps_with_their_state_are_a_plain_loop(backend: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, SIDE * SIDE, 4)).astype(np.float32)
    state: dict[str, Any] = {}
    rested = np.zeros(SIDE * SIDE)
    seen = np.zeros(SIDE * SIDE, bool)
    for _ in range(STEPS):
        update = rng.standard_normal((1, 5, 2 * SIDE, 2 * SIDE)).astype(np.float32)
        given = {"x": x, "update": update, "grid": (SIDE, SIDE)}
        found = apply_method(
            "ras", given, keep=16, protect=0, high=0.5, gamma=-0.3, state=state, backend=backend
        )
        each = update[0].astype(np.float64).std(axis=0, ddof=1)
        metric = each.reshape(SIDE, 2, SIDE, 2).mean((1, 3)).ravel() * np.exp(-0.3 * rested)
        order = np.argsort(metric)
        active = np.sort(order[10:-10])
        assert found["index"][0].tolist() == active.tolist()
        rested[np.setdiff1d(np.arange(SIDE * SIDE), active)] += 1
        seen[active] = True
        state = {"rested": found["state_rested"]}
        np.testing.assert_array_equal(state["rested"][0], rested)
    assert seen.sum() > 24


@pytest.mark.parametrize("metric", ["std", "l2norm"])
def test_packed_latents_are_the_picture_in_rows(metric: str) -> None:
    """Rows of C x 2 x 2 as Flux packs them; and rows that no number of latents fits."""
    rng = np.random.default_rng(0)
    picture = rng.standard_normal((2, 5, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    cells = picture.reshape(2, 5, SIDE, 2, SIDE, 2).transpose(0, 2, 4, 1, 3, 5)
    given = {"x": np.zeros((2, SIDE * SIDE, 4), np.float32), "grid": (SIDE, SIDE)}
    state, indices = {"rested": rng.integers(0, 3, (2, SIDE * SIDE)).astype(np.float32)}, []
    for update in (picture, cells.reshape(2, SIDE * SIDE, 20)):
        found = apply_method(
            "ras", {**given, "update": update}, keep=16, protect=0, metric=metric, state=state
        )
        indices.append(found["index"])
    np.testing.assert_array_equal(*indices)
    with pytest.raises(MethodError, match="rows of 20 numbers are not channels of 3 latents"):
        apply_method("ras", {**given, "update": update}, keep=16, protect=0, latents=3)


def test_counts_that_rounding_skips_are_refused_with_one_that_fits() -> None:
    given = {
        "x": np.zeros((1, 16, 2), np.float32),
        "update": np.ones((1, 2, 8, 8), np.float32),
        "grid": (4, 4),
    }
    with pytest.raises(PlanError, match="leaves 9 of 16, both parts rounded down; 10 can stay"):
        apply_method("ras", given, keep=9, protect=0, high=0.5)
    given["update"] = np.ones((1, 2, 7, 8), np.float32)
    with pytest.raises(MethodError, match="7 x 8 latents is not whole patches of a grid of 4 x 4"):
        apply_method("ras", given, keep=8, protect=0)
