"""MustDrop: alike windows become one token, written once more with loops."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import cosine
from tokenrt import apply_method
from tokenrt.errors import PlanError


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
@pytest.mark.parametrize(("side", "merge", "protect"), [(3, 2, 1), (2, 5, 0), (3, 4, 2)])
def test_the_most_alike_windows_merge_into_their_last_cell(
    side: int, merge: int, protect: int, backend: str
) -> None:
    rows, columns = 6, 7
    rng = np.random.default_rng(side)
    x = rng.standard_normal((2, protect + rows * columns, 5)).astype(np.float32)
    size = rng.integers(1, 5, (2, protect + rows * columns, 1)).astype(np.float32)
    given = {"x": x, "size": size, "grid": (rows, columns)}
    keep = protect + rows * columns - merge * (side * side - 1)
    found = apply_method("mustdrop", given, keep=keep, protect=protect, side=side, backend=backend)
    for image in range(2):
        windows = [
            [protect + (top + i) * columns + left + j for i in range(side) for j in range(side)]
            for top in range(0, rows - side + 1, side)
            for left in range(0, columns - side + 1, side)
        ]
        alike = [
            np.mean([cosine(x[image, a].tolist(), x[image, b].tolist()) for a in own for b in own if a != b])
            for own in windows
        ]
        chosen = [windows[i] for i in np.argsort([-value for value in alike], kind="stable")[:merge]]
        others = [i for i in range(protect, len(x[image])) if not any(i in own for own in chosen)]
        groups = [*([i] for i in range(protect)), *chosen, *([i] for i in others)]
        for slot, own in enumerate(groups):
            weight = size[image, own].astype(np.float64)
            mean = (x[image, own] * weight).sum(axis=0) / weight.sum()
            np.testing.assert_allclose(found["tokens"][image, slot], mean, atol=2e-6)
            assert found["size"][image, slot, 0] == weight.sum()
            assert found["index"][image, slot] == own[-1]
            assert (found["assign"][image, own] == slot).all()


def test_a_count_that_is_no_number_of_windows_is_refused() -> None:
    given = {"x": np.ones((1, 36, 4), np.float32), "grid": (6, 6)}
    with pytest.raises(PlanError, match=r"removes 8 tokens for each window .* keep 20 or 28"):
        apply_method("mustdrop", given, keep=25, protect=0)
