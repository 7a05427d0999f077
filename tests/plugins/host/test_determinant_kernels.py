"""The kernel of TokenDeterminantSelect, run on the CPU, against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, SIZES, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError
from tokenrt.plugins.host.recorder import like, recorded

pytestmark = needs_compiler

OPTIONS = [(0, 0.0, 0.0), (1, 0.5, 1e-6), (1, 1.0, 0.0)]
"""Order, mix and epsilon."""


def check(metric: Any, importance: Any, given: dict[str, Any]) -> None:
    inputs = [metric, np.asarray(importance, np.float32)]
    (found,) = run("TokenDeterminantSelect", inputs, given)
    np.testing.assert_array_equal(found, expect("TokenDeterminantSelect", wide(inputs), given)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_choices_are_the_reference_s(tokens: int, kind: str) -> None:
    importance = 0.5 + np.random.default_rng(tokens).random((2, tokens))
    for turn, (order, mix, epsilon) in enumerate(OPTIONS if tokens < 100 else OPTIONS[tokens % 2 :: 2]):
        protect = min(turn, tokens - 1)
        most = protect + (12 if tokens > 100 else tokens)
        keep = min(tokens, most) if turn % 2 else min(tokens, protect + 1 + tokens // 8)
        batch, width = (1, 40) if tokens > 500 else (2, 40 if turn % 2 else 39)
        metric = random((batch, tokens, width), kind)
        given = {"keep": keep, "protect": protect, "order": order, "mix": mix, "epsilon": epsilon}
        check(metric, importance[:batch], given)


def test_as_many_as_there_are_and_more_than_the_rank() -> None:
    for width, epsilon in ((4, 0.0), (60, 0.0), (4, 1e-4), (60, 0.5)):
        importance = 0.5 + np.random.default_rng(0).random((2, 40))
        given = {"keep": 40, "protect": 0, "order": 1, "mix": 0.0, "epsilon": epsilon}
        check(random((2, 40, width)), importance, given)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf, -1.0])
def test_ties_and_odd_numbers_are_chosen_as_the_reference_does(bad: float | None) -> None:
    """One token has no importance: two of unlike rows would have the same left, a third of what they had, but for rounding."""
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, 33))]
    importance = np.ones((2, 33))
    if bad is not None:
        few[0, [3, 9]], importance[0, 4], few[1, 1:], importance[1] = bad, bad, bad, bad
    for metric in (few, np.ones_like(few), np.zeros_like(few)):
        for order, mix, epsilon in OPTIONS:
            given = {"keep": 12, "protect": 1, "order": order, "mix": mix, "epsilon": epsilon}
            check(metric, importance, given)


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 10}, {"protect": 5}, {"mix": -1.0}, {"mix": np.inf}, {"epsilon": -1.0}, {"epsilon": np.nan}, {"epsilon": 2.0}],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    given = {"keep": 5, "protect": 1, "order": 0, "mix": 1.0, "epsilon": 0.0, **wrong}
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenDeterminantSelect", [random((1, 9, 4)), np.ones((1, 9), np.float32)], given)


def test_images_take_turns_beyond_256_mebibytes() -> None:
    """4,096 tokens are 64 MiB and a little an image."""
    given = {"keep": [9], "protect": [0], "order": 0, "mix": 1.0, "epsilon": 0.0}
    job = recorded("TokenDeterminantSelect", [like((8, 4096, 64), "float16"), like((8, 4096))], given)
    assert [start.grid[0] for start in job.launches[1::2]] == [3, 3, 2]
    assert job.workspace <= 1 << 28
