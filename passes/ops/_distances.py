"""Squared distances between tokens, as the references of clustering operators measure them."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.ops.contract import Array

FARTHEST = 1e30
"""What an infinite or NaN squared distance counts as."""


def squared_distances(metric: Array) -> Array:
    """Return the squared Euclidean distances [B,N,N] of tokens [B,N,D] in float64, FARTHEST where there is none.

    Equal tokens are at distance 0, and two tokens equally far from each other, to the bit; a token that is not finite is
    FARTHEST from itself too.
    """
    x = np.asarray(metric, dtype=np.float64)
    with np.errstate(all="ignore"):
        gram = x @ x.transpose(0, 2, 1)
        gram = np.triu(gram) + np.triu(gram, 1).transpose(0, 2, 1)
        square = np.einsum("bii->bi", gram)
        apart = np.maximum(square[:, :, None] + square[:, None] - 2 * gram, 0)
    return np.where(apart < FARTHEST, apart, FARTHEST)
