"""TokenCoverSelect: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, same_indices
from tests.passes.ops.test_token_greedy_select import angles


def attributes(keep: int, **others: Any) -> dict[str, Any]:
    """Importance unread, tokens in the order they are chosen, but for what `others` say."""
    return {"keep": keep, "protect": 0, "order": 1, "power": 0.0, "mix": 0.0, **others}


def both(metric: Any, importance: Any, given: dict[str, Any], opset: int = 18) -> list[Any]:
    (index,) = same_indices("TokenCoverSelect", [metric, np.asarray(importance, np.float32)], given, opset)
    return index


def test_the_middle_of_the_largest_heap_comes_first() -> None:
    # Three around 10 degrees; then 140, which covers 130 and a part of 215; then what is left of that.
    heaps = angles(0, 10, 20, 130, 140, 215)
    assert both(heaps, np.ones((1, 6)), attributes(3)) == [[1, 4, 5]]
    assert both(heaps[:, ::-1], np.ones((1, 6)), attributes(3, order=0)) == [[0, 1, 4]]


def test_importance_weighs_or_adds() -> None:
    basis = np.eye(3, dtype=np.float32)[None]
    assert both(basis, [[0.1, 0.5, 0.2]], attributes(2)) == [[0, 1]]
    assert both(basis, [[0.1, 0.5, 0.2]], attributes(2, power=1.0)) == [[1, 2]]
    assert both(basis, [[0.1, 0.5, 0.2]], attributes(2, mix=0.5)) == [[1, 2]]


def test_ties_go_to_the_smaller_position_and_nothing_is_chosen_twice() -> None:
    assert both(np.ones((2, 6, 4), np.float32), np.ones((2, 6)), attributes(4)) == [[0, 1, 2, 3]] * 2
    basis = np.eye(4, dtype=np.float32)[[0, 1, 1, 2]][None]
    assert both(basis, np.ones((1, 4)), attributes(4)) == [[1, 0, 3, 2]]


def test_protected_tokens_cover_nothing() -> None:
    basis = np.eye(4, dtype=np.float32)[[1, 1, 1, 0, 0, 1]][None]
    assert both(basis, np.ones((1, 6)), attributes(4, protect=3)) == [[0, 1, 2, 3]]
    assert both(basis, np.ones((1, 6)), attributes(3, protect=0)) == [[0, 3, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_odd_numbers_stay_in_range(bad: float) -> None:
    rng = np.random.default_rng(0)
    metric, importance = rng.standard_normal((2, 33, 8)).astype(np.float32), rng.random((2, 33))
    metric[0, [3, 9]], importance[0, [4, 9]] = bad, bad
    metric[1], importance[1] = bad, bad
    for keep, order in itertools.product((2, 12, 33), (0, 1)):
        found = both(metric, importance, attributes(keep, protect=1, power=1.0, mix=0.25, order=order))
        assert all(sorted(set(row)) == sorted(row) and row[0] == 0 for row in found)
        assert all(min(row) >= 0 and max(row) < 33 for row in found)


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    sizes = ((1, 0), (2, 1), (31, 0), (32, 1), (33, 5), (197, 1)) if opset == 18 else ((33, 5),)
    for tokens, protect in sizes:
        metric = rng.standard_normal((2, tokens, 16)).astype(np.float32)
        importance = rng.random((2, tokens))
        for keep in {protect + 1, (protect + 1 + tokens) // 2, tokens}:
            for order, power, mix in ((0, 0.5, 0.0), (1, 1.0, 0.0), (1, 0.5, 0.7)):
                given = attributes(keep, protect=protect, order=order, power=power, mix=mix)
                both(metric, importance, given, opset)
