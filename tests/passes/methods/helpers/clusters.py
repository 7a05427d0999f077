"""Clustering and mixing once more in loops: what their tests compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method

SIZES = (2, 3, 31, 32, 33, 65)


def settings(protected: Sequence[int] = (0, 1)) -> Iterator[Any]:
    """Tokens, kept, protected, batch: one cluster, some, all but one token."""
    for tokens in SIZES:
        for protect in protected:
            for keep in sorted({protect + 1, protect + max(1, (tokens - protect) // 3), tokens - 1}):
                if protect < keep < tokens:
                    yield pytest.param(tokens, keep, protect, 1 if tokens % 2 else 3)


def square(left: Any, right: Any) -> float:
    """Squared Euclidean distance."""
    return float(sum((a - b) ** 2 for a, b in zip(left, right, strict=True)))


def squares(points: Any) -> list[list[float]]:
    return [[square(a, b) for b in points] for a in points]


def nearest(distances: Sequence[Sequence[float]], centers: Sequence[int]) -> list[int]:
    """The slot of the nearest centre of each token; the smaller slot wins."""
    return [
        min(range(len(centers)), key=lambda slot: distances[centers[slot]][token])
        for token in range(len(distances))
    ]


def peaks(points: Any, count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Density peaks by descending score, and each token's slot; points are the tokens / sqrt(C)."""
    apart = squares(points)
    tokens = range(len(apart))
    density = [math.exp(-sum(sorted(row)[:neighbours]) / min(neighbours, len(apart))) for row in apart]
    score = []
    for i in tokens:
        denser = [j for j in tokens if density[j] > density[i] or (density[j] == density[i] and j < i)]
        gap = min(apart[i][j] for j in denser) if denser else max(map(max, apart))
        score.append(math.sqrt(gap) * density[i])
    centers = sorted(tokens, key=lambda i: -score[i])[:count]
    assign = nearest(apart, centers)
    for slot, center in enumerate(centers):
        assign[center] = slot
    return centers, assign


def grouped(
    protect: int, centers: Sequence[int], assign: Sequence[int], *, sort: bool = True
) -> loops.Groups:
    """Groups of all tokens from centres and slots among the unprotected, by ascending centre or as listed."""
    slots = sorted(range(len(centers)), key=lambda slot: centers[slot]) if sort else range(len(centers))
    groups = loops.Groups([*range(protect), *(protect + centers[slot] for slot in slots)])
    for token, slot in enumerate(assign):
        if token != centers[slot]:
            groups.members[protect + centers[slot]].append(protect + token)
    return groups


def merged(given: Mapping[str, Any], image: int, groups: loops.Groups, weight: Any = None) -> loops.Wanted:
    """What a merging method returns for these groups."""
    x, size = given["x"][image], given["size"][image, :, 0]
    mean = groups.mean(x, size if weight is None else weight)
    return mean, groups.total(size), groups.goes(len(x)), groups.order


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    weight = [math.exp(value - top) for value in values]
    return [value / sum(weight) for value in weight]


def gelu(value: float) -> float:
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def normed(row: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Layer norm of one row."""
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return np.array(
        [(v - mean) / math.sqrt(variance + eps) * w + b for v, w, b in zip(row, weight, bias, strict=True)]
    )


def mixed(x: Any, protect: int, matrix: Any, mixture: Any) -> loops.Wanted:
    """What a mixing method returns: matrix [M,T] rows mix the unprotected tokens into `mixture` [M,C]."""
    matrix = np.asarray(matrix)
    outputs, count = matrix.shape
    strongest = [max(range(outputs), key=lambda slot: matrix[slot, token]) for token in range(count)]
    stands = [max(range(count), key=lambda token: matrix[slot, token]) for slot in range(outputs)]
    return (
        np.concatenate([x[:protect], np.asarray(mixture)]),
        [1.0] * (protect + outputs),
        [*range(protect), *(protect + slot for slot in strongest)],
        [*range(protect), *(protect + token for token in stands)],
    )


def padding_changes_nothing(name: str, keep: int, **options: Any) -> None:
    """Whatever padding (size 0) holds, what the other tokens become does not change."""
    outcomes = []
    for fill in (0.0, 3.0, -50.0):
        given = loops.arrays(33, 2)
        given["size"][:, 25:] = 0
        given["x"][:, 25:] = fill
        given["keys"][:, :, 25:, -1] = 0
        given["attn"][..., 25:] = 0
        outcomes.append([apply_method(name, given, keep=keep, backend=b, **options) for b in loops.BACKENDS])
    for other in outcomes[1:]:
        for first, again in zip(outcomes[0], other, strict=True):
            real = first["size"][..., 0] > 0
            assert (real == (again["size"][..., 0] > 0)).all()
            np.testing.assert_allclose(first["tokens"][real], again["tokens"][real], atol=1e-4)
