"""What the tests of the video methods share: seeded clips, and ToMe's matching of a short list in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BACKENDS = ("numpy", "onnxruntime")
Row = Sequence[float]
Group = list[int]


def clip(
    frames: int, each: int, protect: int, batch: int = 1, seed: int = 0, sized: bool = True
) -> dict[str, Any]:
    """Tensors of a clip in float32: `protect` tokens, then `frames` times `each`."""
    rng = np.random.default_rng([seed, frames, each])
    tokens = protect + frames * each
    given: dict[str, Any] = {
        "x": rng.standard_normal((batch, tokens, 6)).astype(np.float32),
        "keys": rng.standard_normal((batch, 2, tokens, 5)).astype(np.float32),
        "grid": (frames, 1, each),
    }
    if sized:
        given["size"] = rng.integers(1, 5, (batch, tokens, 1)).astype(np.float32)
    return given


def cosine(a: Row, b: Row) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    length = (sum(p * p for p in a) * sum(q * q for q in b)) ** 0.5
    return dot / length if length else 0.0


def matched(metric: Sequence[Row], remove: int, first: int, by_value: bool) -> list[Group]:
    """Groups of list entries that become one, in output order; entry i is a source where first + i is even."""
    sources = [i for i in range(len(metric)) if (first + i) % 2 == 0]
    goals = [i for i in range(len(metric)) if (first + i) % 2 == 1]
    nearest, value = {}, {}
    for i in sources:
        similar = [cosine(metric[i], metric[j]) for j in goals]
        value[i] = max(similar)
        nearest[i] = goals[similar.index(value[i])]
    ranked = sorted(sources, key=lambda i: -value[i])
    left = ranked[remove:]
    groups = {i: [i] for i in [*(left if by_value else sorted(left)), *goals]}
    for i in ranked[:remove]:
        groups[nearest[i]].append(i)
    return list(groups.values())


def means(rows: Any, sizes: Any, groups: Sequence[Group]) -> tuple[Any, Any]:
    """Size-weighted mean and total size of each group."""
    totals = [sum(float(sizes[i]) for i in group) for group in groups]
    mean = [
        sum(np.asarray(rows[i], np.float64) * float(sizes[i]) for i in group) / total
        for group, total in zip(groups, totals, strict=True)
    ]
    return np.array(mean), np.array(totals)


def same_merge(found: Any, image: int, given: Any, groups: Sequence[Group]) -> None:
    """The result for one image merges these groups of input positions, in this order."""
    sizes = given["size"][image, :, 0] if "size" in given else np.ones(given["x"].shape[1])
    tokens, totals = means(given["x"][image], sizes, groups)
    where = {i: slot for slot, group in enumerate(groups) for i in group}
    assert found["assign"][image].tolist() == [where[i] for i in range(len(where))]
    assert found["index"][image].tolist() == [group[0] for group in groups]
    np.testing.assert_allclose(found["tokens"][image], tokens, atol=2e-6)
    np.testing.assert_allclose(found["size"][image, :, 0], totals)
