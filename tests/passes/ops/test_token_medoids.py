"""TokenMedoids: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.centers import begun, line, starts
from tests.passes.ops.helpers.runner import OPSETS, same_indices


def both(
    metric: Any, start: Any, weight: Any = None, rounds: int = 3, power: int = 1, opset: int = 18
) -> tuple[list[Any], list[Any]]:
    attributes = {"rounds": rounds, "power": power}
    center, assign = same_indices("TokenMedoids", begun(metric, start, weight), attributes, opset)
    return center, assign


def test_medoids_move_to_the_middle_of_their_clusters() -> None:
    metric = line(0, 1, 2, 10, 11, 12)
    assert both(metric, [0, 1], rounds=0) == ([[0, 1]], [[0, 1, 1, 1, 1, 1]])
    assert both(metric, [0, 1], rounds=1) == ([[0, 3]], [[0, 0, 0, 1, 1, 1]])
    assert both(metric, [0, 1], rounds=2) == ([[1, 4]], [[0, 0, 0, 1, 1, 1]])
    assert both(metric, [3, 0], rounds=9) == ([[4, 1]], [[1, 1, 1, 0, 0, 0]])


def test_a_heavy_member_draws_its_medoid() -> None:
    metric = line(0, 1, 2, 3, 8)
    assert both(metric, [1])[0] == [[2]]
    assert both(metric, [1], [[9, 1, 1, 1, 1]])[0] == [[0]]
    assert both(metric, [1], [[1, 1, 1, 1, 99]])[0] == [[4]]


def test_squares_count_what_is_far_more() -> None:
    metric = line(0, 1, 2, 3, 12)
    assert both(metric, [0], power=1)[0] == [[2]]
    assert both(metric, [0], power=2)[0] == [[3]]


def test_ties_go_to_the_smaller_slot_and_position() -> None:
    assert both(line(0, 2, 4), [0, 2], rounds=0)[1] == [[0, 0, 1]]
    assert both(line(0, 3), [1])[0] == [[0]]  # both members are 3 from the other
    equal = np.ones((2, 6, 3), np.float32)
    # All join slot 0, whose first member is the cheapest; the other clusters keep their medoids.
    assert both(equal, [4, 2, 5]) == ([[0, 2, 5]] * 2, [[0] * 6] * 2)


def test_weights_and_positions_out_of_range() -> None:
    metric = line(0, 1, 2, 3, 8)
    assert both(metric, [-7, 99], rounds=0)[0] == [[0, 4]]
    odd = [[np.nan, -1, 0, 1, 1]]
    assert both(metric, [1], odd) == both(metric, [1], [[0, 0, 0, 1, 1]])
    assert both(metric, [1], [[1, 1, 1, 1, np.inf]])[0] == [[4]]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_odd_tokens_are_no_medoids_while_there_are_others(bad: float, power: int) -> None:
    metric = np.random.default_rng(0).standard_normal((2, 33, 8)).astype(np.float32)
    metric[0, [3, 9]] = bad
    metric[1] = bad
    for start in ([0], list(range(12)), list(range(33))):
        center, assign = both(metric, start, power=power)
        assert center[1] == start if len(start) == 1 else center[1][1:] == start[1:]
        assert assign[0][3] == assign[0][9] == 0
        assert assign[1] == [0] * 33
        assert center[0][0] not in {3, 9}


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    for metric, start, weight in starts(opset):
        both(metric, start, weight, 2, 1 + metric.shape[1] % 2, opset)


def test_a_common_shift_and_the_order_of_the_batch_do_not_matter() -> None:
    metric = np.random.default_rng(2).integers(-8, 8, (3, 33, 1)).astype(np.float32) / 8
    plain = both(metric, [4, 9, 20])
    assert both(metric + np.float32(2), [4, 9, 20]) == plain
    assert both(metric[::-1], [4, 9, 20]) == (plain[0][::-1], plain[1][::-1])
