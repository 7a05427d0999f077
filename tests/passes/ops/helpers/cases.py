"""One small input for every operator, shared by the tests that go over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

B, N, K, R, C, H, D = 3, 17, 12, 5, 8, 2, 4


def alternate(tokens: int, protect: int, remove: int, order: int) -> dict[str, Any]:
    """Attributes of a TokenMatch from even into odd positions, the first `protect` apart."""
    free = range(protect, tokens)
    return {
        "sources": [i for i in free if i % 2 == 0],
        "destinations": [i for i in free if i % 2 == 1],
        "others": list(range(protect)),
        "keep": tokens - remove,
        "remove": remove,
        "order": order,
    }


def cases() -> dict[str, tuple[list[Any], Mapping[str, Any]]]:
    """Return inputs and attributes by operator name."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    order = np.stack([rng.permutation(N) for _ in range(B)])
    sizes = rng.integers(1, 5, (B, N, 1)).astype(np.float32)
    halves = {
        "sources": list(range(2, N, 2)),
        "destinations": list(range(1, N, 2)),
        "others": [0],
        "keep": K,
        "remove": R,
    }
    return {
        "TokenScore": (
            [floats(B, H, N, D), floats(B, H, N, D), floats(B, 1, 1, N)],
            {"scale": 0.5, "first_row": 0, "end_row": 1},
        ),
        "TokenSelect": ([floats(B, N)], {"keep": K, "protect": 1, "order": 0}),
        "TokenGroupSelect": (
            [floats(B, N)],
            {"keep": K, "protect": 1, "lengths": [6, 2, 3, 5], "quotas": [4, 2, 0, 5]},
        ),
        "TokenCoverSelect": (
            [floats(B, N, D), rng.random((B, N)).astype(np.float32)],
            {"keep": K, "protect": 1, "order": 0, "power": 1.0, "mix": 0.5},
        ),
        "TokenGreedySelect": (
            [floats(B, N, D), rng.random((B, N)).astype(np.float32)],
            {"keep": K, "protect": 1, "order": 0, "objective": 0, "power": 1.0, "mix": 0.5, "seed": 2},
        ),
        "TokenDeterminantSelect": (
            [floats(B, N, D), rng.random((B, N)).astype(np.float32)],
            {"keep": K, "protect": 1, "order": 0, "mix": 0.5, "epsilon": 1e-6},
        ),
        "TokenMatch": ([floats(B, N, D)], {**halves, "order": 0}),
        "TokenCluster": ([floats(B, N, D)], {"keep": K, "remove": R, "linkage": 2}),
        "TokenPeaks": ([floats(B, N, D)], {"keep": K, "neighbours": 5}),
        "TokenMeans": (
            [floats(B, N, D), rng.random((B, N)).astype(np.float32), order[:, :K]],
            {"rounds": 3},
        ),
        "TokenMedoids": (
            [floats(B, N, D), rng.random((B, N)).astype(np.float32), order[:, :K]],
            {"rounds": 3, "power": 1},
        ),
        "TokenCombine": (
            [floats(B, N, C), sizes, order[:, :K], order[:, K:], rng.integers(0, K, (B, R))],
            {"type": 1},
        ),
        "TokenMerge": ([floats(B, N, C), sizes, floats(B, N, D)], {**halves, "order": 0, "type": 1}),
        "TokenRestore": ([floats(B, K, C), rng.integers(0, K, (B, N))], {}),
    }


SHAPES = {
    "TokenScore": [[N]],
    "TokenSelect": [[K]],
    "TokenGroupSelect": [[K]],
    "TokenGreedySelect": [[K]],
    "TokenCoverSelect": [[K]],
    "TokenDeterminantSelect": [[K]],
    "TokenMatch": [[(N - 1) // 2], [K], [R], [R]],
    "TokenCluster": [[K], [N]],
    "TokenPeaks": [[K], [N]],
    "TokenMeans": [[K, D], [N]],
    "TokenMedoids": [[K], [N]],
    "TokenCombine": [[K, C], [K, 1]],
    "TokenMerge": [[K, C], [K, 1], [(N - 1) // 2], [K], [R], [R]],
    "TokenRestore": [[N, C]],
}
"""What shape inference must find behind the batch axis."""
