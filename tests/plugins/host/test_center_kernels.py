"""The kernels that move centres, of TokenMeans and TokenMedoids, run on the CPU, against the NumPy references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.passes.ops.helpers.runner import run as body
from tests.plugins.helpers.running import KINDS, SIZES, needs_compiler, random, run, wide
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


def check_means(given: list[Any], rounds: int) -> Any:
    """Clusters are the reference's, and centres at most twice as far off as those of a plain implementation in float32."""
    center, assign = run("TokenMeans", given, {"rounds": rounds})
    wanted, wanted_assign = expect("TokenMeans", wide(given), {"rounds": rounds})
    np.testing.assert_array_equal(assign, wanted_assign)
    single = [np.asarray(given[0], np.float32), *given[1:]]
    plain, _ = body("TokenMeans", single, {"rounds": rounds})
    unit = 2.0**-24 * np.abs(wanted).max()
    assert np.abs(center - wanted).max() <= 2 * np.abs(plain - wanted).max() + unit
    return center


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_means_are_the_reference_s(tokens: int, kind: str) -> None:
    for turn, keep in enumerate(sorted({1, (tokens + 1) // 2, tokens})):
        if tokens > 500 and turn != 1:
            continue
        metric = random((1 if tokens > 500 else 2, tokens, 16 + 5 * (turn % 2))).astype(KINDS[kind])
        check_means(inputs(metric, keep), 1 + (turn + tokens) % 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 127, 128, 129, 264, 1024])
def test_means_of_wide_tokens_are_the_reference_s(width: int, kind: str) -> None:
    for keep in (1, 5):
        check_means(inputs(random((2, 19, width)).astype(KINDS[kind]), keep), 2)


@pytest.mark.parametrize("keep", [1, 3, 20, 65])
def test_means_of_equal_tokens_are_the_tokens_to_the_bit(keep: int) -> None:
    equal = np.repeat(random((2, 1, 24)), 65, axis=1)
    np.testing.assert_array_equal(check_means(inputs(equal, keep), 3), equal[:, :keep])
    few = np.random.default_rng(0).integers(0, 4, (2, 65, 1)).astype(np.float32)
    given = inputs(few, keep)
    check_means([few, np.ones_like(given[1]), given[2]], 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e15])
def test_odd_numbers_and_weights_count_as_the_reference_says(bad: float) -> None:
    metric = random((2, 33, 8))
    metric[0, [3, 9], 2] = bad
    metric[1] = bad
    for keep in (1, 12, 33):
        given = inputs(metric, keep)
        given[1][:, 5] = bad
        assert np.isfinite(check_means(given, 2)).all()


def test_the_same_means_come_whatever_else_is_in_the_batch() -> None:
    given = inputs(random((3, 65, 24)), 7)
    center, assign = run("TokenMeans", given, {"rounds": 3})
    for image in range(3):
        alone = run("TokenMeans", [item[image : image + 1] for item in given], {"rounds": 3})
        np.testing.assert_array_equal(alone[0][0], center[image])
        np.testing.assert_array_equal(alone[1][0], assign[image])


def test_starts_out_of_range_count_as_the_nearest_position() -> None:
    given = [random((1, 9, 4)), np.ones((1, 9), np.float32), np.array([[-(2**40), 2**40, 4]])]
    check("TokenMedoids", given, {"rounds": 0, "power": 1})
    check("TokenMedoids", given, {"rounds": 2, "power": 1})
    check_means(given, 1)


@pytest.mark.parametrize(
    ("name", "keep", "wrong"),
    [
        ("TokenMeans", 10, {"rounds": 1}),
        ("TokenMeans", 5, {"rounds": 0}),
        ("TokenMeans", 5, {"rounds": 1001}),
        ("TokenMedoids", 10, {"rounds": 1, "power": 1}),
        ("TokenMedoids", 5, {"rounds": -1, "power": 1}),
        ("TokenMedoids", 5, {"rounds": 1001, "power": 1}),
        ("TokenMedoids", 5, {"rounds": 1, "power": 0}),
        ("TokenMedoids", 5, {"rounds": 1, "power": 3}),
    ],
)
def test_counts_out_of_range_are_refused(name: str, keep: int, wrong: dict[str, int]) -> None:
    given = [random((1, 9, 4)), np.ones((1, 9), np.float32), np.zeros((1, keep), np.int64)]
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run(name, given, wrong)
