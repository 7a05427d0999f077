"""TokenMatch: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.passes.ops.helpers.runner import OPSETS, expect, run

BASIS = np.eye(4, dtype=np.float32)


def both(metric: np.ndarray, attributes: dict[str, object], opset: int = 18) -> list[list[list[int]]]:
    """Run both; indices must be equal, so the cases have exact similarities or wide margins."""
    found, wanted = run("TokenMatch", [metric], attributes, opset), expect("TokenMatch", [metric], attributes)
    np.testing.assert_allclose(found[0], wanted[0], atol=3e-7)
    for actual, expected in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype == np.int64
    return [array.tolist() for array in found[1:]]


def rows(*which: int) -> np.ndarray:
    return BASIS[list(which)][None]


def test_class_token_comes_first_then_unmerged_in_position_order_then_destinations() -> None:
    # Position 4 equals destination 3, position 2 and 6 equal nothing.
    keep, source, destination = both(rows(0, 1, 2, 3, 3, 1, 2), alternate(7, 1, 1, 0))
    assert keep == [[0, 2, 6, 1, 3, 5]]
    assert source == [[4]]
    assert destination == [[4]]


def test_without_class_token_the_unmerged_fall_in_similarity() -> None:
    keep, source, destination = both(rows(0, 1, 1, 0, 2, 1), alternate(6, 0, 1, 1))
    assert source == [[0]]
    assert destination == [[3]]
    assert keep == [[2, 4, 1, 3, 5]]


def test_ties_go_to_the_smaller_source_and_the_smaller_destination() -> None:
    keep, source, destination = both(np.ones((2, 8, 4), np.float32), alternate(8, 0, 3, 0))
    assert source == [[0, 2, 4]] * 2
    assert destination == [[1, 1, 1]] * 2
    assert keep == [[6, 1, 3, 5, 7]] * 2


def test_zero_vectors_are_similar_to_nothing() -> None:
    metric = rows(0, 0, 0, 0, 0, 1)
    metric[0, [2, 3]] = 0
    keep, source, destination = both(metric, alternate(6, 0, 1, 1))
    assert source == [[0]]
    assert destination == [[2]]
    assert keep == [[4, 2, 1, 3, 5]]


def test_nan_is_the_lowest_similarity_and_never_an_index_out_of_range() -> None:
    metric = rows(0, 0, 1, 1, 2, 3, 2, 2)
    metric[0, [2, 3]] = np.nan
    _keep, source, destination = both(metric, alternate(8, 0, 3, 1))
    assert source == [[0, 4, 6]]
    assert destination == [[1, 4, 4]]
    everything = np.full((1, 8, 4), np.nan, np.float32)
    _keep, source, destination = both(everything, alternate(8, 1, 3, 0))
    assert source == [[2, 4, 6]]
    assert destination == [[1, 1, 1]]


def test_infinite_metrics_stay_in_range() -> None:
    metric = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
    metric[0, 4, 1], metric[1, 3, 2] = np.inf, -np.inf
    both(metric, alternate(9, 1, 4, 0))


def test_every_source_may_leave() -> None:
    metric = np.random.default_rng(1).standard_normal((3, 17, 8)).astype(np.float32)
    keep, source, _ = both(metric, alternate(17, 1, 8, 0))
    assert keep == [[0, *range(1, 17, 2)]] * 3
    assert all(sorted(row) == list(range(2, 17, 2)) for row in source)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("protect", [0, 1, 2, 5])
def test_body_equals_reference(opset: int, protect: int) -> None:
    rng = np.random.default_rng(opset)
    for tokens in (8, 33, 197):
        metric = rng.standard_normal((2, tokens, 16)).astype(np.float32)
        for remove in (1, (tokens - protect) // 2):
            both(metric, alternate(tokens, protect, remove, int(protect == 0)), opset)


def test_scale_of_the_metric_does_not_matter() -> None:
    metric = np.random.default_rng(2).standard_normal((1, 33, 16)).astype(np.float32)
    attributes = alternate(33, 1, 9, 0)
    for scale in (2.0**-50, 2.0**50):
        for plain, scaled in zip(
            run("TokenMatch", [metric], attributes),
            run("TokenMatch", [metric * np.float32(scale)], attributes),
            strict=True,
        ):
            np.testing.assert_array_equal(plain, scaled)
