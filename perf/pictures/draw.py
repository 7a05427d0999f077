"""Draw tokens on a picture: joined patches share their mean colour inside an outline, dropped ones are dark."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LINE = 255.0
DROPPED = 0.16
"""Share of its light that a dropped patch keeps."""


def drawn(image: Array, label: Array, groups: Array, strength: float = 0.8) -> Array:
    """The picture [H,W,3] uint8 with its tokens drawn in.

    label [H,W]: the token of each pixel, -1 where it was dropped. groups [h,w]: that of each patch. strength: of the outlines.
    """
    made = image.astype(np.float32)
    if (groups < 0).any():
        made = np.where(label[..., None] < 0, made.mean(axis=2, keepdims=True) * DROPPED, made)
    whole = np.unique(groups[groups >= 0], return_counts=True)
    for group in np.intersect1d(whole[0][whole[1] > 1], label):
        made[label == group] = made[label == group].mean(axis=0)
    parts = (label < 0).astype(np.int64) if (whole[1] == 1).all() and (groups < 0).any() else label
    edge = edges(parts)
    made[edge] += strength * (LINE - made[edge])
    result: Array = made.round().clip(0, 255).astype(np.uint8)
    return result


def edges(label: Array) -> Array:
    """Pixels beside one of another label."""
    edge = np.zeros(label.shape, bool)
    for axis in (0, 1):
        changes = np.diff(label, axis=axis) != 0
        low: list[Any] = [slice(None), slice(None)]
        high = [*low]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        edge[tuple(low)] |= changes
        edge[tuple(high)] |= changes
    return edge


def labels(groups: Array, height: int, width: int) -> Array:
    """The token of each pixel of a picture whose patches [h,w] are of equal size."""
    down = np.minimum(np.arange(height) * groups.shape[0] // height, groups.shape[0] - 1)
    across = np.minimum(np.arange(width) * groups.shape[1] // width, groups.shape[1] - 1)
    found: Array = groups[down][:, across]
    return found
