"""The kernels of TokenGreedySelect and TokenCoverSelect, run on the CPU, against the NumPy references."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, SIZES, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError

pytestmark = needs_compiler

OPTIONS = [
    {"objective": objective, "seed": seed, "power": power, "mix": mix, "order": order}
    for (objective, seed), (power, mix, order) in zip(
        itertools.product((0, 1), range(3)),
        itertools.cycle([(1.0, 0.0, 0), (0.0, 0.75, 1), (0.5, 0.25, 1)]),
        strict=False,
    )
]


def check(metric: Any, importance: Any, given: dict[str, Any], name: str = "TokenGreedySelect") -> None:
    inputs = [metric, np.asarray(importance, np.float32)]
    (found,), (wanted,) = run(name, inputs, given), expect(name, wide(inputs), given)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_greedy_choices_are_the_reference_s(tokens: int, kind: str) -> None:
    importance = np.random.default_rng(tokens).random((2, tokens))
    options = OPTIONS if tokens < 100 else OPTIONS[tokens % 2 :: 3]
    for turn, others in enumerate(options):
        protect = min(turn % 3, tokens - 1)
        most = protect + (12 if tokens > 100 else tokens)
        keep = min(tokens, most) if turn % 2 else min(tokens, protect + 1 + tokens // 8)
        batch, width = (1, 24) if tokens > 500 else (2, 20 if turn % 2 else 7)
        metric = random((batch, tokens, width), kind)
        check(metric, importance[:batch], {"keep": keep, "protect": protect, **others})


def test_greedy_goes_over_rows_wider_than_a_block() -> None:
    metric = random((1, 40, 4096), "float16")
    check(metric, np.ones((1, 40)), {"keep": 5, "protect": 1, **OPTIONS[2]})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("objective", [0, 1])
def test_greedy_ties_go_to_the_smaller_position(objective: int, seed: int) -> None:
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, 33))]
    for metric in (few, np.ones_like(few), np.zeros_like(few)):
        given = {"keep": 9, "protect": 1, "objective": objective, "seed": seed, "power": 1.0, "mix": 0.0}
        check(metric, np.ones((2, 33)), {**given, "order": 1})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_odd_numbers_are_chosen_as_the_reference_does(bad: float) -> None:
    metric, importance = random((2, 33, 8)), np.random.default_rng(0).random((2, 33))
    metric[0, [3, 9]], importance[0, [4, 9]] = bad, bad
    metric[1], importance[1] = bad, bad
    for others in OPTIONS:
        check(metric, importance, {"keep": 12, "protect": 1, **others})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_cover_choices_are_the_reference_s(tokens: int, kind: str) -> None:
    importance = np.random.default_rng(tokens).random((2, tokens))
    for turn, (power, mix, order) in enumerate(((1.0, 0.0, 0), (0.5, 0.25, 1), (2.0, 1.0, 1))):
        protect = min(turn % 3, tokens - 1)
        if tokens > 500 and turn != 1:
            continue
        keep = min(tokens, protect + (1 + tokens // 4 if turn == 0 else 12))
        batch = 1 if tokens > 500 else 2
        metric = random((batch, tokens, 20 if turn else 7), kind)
        given = {"keep": keep, "protect": protect, "order": order, "power": power, "mix": mix}
        check(metric, importance[:batch], given, "TokenCoverSelect")


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_cover_of_equal_and_odd_tokens_is_the_reference_s(bad: float | None) -> None:
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, 33))]
    importance = np.random.default_rng(1).random((2, 33)) if bad is not None else np.ones((2, 33))
    if bad is not None:
        few[0, [3, 9]], importance[0, [4, 9]] = bad, bad
    given = {"keep": 12, "protect": 1, "order": 1, "power": 1.0, "mix": 0.0}
    for metric in (few, np.ones_like(few), np.zeros_like(few)):
        check(metric, importance, given, "TokenCoverSelect")


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 10}, {"protect": 5}, {"power": -1.0}, {"power": np.nan}, {"mix": np.inf}, {"seed": 3}, {"objective": 2}],
)  # fmt: skip
def test_greedy_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    given = {"keep": 5, "protect": 1, **OPTIONS[0], **wrong}
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenGreedySelect", [random((1, 9, 4)), np.ones((1, 9), np.float32)], given)
    if not {"seed", "objective"} & set(wrong):
        shared = {name: given[name] for name in ("keep", "protect", "order", "power", "mix")}
        with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
            run("TokenCoverSelect", [random((1, 9, 4)), np.ones((1, 9), np.float32)], shared)
