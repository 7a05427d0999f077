"""TokenGreedySelect: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, same_indices
from tokenrt.passes.ops.token_greedy_select import (
    FROM_NOTHING,
    MAX_MIN,
    MAX_SUM,
    MOST_IMPORTANT,
    MOST_ISOLATED,
)


def attributes(keep: int, **others: Any) -> dict[str, Any]:
    """Plain farthest points from nothing, in the order they are chosen, but for what `others` say."""
    usual = {"protect": 0, "order": 1, "objective": MAX_MIN, "power": 0.0, "mix": 0.0, "seed": FROM_NOTHING}
    return {"keep": keep, **usual, **others}


def both(metric: Any, importance: Any, given: dict[str, Any], opset: int = 18) -> list[Any]:
    (index,) = same_indices("TokenGreedySelect", [metric, np.asarray(importance, np.float32)], given, opset)
    return index


def angles(*degrees: float) -> Any:
    """Unit vectors in the plane: their distance grows with the angle between them."""
    turn = np.radians(degrees)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)[None].astype(np.float32)


def test_farthest_points_are_spread_out() -> None:
    fan = angles(0, 10, 25, 85, 90, 180)
    assert both(fan, np.zeros((1, 6)), attributes(4)) == [[0, 5, 4, 2]]
    assert both(fan, np.zeros((1, 6)), attributes(4, order=0)) == [[0, 2, 4, 5]]
    assert both(fan, np.zeros((1, 6)), attributes(4, protect=2)) == [[0, 1, 2, 5]]


def test_seeds_differ_as_their_names_say() -> None:
    fan, importance = angles(0, 10, 25, 85, 90, 180), [[0.1, 0.2, 0.9, 0.3, 0.4, 0.5]]
    first = {seed: both(fan, importance, attributes(1, seed=seed, power=0.0))[0][0] for seed in range(3)}
    assert first == {FROM_NOTHING: 0, MOST_IMPORTANT: 2, MOST_ISOLATED: 5}
    assert both(fan, importance, attributes(1, power=1.0))[0] == [2]


def test_a_sum_prefers_what_is_opposite_to_all() -> None:
    fan = angles(0, 40, 90, 170)
    # From 0, 170 is the most opposite. The sum of cosines to both is 0.12 at 40 and 0.17 at 90; the largest 0.77 and 0.17.
    assert both(fan, np.zeros((1, 4)), attributes(3, objective=MAX_SUM)) == [[0, 3, 1]]
    assert both(fan, np.zeros((1, 4)), attributes(3)) == [[0, 3, 2]]


def test_importance_weighs_or_adds() -> None:
    fan = angles(0, 40, 90)
    importance = [[1.0, 0.9, 0.1]]
    assert both(fan, importance, attributes(2, seed=MOST_IMPORTANT)) == [[0, 2]]
    assert both(fan, importance, attributes(2, seed=MOST_IMPORTANT, power=1.0)) == [[0, 1]]
    # Marginal relevance with l = 0.7 and l = 0.2.
    assert both(fan, importance, attributes(2, seed=MOST_IMPORTANT, mix=0.7 / 0.3)) == [[0, 1]]
    assert both(fan, importance, attributes(2, seed=MOST_IMPORTANT, mix=0.2 / 0.8)) == [[0, 2]]


@pytest.mark.parametrize("objective", [MAX_MIN, MAX_SUM])
@pytest.mark.parametrize("seed", range(3))
def test_ties_go_to_the_smaller_position_and_nothing_is_chosen_twice(seed: int, objective: int) -> None:
    given = attributes(4, objective=objective, seed=seed)
    assert both(np.ones((2, 6, 3), np.float32), np.ones((2, 6)), given) == [[0, 1, 2, 3]] * 2
    basis = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]][None]
    assert both(basis, np.ones((1, 5)), given)[0] == ([4, 0, 2, 1] if seed == MOST_ISOLATED else [0, 2, 4, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_odd_numbers_stay_in_range(bad: float) -> None:
    rng = np.random.default_rng(0)
    metric, importance = rng.standard_normal((2, 33, 8)).astype(np.float32), rng.random((2, 33))
    metric[0, [3, 9]], importance[0, [4, 9]] = bad, bad
    metric[1], importance[1] = bad, bad
    for keep, objective, seed, order in itertools.product((2, 12, 33), (0, 1), range(3), (0, 1)):
        given = attributes(keep, protect=1, objective=objective, seed=seed, power=1.0, mix=0.25, order=order)
        found = both(metric, importance, given)
        assert all(sorted(set(row)) == sorted(row) and row[0] == 0 for row in found)
        assert all(min(row) >= 0 and max(row) < 33 for row in found)


def test_an_importance_that_is_no_number_counts_as_nothing() -> None:
    importance = [[np.nan, 0.5, -3.0, np.inf]]
    assert both(angles(0, 90, 180, 270), importance, attributes(2, seed=MOST_IMPORTANT, mix=1.0)) == [[3, 1]]


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    sizes = ((1, 0), (2, 1), (31, 0), (32, 1), (33, 5), (197, 1)) if opset == 18 else ((33, 5),)
    for tokens, protect in sizes:
        metric = rng.standard_normal((2, tokens, 16)).astype(np.float32)
        importance = rng.random((2, tokens))
        for keep, objective, seed in itertools.product(
            {protect + 1, (protect + 1 + tokens) // 2, tokens}, (0, 1), range(3)
        ):
            for order, power, mix in ((0, 0.0, 0.0), (1, 1.0, 0.0), (0, 0.5, 0.7)):
                given = attributes(
                    keep,
                    protect=protect,
                    order=order,
                    objective=objective,
                    seed=seed,
                    power=power,
                    mix=mix,
                )
                both(metric, importance, given, opset)
