"""Kernels just over each boundary inside them, where another warp, block, stage or form takes part: against the references.

Small enough to run under ThreadSanitizer, which does; see test_sanitizers.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import needs_compiler, random, run, wide

pytestmark = needs_compiler


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tokens", [64, 65, 129, 257, 260, 530])
def test_selection_over_a_boundary(tokens: int, order: int) -> None:
    """64 keys are sorted by a warp; 256 unprotected tokens by the small block, more by the large one."""
    score = np.round(random((2, tokens)), 1)
    score[0, ::5], score[1, 1::4] = np.nan, np.inf
    for protect, keep in ((1, 2), (3, tokens // 2), (0, tokens)):
        attributes = {"keep": keep, "protect": protect, "order": order}
        (found,) = run("TokenSelect", [score], attributes)
        np.testing.assert_array_equal(found, expect("TokenSelect", wide([score]), attributes)[0])


def test_selection_of_the_most_that_are_sorted() -> None:
    score = np.round(random((1, 4097)), 2)
    for tokens, order in itertools.product((4096, 4097), (0, 1)):
        attributes = {"keep": 4000, "protect": 0, "order": order}
        (found,) = run("TokenSelect", [score[:, :tokens]], attributes)
        np.testing.assert_array_equal(found, expect("TokenSelect", [score[:, :tokens]], attributes)[0])


def tied(tokens: int, width: int, images: int = 2) -> np.ndarray:
    """Rows of few different directions and lengths that are powers of two, so that cosines are exact and tie often."""
    rng = np.random.default_rng(tokens)
    directions = np.eye(width, dtype=np.float32)[rng.integers(0, 3, (images, tokens))]
    return directions * 2.0 ** rng.integers(-3, 4, (images, tokens, 1)).astype(np.float32)


@pytest.mark.parametrize(("tokens", "width", "removed"), [(65, 4, 32), (131, 20, 7), (1027, 8, 300)])
def test_matching_over_a_boundary(tokens: int, width: int, removed: int) -> None:
    """Tied rows over several tiles of sources, stretches of destinations, warps of the sort; 513 sources take large tiles."""
    metric = tied(tokens, width, 1)
    for kind, order in itertools.product(("float32", "float16"), (0, 1)):
        attributes = alternate(tokens, 1, removed, order)
        given = metric.astype(kind)
        for found, wanted in zip(
            run("TokenMatch", [given], attributes),
            expect("TokenMatch", wide([given]), attributes),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


def test_matching_of_more_sources_than_are_sorted() -> None:
    metric = tied(8200, 4, 1)
    attributes = alternate(8200, 2, 700, 0)
    for found, wanted in zip(
        run("TokenMatch", [metric], attributes), expect("TokenMatch", [metric], attributes), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
