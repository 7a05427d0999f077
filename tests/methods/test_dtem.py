"""DTEM: ToMe on a learned linear map of the normalised input, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.methods import loops
from tokenrt.errors import MethodError
from tokenrt.passes.apply import apply_method

RNG = np.random.default_rng(3)
WEIGHTS = {
    "weight": RNG.standard_normal((4, loops.C)).astype(np.float32),
    "bias": RNG.standard_normal(4).astype(np.float32),
}
SETTINGS = [*loops.settings("dtem", weights=WEIGHTS)]


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), SETTINGS)
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        metric = [
            [float(np.sum(row * token)) + shift for row, shift in zip(*WEIGHTS.values(), strict=True)]
            for token in given["normed"][image]
        ]
        groups = loops.tome(np.array(metric), removed, protect)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check("dtem", given, wanted, keep=tokens - removed, protect=protect, weights=WEIGHTS)


def test_a_block_may_have_its_own_map() -> None:
    given = loops.arrays(21, 1)
    own = {f"block2.{name}": -array[::-1] + 1 for name, array in WEIGHTS.items()}
    found = [
        apply_method("dtem", given, keep=14, block=block, weights=WEIGHTS | own)["assign"].tolist()
        for block in (1, 2, 3)
    ]
    assert found[0] == found[2] != found[1]


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("dtem", 25, weights=WEIGHTS)
    loops.loses_nothing("dtem", 25, weights=WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, r"'dtem' needs trained weights: it takes --set weights=FILE .* weight \[M,C\], bias \[M\]"),
        ({"weight": WEIGHTS["weight"]}, "lack 'bias'"),
        ({**WEIGHTS, "bias": np.zeros(3, np.float32)}, r"'bias' .* must have shape \[4\] here, got \[3\]"),
    ],
)
def test_missing_weights_are_named(weights: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("dtem", loops.arrays(9, 1), keep=8, weights=weights)


def test_a_missing_input_is_named() -> None:
    given = {"x": loops.arrays(9, 1)["x"]}
    with pytest.raises(MethodError, match=r"needs the tensor normed, with shapes normed \[B,N,C\]"):
        apply_method("dtem", given, keep=8, weights=WEIGHTS)
