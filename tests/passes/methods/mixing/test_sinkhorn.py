"""Sinkhorn against loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def centers(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    return {"centers": rng.standard_normal((count, loops.C)).astype(np.float32)}


def unit(rows: Any) -> Any:
    return np.array([row / math.sqrt(sum(value * value for value in row)) for row in rows])


def plan(tokens: Any, learned: Any, eps: float, rounds: int) -> Any:
    """The transport plan [M,T] by scaling rows, then columns, of the kernel."""
    kernel = np.exp(unit(learned.astype(float)) @ unit(tokens).T / eps)
    count, total = len(tokens), len(tokens) + len(learned)
    rows, columns = np.ones(len(learned)), np.ones(count)
    for _ in range(rounds):
        rows = 1 / total / (kernel @ columns)
        columns = 1 / total / (rows @ kernel)
    return rows[:, None] * kernel * columns * total


@pytest.mark.parametrize(("eps", "iterations"), [(1.0, 3), (0.1, 5)])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(
    tokens: int, keep: int, protect: int, batch: int, eps: float, iterations: int
) -> None:
    given, trained = loops.arrays(tokens, batch), centers(keep - protect)

    def wanted(image: int) -> loops.Wanted:
        free = given["x"][image, protect:]
        shares = plan(free, trained["centers"], eps, iterations)
        np.testing.assert_allclose(shares.sum(0), 1)
        return clusters.mixed(given["x"][image], protect, shares, shares @ unit(free))

    if keep - protect > 1:  # with one centre every token is its strongest: nothing but rounding ranks them
        loops.check(
            "sinkhorn",
            given,
            wanted,
            keep=keep,
            protect=protect,
            weights=trained,
            eps=eps,
            iterations=iterations,
        )
    found = apply_method(
        "sinkhorn", given, keep=keep, protect=protect, weights=trained, eps=eps, iterations=iterations
    )
    for image in range(batch):
        np.testing.assert_allclose(found["tokens"][image], wanted(image)[0], atol=1e-9)


def test_odd_numbers_and_padding() -> None:
    loops.survives_odd_numbers("sinkhorn", 25, weights=centers(24))
    clusters.padding_changes_nothing("sinkhorn", 9, weights=centers(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"'sinkhorn' needs trained weights: .*weights=FILE .* centers \[K,C\]"),
        ({"weights": centers(7)}, r"'centers' .* must have shape \[8, 6\] here, got \[7, 6\]"),
        ({"weights": {"centers": np.ones((8, 5), np.float32)}}, r"shape \[8, 6\] here, got \[8, 5\]"),
        ({"weights": centers(8), "eps": 0.0}, r"eps=0.0 .* above 0"),
        ({"weights": centers(8), "iterations": 0}, r"iterations=0"),
    ],
)
def test_wrong_weights_and_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("sinkhorn", loops.arrays(12, 1), keep=9, **options)
