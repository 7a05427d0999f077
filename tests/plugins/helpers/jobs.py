"""Jobs of every operator just over a boundary inside its kernels: another block, stage, tile, warp or form takes part.

Each is small, since under ThreadSanitizer a thread of a GPU is a thread of the machine. TokenSelect and TokenMatch have theirs in
test_boundary_kernels.py, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import random


@dataclass(frozen=True)
class Job:
    """An operator with inputs and attributes."""

    operator: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]


def spaced(images: int, tokens: int, width: int) -> Any:
    """Rows in a few groups and apart within them, so that nothing nearly ties."""
    rng = np.random.default_rng([images, tokens, width])
    groups = rng.standard_normal((images, 5, width))[:, rng.integers(0, 5, tokens)]
    return (groups + 0.3 * rng.standard_normal((images, tokens, width))).astype(np.float32)


def select(tokens: int, order: int) -> Job:
    return Job("TokenSelect", (random((2, tokens)),), {"keep": tokens // 2, "protect": 1, "order": order})


def groups(count: int, length: int) -> Job:
    attributes = {"keep": 1 + count, "protect": 1, "lengths": [length] * count, "quotas": [1] * count}
    return Job("TokenGroupSelect", (random((1, 1 + count * length)),), attributes)


def match(tokens: int, width: int) -> Job:
    return Job("TokenMatch", (random((2, tokens, width)),), alternate(tokens, 1, tokens // 4, 0))


def score(tokens: int, rows: int, width: int = 20, kind: str = "float32") -> Job:
    queries, keys = (random((1, 2, tokens, width), kind, seed) for seed in (1, 2))
    bias = random((1, 1, 1, tokens), seed=3)
    return Job("TokenScore", (queries, keys, bias), {"scale": 0.3, "first_row": 1, "end_row": 1 + rows})


def combine(tokens: int, removed: int, width: int) -> Job:
    rng = np.random.default_rng(tokens)
    order, kept = rng.permutation(tokens), tokens - removed
    lists = (
        np.sort(order[:kept])[None],
        order[kept:][None],
        rng.integers(0, kept, (1, removed)),
    )
    sizes = rng.integers(1, 4, (1, tokens, 1)).astype(np.float32)
    return Job("TokenCombine", (random((1, tokens, width)), sizes, *lists), {"type": 1})


def merge(tokens: int, removed: int, width: int) -> Job:
    sizes = np.random.default_rng(tokens).integers(1, 4, (1, tokens, 1)).astype(np.float32)
    pairs = alternate(tokens, 1, removed, tokens % 2)
    return Job("TokenMerge", (random((1, tokens, width)), sizes, spaced(1, tokens, 20)), {**pairs, "type": 1})


def restore(tokens: int, places: int, width: int) -> Job:
    source_map = np.random.default_rng(0).integers(0, tokens, (2, places))
    return Job("TokenRestore", (random((2, tokens, width)), source_map), {})


def greedy(tokens: int, seed: int, order: int = 1) -> Job:
    attributes = {
        "keep": 6, "protect": 1, "order": order, "objective": seed % 2, "power": 1.0, "mix": 0.1, "seed": seed
    }  # fmt: skip
    rated = 0.5 + np.random.default_rng(1).random((1, tokens)).astype(np.float32)
    return Job("TokenGreedySelect", (spaced(1, tokens, 12), rated), attributes)


def cover(tokens: int) -> Job:
    rated = 0.5 + np.random.default_rng(1).random((1, tokens)).astype(np.float32)
    attributes = {"keep": 5, "protect": 1, "order": 0, "power": 1.0, "mix": 0.1}
    return Job("TokenCoverSelect", (spaced(1, tokens, 12), rated), attributes)


def determinant(tokens: int, order: int) -> Job:
    rated = 0.5 + np.random.default_rng(1).random((1, tokens)).astype(np.float32)
    attributes = {"keep": 6, "protect": 1, "order": order, "mix": 0.1, "epsilon": 1e-6}
    return Job("TokenDeterminantSelect", (spaced(1, tokens, 12), rated), attributes)


def cluster(tokens: int, removed: int, linkage: int) -> Job:
    attributes = {"keep": tokens - removed, "remove": removed, "linkage": linkage}
    return Job("TokenCluster", (spaced(1, tokens, 8),), attributes)


def peaks(tokens: int, neighbours: int) -> Job:
    return Job("TokenPeaks", (spaced(1, tokens, 8),), {"keep": 7, "neighbours": neighbours})


def moved(operator: str, tokens: int, kept: int, width: int) -> Job:
    weight = 0.5 + np.random.default_rng(2).random((1, tokens)).astype(np.float32)
    start = np.arange(kept)[None] * (tokens // kept)
    attributes = {"rounds": 2} | ({"power": 2} if operator == "TokenMedoids" else {})
    return Job(operator, (spaced(1, tokens, width), weight, start), attributes)


JOBS: Mapping[str, Callable[[], Job]] = {
    "a selection past 64 keys, a warp's": lambda: select(130, 0),
    "a selection past 256 tokens, by score": lambda: select(300, 1),
    "groups past 128 tokens, a block's": lambda: groups(2, 130),
    "groups past 32, of one token each": lambda: groups(33, 2),
    "a match past 32 sources and destinations": lambda: match(70, 20),
    "a match of rows that are no whole vectors": lambda: match(70, 19),
    "a match of 64 columns, on tensor cores": lambda: match(70, 64),
    "a score of more than a stretch of 512 keys": lambda: score(520, 2),
    "a score of the most rows that count as few": lambda: score(40, 4),
    "a score of one row more, all pairs": lambda: score(40, 5),
    "a score past 64 rows, a tile's": lambda: score(70, 69),
    "a score past 64 rows on tensor cores": lambda: score(70, 69, 72, "float16"),
    "merging past 8 survivors, a block's": lambda: combine(20, 9, 24),
    "merging past 1,024 sources, a stage's": lambda: combine(1040, 1030, 4),
    "merging past 256 channels, a block's": lambda: combine(12, 5, 260),
    "a match and merging past 64 sources, 8 survivors, 256 channels": lambda: merge(140, 30, 260),
    "a match and merging past 256 sources": lambda: merge(521, 200, 4),
    "a restore past 128 channels": lambda: restore(5, 19, 1032),
    "a greedy choice past 256 tokens": lambda: greedy(262, 0),
    "a greedy choice that compares all first": lambda: greedy(70, 2),
    "a greedy choice by position": lambda: greedy(262, 1, 0),
    "a cover past 256 tokens": lambda: cover(262),
    "a determinant past 256 tokens": lambda: determinant(262, 1),
    "a determinant by position": lambda: determinant(70, 0),
    "clusters past 256 tokens": lambda: cluster(260, 40, 2),
    "clusters past 32, a tile's, single": lambda: cluster(70, 30, 0),
    "peaks of up to 8 neighbours": lambda: peaks(70, 8),
    "peaks of 9 neighbours": lambda: peaks(70, 9),
    "peaks past 256 tokens": lambda: peaks(262, 3),
    "means past 32 tokens and centres": lambda: moved("TokenMeans", 70, 34, 8),
    "means past 128 channels, a warp's": lambda: moved("TokenMeans", 40, 3, 132),
    "medoids past 32 tokens and centres": lambda: moved("TokenMedoids", 70, 34, 8),
    "medoids past 256 tokens": lambda: moved("TokenMedoids", 262, 3, 8),
}
"""What lies past which boundary -> the job."""
