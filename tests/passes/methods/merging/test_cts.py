"""CTS: squares chosen by a policy share one token, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tests.passes.methods.merging.test_algm import windows
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

RNG = np.random.default_rng(5)
WEIGHTS = {
    "policy": RNG.standard_normal((2, 4 * loops.C)).astype(np.float32),
    "policy_bias": RNG.standard_normal(2).astype(np.float32),
}


def share(x: Any, grid: tuple[int, ...], count: int, protect: int) -> loops.Groups:
    table = windows(grid, 2, 2, protect)
    scores = []
    for square in table:
        features = np.concatenate([x[i] for i in square])
        logits = WEIGHTS["policy"].astype(np.float64) @ features + WEIGHTS["policy_bias"]
        scores.append(1 / (1 + np.exp(logits[0] - logits[1])))
    best = sorted(sorted(range(len(table)), key=lambda w: -scores[w])[:count])
    taken = {i for w in best for i in table[w]}
    free = [i for i in range(len(x)) if i not in taken]
    return loops.Groups([*free, *(table[w][0] for w in best)], {table[w][0]: table[w] for w in best})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("grid", "count", "protect"),
    [((2, 2), 1, 0), ((4, 6), 1, 1), ((4, 6), 6, 1), ((4, 6), 6, 0), ((5, 7), 5, 2), ((14, 14), 20, 1), ((2, 4, 4), 3, 0)],
)  # fmt: skip
def test_equals_the_loops(grid: tuple[int, ...], count: int, protect: int, batch: int) -> None:
    tokens = int(np.prod(grid)) + protect
    given = loops.arrays(tokens, batch) | {"grid": grid}

    def wanted(image: int) -> loops.Wanted:
        groups = share(given["x"][image], grid, count, protect)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check("cts", given, wanted, keep=tokens - 3 * count, protect=protect, weights=WEIGHTS)


def test_equal_scores_share_the_first_squares() -> None:
    given = loops.arrays(17, 1) | {"grid": (4, 4)}
    weights = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
    for backend in loops.BACKENDS:
        found = apply_method("cts", given, keep=11, backend=backend, weights=weights, restore=True)
        assert found["index"][0].tolist() == [0, *range(9, 17), 1, 3]
        np.testing.assert_array_equal(found["restored"][0, [1, 2, 5, 6]], found["tokens"][0, [9] * 4])


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("cts", 25, (6, 6), weights=WEIGHTS)
    loops.loses_nothing("cts", 25, (6, 6), weights=WEIGHTS)


def test_what_it_cannot_do_is_refused() -> None:
    given = loops.arrays(37, 1)
    with pytest.raises(MethodError, match="'cts' needs the grid of the 36 unprotected tokens"):
        apply_method("cts", given, keep=25, weights=WEIGHTS)
    given["grid"] = (6, 6)
    with pytest.raises(PlanError, match=r"the grid \(6, 6\) has 9; removing 11 of 37 .* keep 25 or 28"):
        apply_method("cts", given, keep=26, weights=WEIGHTS)
    with pytest.raises(MethodError, match=r"policy \[2,4\*C\], policy_bias \[2\]"):
        apply_method("cts", given, keep=25)
    with pytest.raises(MethodError, match=r"'policy' .* must have shape \[2, 24\] here, got \[3, 24\]"):
        apply_method("cts", given, keep=25, weights=WEIGHTS | {"policy": np.zeros((3, 24), np.float32)})
    with pytest.raises(MethodError, match=r"'policy' .* must have shape \[2, 24\] here, got \[2, 20\]"):
        apply_method("cts", given, keep=25, weights=WEIGHTS | {"policy": np.zeros((2, 20), np.float32)})
