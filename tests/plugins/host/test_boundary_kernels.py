"""Kernels just over each boundary inside them, where another warp, block, stage or form takes part: against the references.

Small enough to run under ThreadSanitizer, which does; see test_sanitizers.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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
