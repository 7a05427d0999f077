"""The kernel of TokenMedoids, run on the CPU, against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ops.runner import expect
from tests.plugins.running import KINDS, SIZES, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError

pytestmark = needs_compiler


def inputs(metric: Any, keep: int) -> list[Any]:
    """The metric, random weights, and random tokens to start at."""
    rng = np.random.default_rng(keep)
    batch, tokens = metric.shape[:2]
    start = np.stack([rng.permutation(tokens)[:keep] for _ in range(batch)])
    return [metric, rng.random((batch, tokens)).astype(np.float32), start]


def check(name: str, given: list[Any], attributes: dict[str, int]) -> None:
    found = run(name, given, attributes)
    for actual, wanted in zip(found, expect(name, wide(given), attributes), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_medoids_are_the_reference_s(tokens: int, kind: str) -> None:
    for turn, keep in enumerate(sorted({1, (tokens + 1) // 2, tokens})):
        if tokens > 500 and turn != 1:
            continue
        metric = random((1 if tokens > 500 else 2, tokens, 16 + 5 * (turn % 2))).astype(KINDS[kind])
        check(
            "TokenMedoids",
            inputs(metric, keep),
            {"rounds": turn + tokens % 2, "power": 1 + (turn + tokens) % 2},
        )


@pytest.mark.parametrize("power", [1, 2])
def test_medoids_of_equal_tokens_are_the_reference_s(power: int) -> None:
    few = np.random.default_rng(0).integers(0, 4, (2, 65, 1)).astype(np.float32)
    for metric in (few, np.ones_like(few), np.zeros_like(few)):
        for keep in (1, 3, 20, 65):
            given = inputs(metric, keep)
            given[1] = np.ones_like(given[1])
            check("TokenMedoids", given, {"rounds": 3, "power": power})


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_odd_tokens_and_weights_are_what_the_reference_says(bad: float, power: int) -> None:
    metric = random((2, 33, 8))
    metric[0, [3, 9]] = bad
    metric[1] = bad
    for keep in (1, 12, 33):
        given = inputs(metric, keep)
        given[1][:, 5] = bad
        check("TokenMedoids", given, {"rounds": 2, "power": power})


def test_starts_out_of_range_count_as_the_nearest_position() -> None:
    given = [random((1, 9, 4)), np.ones((1, 9), np.float32), np.array([[-(2**40), 2**40, 4]])]
    check("TokenMedoids", given, {"rounds": 0, "power": 1})
    check("TokenMedoids", given, {"rounds": 2, "power": 1})


@pytest.mark.parametrize(
    ("keep", "wrong"),
    [
        (10, {"rounds": 1, "power": 1}),
        (5, {"rounds": -1, "power": 1}),
        (5, {"rounds": 1001, "power": 1}),
        (5, {"rounds": 1, "power": 0}),
        (5, {"rounds": 1, "power": 3}),
    ],
)
def test_counts_out_of_range_are_refused(keep: int, wrong: dict[str, int]) -> None:
    given = [random((1, 9, 4)), np.ones((1, 9), np.float32), np.zeros((1, keep), np.int64)]
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenMedoids", given, wrong)
