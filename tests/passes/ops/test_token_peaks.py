"""TokenPeaks: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, expect, run


def both(metric: Any, keep: int, neighbours: int, opset: int = 18) -> tuple[list[Any], list[Any]]:
    """Run both; indices must be equal, so the cases have exact distances or wide margins."""
    attributes = {"keep": keep, "neighbours": neighbours}
    found = run("TokenPeaks", [metric], attributes, opset)
    for actual, wanted in zip(found, expect("TokenPeaks", [metric], attributes), strict=True):
        np.testing.assert_array_equal(actual, wanted)
        assert actual.dtype == wanted.dtype == np.int64
    return found[0].tolist(), found[1].tolist()


def line(*places: float) -> Any:
    return np.array(places, np.float32)[None, :, None]


def test_peaks_are_dense_and_far_from_denser_tokens() -> None:
    # Two heaps around 1 and 10, the second the looser; 5 is far from both but lonely.
    metric = line(0.5, 1, 1.25, 5, 9.25, 10, 10.5)
    assert both(metric, 2, 3) == ([[1, 5]], [[0, 0, 0, 0, 1, 1, 1]])


def test_a_token_joins_the_nearest_centre_and_a_centre_itself() -> None:
    metric = line(0, 0, 3, 3, 3, 9)
    center, assign = both(metric, 3, 2)
    assert sorted(center[0]) == [0, 2, 5]
    assert [center[0][slot] for slot in assign[0]] == [0, 0, 2, 2, 2, 5]
    center, assign = both(metric, 6, 2)
    assert [center[0][slot] for slot in assign[0]] == list(range(6))


def test_of_equally_dense_tokens_the_first_is_the_denser() -> None:
    assert both(np.ones((2, 6, 3), np.float32), 3, 4) == ([[0, 1, 2]] * 2, [[0, 1, 2, 0, 0, 0]] * 2)
    # All alike in density; 0 gets the largest distance there is, 1 and 3 are 4 and 3 away from an earlier one.
    assert both(line(0, 4, 8, 11), 1, 1) == ([[0]], [[0] * 4])
    assert both(line(0, 4, 8, 11), 3, 1)[0] == [[0, 1, 2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_odd_numbers_stay_in_range(bad: float) -> None:
    metric = np.random.default_rng(0).standard_normal((2, 33, 8)).astype(np.float32)
    metric[0, [3, 9]] = bad
    metric[1] = bad
    for keep in (1, 12, 33):
        center, assign = both(metric, keep, 5)
        assert all(len(set(row)) == keep and min(row) >= 0 and max(row) < 33 for row in center)
        assert all(set(row) == set(range(keep)) for row in assign)


def test_far_apart_tokens_still_rank() -> None:
    """A density of exp(-1000) is 0 in float32; its logarithm is not."""
    metric = np.random.default_rng(1).standard_normal((1, 20, 400)).astype(np.float32) * 2
    center, _ = both(metric, 5, 3)
    assert center != [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    for tokens in (1, 2, 31, 32, 33, 197, 257):
        metric = 0.3 * rng.standard_normal((2, tokens, 16)).astype(np.float32)
        for keep in {1, (tokens + 1) // 2, tokens}:
            for neighbours in {1, min(5, tokens), tokens}:
                both(metric, keep, neighbours, opset)


def test_a_common_shift_and_the_order_of_the_batch_do_not_matter() -> None:
    metric = np.random.default_rng(2).integers(-8, 8, (3, 33, 4)).astype(np.float32) / 8
    plain = both(metric, 9, 5)
    assert both(metric + np.float32(2), 9, 5) == plain
    assert both(metric[::-1], 9, 5) == (plain[0][::-1], plain[1][::-1])
