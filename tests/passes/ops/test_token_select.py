"""TokenSelect: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, expect, run

NAN, INF = np.nan, np.inf


def both(score: list[list[float]], **attributes: int) -> np.ndarray:
    inputs = [np.array(score, np.float32)]
    (found,), (wanted,) = run("TokenSelect", inputs, attributes), expect("TokenSelect", inputs, attributes)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype == np.int64
    return found


def test_by_position_the_best_stay_in_place() -> None:
    assert both([[0.1, 0.9, 0.2, 0.8]], keep=2, protect=0, order=0).tolist() == [[1, 3]]


def test_by_score_the_best_come_first() -> None:
    assert both([[0.1, 0.8, 0.2, 0.9]], keep=3, protect=0, order=1).tolist() == [[3, 1, 2]]


@pytest.mark.parametrize("order", [0, 1])
def test_among_equals_the_smaller_position_wins(order: int) -> None:
    assert both([[5, 5, 5, 5, 5]], keep=3, protect=1, order=order).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("first", [NAN, -INF, 0.0, INF])
def test_protected_tokens_come_first_whatever_any_score_is(order: int, first: float) -> None:
    score = [[first, first, INF, INF, 1.0, 3.4e38]]
    assert both(score, keep=4, protect=2, order=order).tolist() == [[0, 1, 2, 3]]


def test_nan_counts_as_minus_infinity() -> None:
    assert both([[NAN, 1.0, -INF, NAN, -2.0]], keep=3, protect=0, order=1).tolist() == [[1, 4, 0]]


def test_all_nan_keeps_the_first() -> None:
    assert both([[NAN] * 5], keep=3, protect=1, order=0).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("protect", [0, 1, 5])
def test_body_equals_reference(opset: int, protect: int) -> None:
    rng = np.random.default_rng(opset)
    for tokens in (6, 32, 33, 197):
        score = rng.standard_normal((3, tokens)).astype(np.float32)
        score[1] = np.round(score[1])
        score[2, 3:5] = NAN, INF
        for keep in {protect + 1, (protect + 1 + tokens) // 2, tokens}:
            for order in (0, 1):
                attributes = {"keep": keep, "protect": protect, "order": order}
                (found,) = run("TokenSelect", [score], attributes, opset)
                np.testing.assert_array_equal(found, expect("TokenSelect", [score], attributes)[0])
