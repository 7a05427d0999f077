"""A-ViT: halting scores and their sums, written once more with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD
from tokenrt import apply_method

GATE = {"gate_scale": 1.5, "gate_center": 0.5}


def halting(x: Any) -> list[float]:
    return [1 / (1 + math.exp(GATE["gate_center"] - GATE["gate_scale"] * row[0])) for row in x.tolist()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True], ids=["first site", "later site"])
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("avit")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, carried: bool, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    before = np.random.default_rng(5).random((batch, tokens)) if carried else np.zeros((batch, tokens))
    state = {"halting": before} if carried else None
    found = apply_method("avit", given, keep=keep, protect=protect, backend=backend, state=state, **GATE)
    for image in range(batch):
        total = [now + then for now, then in zip(halting(given["x"][image]), before[image], strict=True)]
        kept = scored.best([-value for value in total], keep, protect)
        scored.agrees(found, given, image, kept)
        scored.close(found["state_halting"][image], [total[i] for i in kept], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_threshold_keeps_the_same_tokens(backend: str) -> None:
    """Over three layers, given the count that stays below 1 - epsilon (0.2 here), the same tokens go on."""
    x = scored.arrays(33, 1, sized=False)["x"]
    total, left, state = np.zeros(33), np.arange(33), {}
    for layer in range(3):
        rows = np.roll(x, layer, axis=1)[:, left]
        total[left] += halting(rows[0])
        goes_on = total[left] < 1 - 0.2
        assert 0 < goes_on.sum() < len(left)
        found = apply_method(
            "avit", {"x": rows}, keep=int(goes_on.sum()), protect=0, state=state, backend=backend, **GATE
        )
        assert found["index"][0].tolist() == np.flatnonzero(goes_on).tolist()
        left, state = left[goes_on], {"halting": found["state_halting"]}
        scored.close(found["state_halting"][0], total[left], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_far_from_halting_are_told_apart(backend: str) -> None:
    """With the published gate, a channel of -2 is a score of 2e-9."""
    x = np.zeros((1, 9, 4), np.float32)
    x[0, :, 0] = [-2, -3, -4, -5, -14, -3.5, -2.5, 4, -1.9]
    found = apply_method("avit", {"x": x}, keep=4, protect=0, backend=backend)
    assert found["index"][0].tolist() == [2, 3, 4, 5]


def test_published_order_is_least_halted_first() -> None:
    given = scored.arrays(31, 1)
    total = halting(given["x"][0])
    found = apply_method("avit", given, keep=9, order="score", **GATE)["index"][0]
    assert found.tolist() == [0, *sorted(range(1, 31), key=total.__getitem__)[:8]]


def test_ties_keep_the_first() -> None:
    scored.ties("avit", scored.arrays(9, 2), 4)


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    scored.stays_in_range("avit", ODD[odd])


def test_a_score_that_is_no_number_halts_nothing() -> None:
    given = {"x": scored.arrays(12, 1)["x"]}
    given["x"][:, 4, 0] = np.nan
    for backend in BACKENDS:
        found = apply_method("avit", given, keep=2, backend=backend, **GATE)
        assert found["index"].tolist() == [[0, 4]]
        assert found["state_halting"][0, 1] == 0
