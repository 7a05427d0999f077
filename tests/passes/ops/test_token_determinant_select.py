"""TokenDeterminantSelect: the function body against the NumPy reference, and both against determinants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, same_indices
from tests.passes.ops.test_token_greedy_select import angles


def attributes(keep: int, **others: Any) -> dict[str, Any]:
    """Cosines alone, in the order they are chosen, but for what `others` say."""
    return {"keep": keep, "protect": 0, "order": 1, "mix": 1.0, "epsilon": 0.0, **others}


def both(metric: Any, importance: Any, given: dict[str, Any], opset: int = 18) -> list[Any]:
    inputs = [metric, np.asarray(importance, np.float32)]
    (index,) = same_indices("TokenDeterminantSelect", inputs, given, opset)
    return index


def test_vectors_that_span_the_most_are_chosen() -> None:
    fan = angles(0, 10, 25, 85, 180)
    # At right angles two vectors span the largest area; behind them a plane has no third, and the first ones follow.
    assert both(fan, np.zeros((1, 5)), attributes(4)) == [[0, 3, 1, 2]]
    assert both(fan, np.zeros((1, 5)), attributes(4, order=0)) == [[0, 1, 2, 3]]
    assert both(fan, np.zeros((1, 5)), attributes(3, protect=1)) == [[0, 1, 3]]


def test_importance_weighs_the_kernel() -> None:
    fan = angles(0, 40, 90)
    # Without mix a token has the square of its importance; of 1.0 and 0.9 at 40 degrees 0.33 is left, of 0.5 at 90 degrees 0.25.
    assert both(fan, [[1.0, 0.9, 0.5]], attributes(2, mix=0.0)) == [[0, 1]]
    assert both(fan, [[1.0, 0.9, 0.6]], attributes(2, mix=0.0)) == [[0, 2]]
    assert both(fan, [[1.0, 0.9, 0.5]], attributes(2, mix=0.3)) == [[0, 2]]


@pytest.mark.parametrize("mix", [0.0, 0.4])
def test_each_choice_makes_the_determinant_the_largest(mix: float) -> None:
    rng = np.random.default_rng(3)
    metric, importance = rng.standard_normal((1, 20, 12)).astype(np.float32), rng.random((1, 20))
    (found,) = both(metric, importance, attributes(8, mix=mix))
    unit = metric[0] / np.linalg.norm(metric[0], axis=1, keepdims=True)
    kernel = (unit @ unit.T).astype(np.float64) * (mix + np.outer(importance, importance))
    for turn, chosen in enumerate(found):
        held = [
            -np.inf if token in found[:turn] else np.linalg.slogdet(kernel[np.ix_(some, some)])[1]
            for token in range(20)
            for some in [[*found[:turn], token]]
        ]
        assert chosen == int(np.argmax(held))


def test_pivots_are_damped() -> None:
    fan = angles(0, 40, 100)
    # Token 0 explains 2.84 of the 4.84 of token 1, which leaves less than the 2.18 of token 2; with epsilon 1, a ninth of its own
    # entry, a tenth less.
    assert both(fan, [[3.0, 2.2, 1.5]], attributes(2, mix=0.0)) == [[0, 2]]
    assert both(fan, [[3.0, 2.2, 1.5]], attributes(2, mix=0.0, epsilon=1.0)) == [[0, 1]]


@pytest.mark.parametrize("epsilon", [1e-6, 1e-4])
def test_what_damping_leaves_counts_as_nothing(epsilon: float) -> None:
    rng = np.random.default_rng(1)
    metric, importance = rng.standard_normal((2, 90, 12)).astype(np.float32), rng.random((2, 90))
    for row in both(metric, importance, attributes(40, mix=0.0, epsilon=epsilon)):
        others = [token for token in range(90) if token not in row[:12]]
        assert row[12:] == others[:28]


def test_ties_go_to_the_smaller_position_and_nothing_is_chosen_twice() -> None:
    assert both(np.ones((2, 6, 3), np.float32), np.ones((2, 6)), attributes(4)) == [[0, 1, 2, 3]] * 2
    assert both(np.zeros((2, 6, 3), np.float32), np.ones((2, 6)), attributes(4)) == [[0, 1, 2, 3]] * 2
    basis = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]][None]
    assert both(basis, np.ones((1, 5)), attributes(5)) == [[0, 2, 4, 1, 3]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_odd_numbers_stay_in_range(bad: float) -> None:
    rng = np.random.default_rng(0)
    metric, importance = rng.standard_normal((2, 33, 40)).astype(np.float32), rng.random((2, 33))
    metric[0, [3, 9]], importance[0, [4, 9]] = bad, bad
    metric[1], importance[1] = bad, bad
    for keep, mix, order in itertools.product((2, 12, 33), (0.0, 0.25), (0, 1)):
        found = both(metric, importance, attributes(keep, protect=1, mix=mix, order=order))
        assert all(sorted(set(row)) == sorted(row) and row[0] == 0 for row in found)
        assert all(min(row) >= 0 and max(row) < 33 for row in found)


def test_an_importance_that_is_no_number_counts_as_nothing() -> None:
    importance = [[np.nan, 0.5, -3.0, np.inf]]
    assert both(angles(0, 90, 180, 270), importance, attributes(3, mix=0.0)) == [[3, 0, 1]]


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    sizes = ((1, 0), (2, 1), (31, 0), (32, 1), (33, 5), (197, 1)) if opset == 18 else ((33, 5),)
    for tokens, protect in sizes:
        metric = rng.standard_normal((2, tokens, 256)).astype(np.float32)
        importance = rng.random((2, tokens))
        for keep in {protect + 1, (protect + 1 + tokens) // 2, tokens}:
            for order, mix, epsilon in ((0, 0.0, 0.0), (1, 0.7, 1e-6)):
                given = attributes(keep, protect=protect, order=order, mix=mix, epsilon=epsilon)
                both(metric, importance, given, opset)


@pytest.mark.parametrize("width", [3, 16])
def test_once_the_rank_is_used_up_the_first_tokens_follow(width: int) -> None:
    rng = np.random.default_rng(width)
    metric, importance = rng.standard_normal((2, 90, width)).astype(np.float32), rng.random((2, 90))
    for row in both(metric, importance, attributes(60, mix=0.0)):
        others = [token for token in range(90) if token not in row[:width]]
        assert row[width:] == others[: 60 - width]
