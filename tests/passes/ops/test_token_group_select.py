"""TokenGroupSelect: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, expect, run

NAN, INF = np.nan, np.inf


def both(score: Any, opset: int = 18, **attributes: Any) -> list[Any]:
    inputs = [np.array(score, np.float32)]
    (found,), (wanted,) = (
        run("TokenGroupSelect", inputs, attributes, opset),
        expect("TokenGroupSelect", inputs, attributes),
    )
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype == np.int64
    return found.tolist()


def test_each_group_keeps_its_own_best() -> None:
    score = [[9, 1, 2, 3, 7, 8, 9, 0]]
    assert both(score, keep=4, protect=1, lengths=[3, 3, 1], quotas=[2, 1, 0]) == [[0, 2, 3, 6]]
    assert both(score, keep=3, protect=0, lengths=[4, 4], quotas=[0, 3]) == [[4, 5, 6]]


def test_among_equals_the_smaller_position_wins() -> None:
    assert both([[5] * 7], keep=4, protect=1, lengths=[2, 4], quotas=[1, 2]) == [[0, 1, 3, 4]]


def test_nan_counts_as_minus_infinity_and_protected_scores_are_not_read() -> None:
    score = [[NAN, NAN, -INF, INF, 3e38, NAN, 1]]
    assert both(score, keep=4, protect=1, lengths=[2, 4], quotas=[1, 2]) == [[0, 1, 3, 4]]


@pytest.mark.parametrize("opset", OPSETS)
def test_body_equals_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    for protect, lengths in ((0, [1]), (1, [31, 1]), (5, [16, 9, 3]), (1, [98, 98])):
        score = rng.standard_normal((3, protect + sum(lengths)))
        score[1], score[2, ::3] = np.round(score[1]), NAN
        for share in (0.2, 0.5, 1.0):
            quotas = [max(1, round(share * length)) for length in lengths]
            both(score, opset, keep=protect + sum(quotas), protect=protect, lengths=lengths, quotas=quotas)
