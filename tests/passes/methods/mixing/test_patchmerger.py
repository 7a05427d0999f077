"""PatchMerger against loops, with and without the scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def weights(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    shapes = {"queries": (count, loops.C), "norm_weight": (loops.C,), "norm_bias": (loops.C,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int, scaled: bool) -> None:
    given, trained = loops.arrays(tokens, batch), weights(keep - protect)

    def wanted(image: int) -> loops.Wanted:
        rows = [
            clusters.normed(token, trained["norm_weight"], trained["norm_bias"])
            for token in given["x"][image, protect:]
        ]
        shares = [
            clusters.softmax(
                [float(query.astype(float) @ row) / (math.sqrt(loops.C) if scaled else 1) for row in rows]
            )
            for query in trained["queries"]
        ]
        mixture = [sum(s * row for s, row in zip(line, rows, strict=True)) for line in shares]
        return clusters.mixed(given["x"][image], protect, shares, mixture)

    loops.check("patchmerger", given, wanted, keep=keep, protect=protect, weights=trained, scaled=scaled)


def test_epsilon_is_that_of_the_norm() -> None:
    """Of tokens with variance 1 a norm with epsilon 3 leaves half."""
    given = loops.arrays(9, 1, sized=False)
    given["x"] = np.tile([1.0, -1.0], (1, 9, loops.C // 2))
    trained = weights(4) | {"norm_weight": np.ones(loops.C, "f"), "norm_bias": np.zeros(loops.C, "f")}
    found = apply_method("patchmerger", given, keep=4, protect=0, weights=trained, epsilon=3.0)
    np.testing.assert_allclose(found["tokens"], given["x"][:, :4] / 2)


def test_odd_numbers_and_padding() -> None:
    loops.survives_odd_numbers("patchmerger", 25, weights=weights(24))
    clusters.padding_changes_nothing("patchmerger", 9, weights=weights(8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"'patchmerger' needs trained weights: .*weights=FILE .* queries \[K,C\], norm_weight \[C\]"),
        ({"queries": weights(8)["queries"]}, "lack 'norm_weight'"),
        (
            {**weights(8), "norm_weight": np.ones(5, np.float32)},
            r"'norm_weight' .* shape \[6\] here, got \[5\]",
        ),
        (weights(7), r"'queries' .* must have shape \[8, 6\] here, got \[7, 6\]"),
        ({**weights(8), "norm_bias": np.zeros(5, np.float32)}, r"'norm_bias' .* shape \[6\] here, got \[5\]"),
    ],
)
def test_wrong_weights_are_named(given: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("patchmerger", loops.arrays(12, 1), keep=9, weights=given)
