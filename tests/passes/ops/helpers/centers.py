"""Inputs of the operators that move centres: points on a line, points at random, and where centres start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def line(*places: float) -> Any:
    """Points of one coordinate: [1,N,1]."""
    return np.array(places, np.float32)[None, :, None]


def begun(metric: Any, start: Any, weight: Any = None) -> list[Any]:
    """The inputs: positions shared by the images where `start` is one list, and equal weights where there are none."""
    start = np.broadcast_to(np.asarray(start, np.int64), (len(metric), np.shape(start)[-1]))
    weight = np.ones(metric.shape[:2], np.float32) if weight is None else np.asarray(weight, np.float32)
    return [metric, weight, start]


def starts(seed: int) -> Iterator[tuple[Any, Any, Any]]:
    """Metric, start and weight at random, for token counts at the boundaries and one, half and all of them kept."""
    rng = np.random.default_rng(seed)
    for tokens in (1, 2, 31, 32, 33, 197, 257):
        metric = rng.standard_normal((2, tokens, 16)).astype(np.float32)
        weight = rng.random((2, tokens)).astype(np.float32)
        for keep in {1, (tokens + 1) // 2, tokens}:
            yield metric, np.stack([rng.permutation(tokens)[:keep] for _ in range(2)]), weight
