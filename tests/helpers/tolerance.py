"""The tolerance rule of every numerical test here: at most twice the error of a plain implementation."""

from __future__ import annotations

from typing import Any

import numpy as np


def within_twice(found: Any, exact: Any, plain: Any, unit: float = 2.0**-24) -> None:
    """Compare with the float64 result: the error may be twice that of `plain`, plus one rounding of the largest value.

    The rounding covers cases where the plain implementation is exact by luck.
    """
    found, exact, plain = (np.asarray(x, dtype=np.float64) for x in (found, exact, plain))
    assert found.shape == exact.shape
    allowed = 2 * np.max(np.abs(plain - exact)) + unit * np.max(np.abs(exact))
    worst = np.max(np.abs(found - exact))
    assert worst <= allowed, f"error {worst:.3g} is more than {allowed:.3g}"
