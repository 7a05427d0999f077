"""The count of tokens that is worth most."""

from __future__ import annotations

import numpy as np
import pytest

from tokenrt.errors import PlanError
from tokenrt.passes.planning.utility import best, utility


def test_a_step_of_the_staircase_decides() -> None:
    counts, latency, accuracy = [5, 4, 3, 2], [4.0, 4.0, 3.0, 3.0], [80.0, 79.9, 79.8, 60.0]
    assert best(counts, latency, accuracy) == 3
    assert best(counts, latency, accuracy, alpha=0) == 5
    np.testing.assert_allclose(utility(latency, accuracy, 1), [0, 0, 0.25, 0.25])


@pytest.mark.parametrize(("latency", "alpha"), [([1.0], 0.5), ([1.0, 0.0], 0.5), ([1.0, 2.0], 2.0)])
def test_numbers_that_say_nothing_are_refused(latency: list[float], alpha: float) -> None:
    with pytest.raises(PlanError):
        utility(latency, [80.0, 79.0], alpha)
