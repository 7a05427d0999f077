"""TokenMeans: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.centers import begun, line, starts
from tests.passes.ops.helpers.runner import OPSETS, expect, run


def both(metric: Any, start: Any, weight: Any = None, rounds: int = 3, opset: int = 18) -> tuple[Any, Any]:
    """Run both; clusters must be equal, so the cases have exact distances or wide margins."""
    inputs, attributes = begun(metric, start, weight), {"rounds": rounds}
    center, assign = run("TokenMeans", inputs, attributes, opset)
    wanted, wanted_assign = expect("TokenMeans", inputs, attributes)
    np.testing.assert_array_equal(assign, wanted_assign)
    np.testing.assert_allclose(center, wanted, rtol=2.0**-20, atol=2.0**-20)
    assert (center.dtype, assign.dtype, wanted_assign.dtype) == (np.float32, np.int64, np.int64)
    return center, assign.tolist()


def on_line(
    *places: float, start: list[int], weight: Any = None, rounds: int = 1
) -> tuple[list[float], list[int]]:
    center, (assign,) = both(line(*places), start, weight, rounds)
    return center[0, :, 0].tolist(), assign


def test_centres_move_to_the_means_of_their_clusters() -> None:
    places = (0, 1, 2, 10, 11, 12)
    assert on_line(*places, start=[0, 1], rounds=1) == (pytest.approx([0, 7.2]), [0, 1, 1, 1, 1, 1])
    assert on_line(*places, start=[0, 1], rounds=2) == (pytest.approx([1, 11]), [0, 0, 0, 1, 1, 1])
    assert on_line(*places, start=[3, 0], rounds=9) == (pytest.approx([11, 1]), [1, 1, 1, 0, 0, 0])


def test_a_heavy_member_draws_its_centre() -> None:
    assert on_line(0, 1, 2, 5, start=[1]) == ([2], [0] * 4)
    assert on_line(0, 1, 2, 5, start=[1], weight=[[1, 0, 0, 3]]) == ([3.75], [0] * 4)
    assert on_line(0, 1, 2, 5, start=[1], weight=[[0, 0, 0, 1e-20]]) == ([5], [0] * 4)


def test_ties_go_to_the_smaller_slot() -> None:
    assert on_line(0, 2, 4, start=[0, 2])[1] == [0, 0, 1]
    assert on_line(0, 2, 4, start=[2, 0])[1] == [1, 0, 0]


def test_a_cluster_without_members_or_weight_keeps_its_centre() -> None:
    assert on_line(0, 0, 6, start=[0, 1, 2], rounds=2) == ([0, 0, 6], [0, 0, 2])
    assert on_line(0, 2, 8, start=[1, 2], weight=[[0, 0, 1]], rounds=2) == ([2, 8], [0, 0, 1])
    for nothing in (0.0, -1.0, 1e-30, np.nan):
        assert on_line(0, 2, 8, start=[1], weight=[[nothing] * 3]) == ([2], [0] * 3)


def test_equal_tokens_stay_what_they_are_to_the_bit() -> None:
    token = np.random.default_rng(1).standard_normal(7).astype(np.float32)
    equal = np.broadcast_to(token, (2, 6, 7)).copy()
    center, assign = both(equal, [4, 2, 5], np.random.default_rng(2).random((2, 6)))
    np.testing.assert_array_equal(center, equal[:, :3])
    assert assign == [[0] * 6] * 2


def test_weights_and_positions_out_of_range() -> None:
    assert on_line(0, 1, 2, 3, 8, start=[-7, 99])[1] == [0, 0, 0, 0, 1]
    assert on_line(0, 1, 2, start=[0], weight=[[np.nan, 1, -1]])[0] == [1]
    assert on_line(0, 2, 4, start=[0], weight=[[0, 1e9, np.inf]])[0] == [3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e15, -3e38])
def test_numbers_without_bounds_count_as_nothing(bad: float) -> None:
    metric = np.random.default_rng(0).standard_normal((2, 33, 8)).astype(np.float32)
    metric[0, [3, 9], 2] = bad
    metric[1] = bad
    plain = metric.copy()
    plain[0, [3, 9], 2], plain[1] = 0, 0
    for start in ([9], list(range(12)), list(range(33))):
        found, wanted = both(metric, start), both(plain, start)
        np.testing.assert_array_equal(found[0], wanted[0])
        assert found[1] == wanted[1]
        assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    for metric, start, weight in starts(opset):
        both(metric, start, weight, 1 + metric.shape[1] % 3, opset)


def test_the_centres_are_the_means_of_the_clusters_told() -> None:
    rng = np.random.default_rng(3)
    metric, weight = rng.standard_normal((2, 65, 8)), rng.random((2, 65))
    start = np.stack([rng.permutation(65)[:9] for _ in range(2)])
    center, assign = expect("TokenMeans", [metric, weight, start], {"rounds": 4})
    for image, slot in np.ndindex(2, 9):
        own = assign[image] == slot
        np.testing.assert_allclose(
            center[image, slot], np.average(metric[image, own], axis=0, weights=weight[image, own])
        )


def test_the_order_of_the_batch_does_not_matter() -> None:
    metric = np.random.default_rng(2).standard_normal((3, 33, 4)).astype(np.float32)
    plain, turned = both(metric, [4, 9, 20]), both(metric[::-1], [4, 9, 20])
    np.testing.assert_array_equal(turned[0], plain[0][::-1])
    assert turned[1] == plain[1][::-1]
