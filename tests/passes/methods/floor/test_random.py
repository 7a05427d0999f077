"""The control: the same draw for every input, in which padding never wins over a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method

BACKENDS = ("numpy", "onnxruntime")


def kept(count: int, keep: int, protect: int, real: np.ndarray[Any, Any] | None, backend: str) -> Any:
    x = np.random.default_rng(0).standard_normal((2, count, 4)).astype(np.float32)
    tensors = {"x": x} | ({} if real is None else {"size": real.astype(np.float32)[:, :, None]})
    found = apply_method("random", tensors, keep=keep, protect=protect, seed=3, backend=backend)
    index = np.broadcast_to(found["index"], (2, keep))
    for row in range(2):
        np.testing.assert_array_equal(found["tokens"][row], x[row, index[row]])
    return index


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
def test_padding_leaves_first(protect: int, backend: str) -> None:
    """Of a row without padding stay those that stay without sizes, of a row with some the first of that draw which are none."""
    real = np.array([[1] * 12, [1] * 5 + [0] * 4 + [1] * 3])
    index = kept(12, 6, protect, real, backend)
    drawn = kept(12, 6, protect, None, backend)
    assert index[0].tolist() == drawn[0].tolist()
    assert real[1, index[1]].all()
    assert (np.diff(index) > 0).all()
    free = np.random.default_rng([3, 0]).permutation(12 - protect) + protect
    first = [place for place in free if real[1, place]][: 6 - protect]
    assert index[1].tolist() == sorted([*range(protect), *first])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_tokens_than_stay_all_stay(backend: str) -> None:
    real = np.array([[1] * 9, [1] * 3 + [0] * 6])
    index = kept(9, 5, 0, real, backend)
    assert index[1].tolist()[:3] == [0, 1, 2]
