"""Trained scores inside a language model, of a video and before an image is generated, written once more with loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tests.passes.methods.helpers import scored
from tokenrt import apply_method
from tokenrt.errors import PlanError
from tokenrt.passes import methods

BACKENDS = ("numpy", "onnxruntime")


def tokens(count: int) -> Any:
    return np.random.default_rng(count).standard_normal((2, count, given.C)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["covipal", "rcp", "vtm"])
def test_the_best_by_a_trained_score_stay(name: str, backend: str) -> None:
    x, protect = tokens(20), 2
    attention = np.random.default_rng(1).random((2, given.H, 20)).astype(np.float32)
    weights = given.weights(methods.get(name), 20, 9, protect)
    tensors = {"x": x, "last_attn": attention}
    found = apply_method(name, tensors, keep=9, protect=protect, weights=weights, backend=backend)
    score = scored.gated(weights, x.astype(np.float64))
    if name == "rcp":
        score = score + np.log(attention.mean(axis=1))
    for row in range(2):
        kept = [0, 1, *(2 + np.sort(np.argsort(-score[row, 2:], kind="stable")[:7]))]
        assert found["index"][row].tolist() == kept
        groups = {place: [place] for place in kept}
        unit = x[row] / np.linalg.norm(x[row], axis=1, keepdims=True)
        for place in set(range(20)) - set(kept) if name == "vtm" else ():
            groups[kept[2 + int(np.argmax(unit[kept[2:]] @ unit[place]))]].append(place)
        for slot, place in enumerate(kept):
            np.testing.assert_allclose(found["tokens"][row, slot], x[row, groups[place]].mean(0), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_patches_that_move_are_embedded(backend: str) -> None:
    x = tokens(36)
    found = apply_method("grt", {"x": x, "grid": (3, 3, 4)}, keep=20, protect=0, backend=backend)
    frames = x.reshape(2, 3, 12, -1)
    moved = np.abs(np.diff(frames, axis=1)).mean(axis=3).reshape(2, 24)
    for row in range(2):
        best = 12 + np.sort(np.argsort(-moved[row], kind="stable")[:8])
        assert found["index"][row].tolist() == [*range(12), *best]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
def test_squares_are_folded_into_channels(protect: int, backend: str) -> None:
    x = tokens(24 + protect)
    weights = given.weights(methods.get("token_shuffle"), 24, 6, 0)
    tensors = {"x": x, "grid": (4, 6)}
    options: dict[str, Any] = {"protect": protect, "weights": weights, "backend": backend}
    found = apply_method("token_shuffle", tensors, keep=6 + protect, **options)
    cells = x[:, protect:].reshape(2, 4, 6, -1)
    for slot, (top, left) in enumerate((top, left) for top in (0, 2) for left in (0, 2, 4)):
        square = cells[:, top : top + 2, left : left + 2].reshape(2, 4, -1)
        narrow = square @ weights["fold.weight"].T + weights["fold.bias"]
        np.testing.assert_allclose(found["tokens"][:, protect + slot], narrow.reshape(2, -1), atol=1e-5)
        assert (found["index"][:, protect + slot] == protect + (top + 1) * 6 + left + 1).all()
    with pytest.raises(PlanError, match=f"{6 + protect} of {24 + protect} tokens stay, not {7 + protect}"):
        apply_method("token_shuffle", tensors, keep=7 + protect, **options)
