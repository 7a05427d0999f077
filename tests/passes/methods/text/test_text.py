"""Methods of text encoders against plain loops: segments by a map, segments between trained ends, and who skips layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tests.passes.helpers.running import run, session
from tests.passes.methods.helpers import scored
from tokenrt import Budget, apply_method, check, reduce
from tokenrt.errors import PlanError
from tokenrt.passes import methods
from tokenrt.perf.bench.plain_vit import PlainViT

BACKENDS = ("numpy", "onnxruntime")


def tokens(count: int, batch: int = 2) -> Any:
    return np.random.default_rng(count).standard_normal((batch, count, given.C)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("combine", ["mean", "weighted"])
def test_a_map_says_which_tokens_become_one(combine: str, backend: str) -> None:
    x = tokens(9)
    groups = np.array([[-9, 0, 0, 1, 2, 2, 2, -1, 7], [5, 1, 0, 0, 3, 3, 3, 3, 3]])
    weight = np.random.default_rng(1).random((2, 9)).astype(np.float32)
    tensors = {"x": x, "segments": groups, "importance": weight}
    found = apply_method("segments", tensors, keep=5, combine=combine, backend=backend)
    for text in range(2):
        assert found["tokens"][text, 0].tolist() == x[text, 0].tolist()
        for slot in range(4):
            own = [place for place in range(1, 9) if groups[text, place] == slot]
            assert found["size"][text, 1 + slot, 0] == len(own)
            assert np.flatnonzero(found["assign"][text] == 1 + slot).tolist() == own
            if own and slot < found["index"].shape[1] - 1:
                assert found["index"][text, 1 + slot] == own[-1]
            part = x[text, own] * (weight[text, own, None] if combine == "weighted" else 1 / max(len(own), 1))
            np.testing.assert_allclose(found["tokens"][text, 1 + slot], part.sum(axis=0), atol=1e-6)
    assert (found["assign"][:, 0] == 0).all()
    assert found["assign"][0, 7] == found["assign"][0, 8] == -1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
def test_a_segment_ends_where_the_predictor_says(protect: int, backend: str) -> None:
    x = tokens(14 + protect)
    weights = given.weights(methods.get("magnet"), 14, 6, 0)
    found = apply_method(
        "magnet", {"x": x}, keep=6 + protect, protect=protect, weights=weights, backend=backend
    )
    for text in range(2):
        own = x[text, protect:].astype(np.float64)
        rated = scored.gated(weights, own)
        ends = [*np.sort(np.argsort(-rated[:-1], kind="stable")[:5]), 13]
        assert (found["index"][text, protect:] - protect).tolist() == ends
        start = 0
        for slot, end in enumerate(ends):
            mean = own[start : end + 1].mean(axis=0)
            np.testing.assert_allclose(found["tokens"][text, protect + slot], mean, atol=1e-6)
            start = end + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_easy_half_comes_back_as_it_left(backend: str) -> None:
    x, weight = tokens(12), np.random.default_rng(2).random((2, 12)).astype(np.float32)
    found = apply_method("sctd", {"x": x, "importance": weight}, keep=6, restore=True, backend=backend)
    assert methods.get("sctd").returns == "before-last-block"
    for text in range(2):
        assert found["index"][text].tolist() == [
            0, *(1 + np.sort(np.argsort(-weight[text, 1:], kind="stable")[:5]))
        ]  # fmt: skip
    np.testing.assert_array_equal(found["restored"], x)


class FirstOnes(methods.get("slice")):  # type: ignore[misc]
    """The first tokens stay, the others come back before the last block."""

    name, returns = "first_ones", "before-last-block"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    form = PlainViT(width=32, heads=2, blocks=4, patch=8, image=32, classes=5)
    return form.write(tmp_path / "encoder.onnx")


def test_a_model_gains_the_importance_of_its_tokens(encoder: Path, tmp_path: Path) -> None:
    """Importance that falls with the position keeps the first tokens."""
    target, budget = tmp_path / "reduced.onnx", Budget.tokens([9], [1])
    made = reduce(encoder, method="sctd", budget=budget, output=target)
    assert any("block3" in line for line in made.report.restored)
    (gained,) = [value for value in made.model.graph.inputs if value.name == "importance"]
    assert [str(size) for size in gained.shape or ()] == ["batch", "17"]
    assert check(encoder, target).ok
    rng = np.random.default_rng(3)
    feeds = {"pixel_values": rng.standard_normal((2, 3, 32, 32)).astype(np.float32)}
    falling = np.tile(-np.arange(17, dtype=np.float32), (2, 1))
    (found,) = run(session(made.model), feeds | {"importance": falling})
    with methods.also(FirstOnes):
        (wanted,) = run(session(reduce(encoder, method="first_ones", budget=budget).model), feeds)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    (other,) = run(session(made.model), feeds | {"importance": -falling})
    assert np.abs(other - found).max() > 1e-4


def test_an_importance_is_of_all_tokens(encoder: Path) -> None:
    with pytest.raises(PlanError, match=r"block 2: sctd reads the input importance \[B,N\] of all tokens"):
        reduce(encoder, method="sctd", budget=Budget.tokens([12, 9], [1, 2]))
