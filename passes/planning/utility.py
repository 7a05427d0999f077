"""Where one token fewer is worth it: latency is a staircase in the number of tokens, and just below a step most is gained."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenrt.errors import PlanError


def utility(latency: ArrayLike, accuracy: ArrayLike, alpha: float = 0.5) -> NDArray[np.float64]:
    """How much each of G token counts is worth: alpha (1 - L / max L) + (1 - alpha) A / max A.

    latency [G] and accuracy [G] of the model with so many tokens, in any unit; alpha, 0 to 1: what speed counts for beside
    accuracy. Raises: PlanError where they are not of one length, or not positive.
    Source: Eliopoulos et al., Pruning One More Token is Enough, WACV 2025.
    """
    times, right = np.asarray(latency, np.float64), np.asarray(accuracy, np.float64)
    if times.ndim != 1 or times.shape != right.shape or not times.size:
        raise PlanError(
            f"latency {list(times.shape)} and accuracy {list(right.shape)} must be of as many token counts"
        )
    if not 0 <= alpha <= 1 or times.min() <= 0 or right.max() <= 0:
        raise PlanError("latencies are above 0, some accuracy is, and alpha lies in 0 to 1")
    found: NDArray[np.float64] = alpha * (1 - times / times.max()) + (1 - alpha) * right / right.max()
    return found


def best(counts: ArrayLike, latency: ArrayLike, accuracy: ArrayLike, alpha: float = 0.5) -> int:
    """The token count worth most, the first of equals."""
    return int(np.asarray(counts)[int(np.argmax(utility(latency, accuracy, alpha)))])
