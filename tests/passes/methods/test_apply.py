"""`apply_method`: its results, its refusals, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError, TokenrtError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 9, 4)).astype(np.float32)
KEYS = RNG.standard_normal((2, 3, 9, 5)).astype(np.float32)
GIVEN: dict[str, Any] = {"x": X, "keys": KEYS}
BACKENDS = ("numpy", "onnxruntime")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_tokens_keep_their_type_and_sizes_theirs(backend: str, kind: type) -> None:
    found = apply_method("tome", {"x": X.astype(kind), "keys": KEYS}, keep=6, backend=backend, restore=True)
    assert {key: value.dtype for key, value in found.items()} == {
        "tokens": kind,
        "size": np.float32,
        "index": np.int64,
        "assign": np.int64,
        "restored": kind,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_restored_merging_gives_each_position_its_token(backend: str) -> None:
    found = apply_method("tome", GIVEN, keep=6, backend=backend, restore=True)
    np.testing.assert_array_equal(
        found["restored"], np.take_along_axis(found["tokens"], found["assign"][:, :, None], 1)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_restored_pruning_gives_dropped_positions_their_own_back(backend: str) -> None:
    attn = RNG.random((2, 1, 9, 9)).astype(np.float32)
    found = apply_method("evit", {"x": X, "attn": attn}, keep=6, backend=backend, restore=True)
    np.testing.assert_array_equal(found["restored"], X)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["tome", "topk", "evit", "random", "slice"])
def test_removing_nothing_changes_nothing(backend: str, method: str) -> None:
    size = RNG.integers(1, 5, (2, 9, 1)).astype(np.float32)
    found = apply_method(method, {"x": X, "size": size}, keep=9, backend=backend, restore=True)
    np.testing.assert_array_equal(found["tokens"], X)
    np.testing.assert_array_equal(found["restored"], X)
    np.testing.assert_array_equal(found["size"], size)
    for key in ("index", "assign"):
        np.testing.assert_array_equal(found[key], np.tile(np.arange(9), (2, 1)))
    assert found["tokens"] is not X


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_batch_permutes_the_result(backend: str) -> None:
    straight = apply_method("tome", GIVEN, keep=6, backend=backend)
    turned = apply_method("tome", {"x": X[::-1], "keys": KEYS[::-1]}, keep=6, backend=backend)
    for key, value in straight.items():
        np.testing.assert_array_equal(value[::-1], turned[key])


def test_the_input_is_left_alone() -> None:
    before = X.copy()
    apply_method("tome", GIVEN, keep=6)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (10, "keep=10 is more than the 9 tokens"),
        (0, "keep=0 leaves nothing beside the 1 protected tokens; keep at least 2"),
        (-3, "keep=-3 leaves nothing"),
        (1, "keep=1 leaves nothing beside the 1 protected"),
        (3, "'tome' leaves at least 5 of 9 tokens"),
        (2.5, "keep=2.5: expected a whole number"),
        ("6", "keep='6': expected a whole number"),
        (True, "keep=True: expected a whole number"),
        (None, "keep=None: expected a whole number"),
    ],
)
def test_counts_that_do_not_fit(keep: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        apply_method("tome", GIVEN, keep=keep)


@pytest.mark.parametrize("protect", [-1, 9, 1.5])
def test_protected_counts_that_do_not_fit(protect: Any) -> None:
    with pytest.raises(PlanError, match="protect="):
        apply_method("tome", GIVEN, keep=6, protect=protect)


def test_numpy_integers_are_whole_numbers() -> None:
    assert apply_method("tome", GIVEN, keep=np.int32(6))["tokens"].shape == (2, 6, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"the tokens are missing: tensor x \[B,N,C\]; given: none"),
        ({"keys": KEYS}, r"the tokens are missing: tensor x \[B,N,C\]; given: keys"),
        ({"x": X}, r"needs the tensor keys, with shapes keys \[B,H,N,D\]; given: x"),
        ({"x": X[0]}, r"tensor x \[B,N,C\] needs 3 axes, got shape \[9, 4\]"),
        (
            {"x": X, "keys": KEYS[:, :, :7]},
            r"keys \[B,H,N,D\] has N=7 in its shape \[2, 3, 7, 5\], but x has N=9",
        ),
        ({"x": X, "size": np.ones((2, 9, 2))}, r"tensor size \[B,N,1\]: got shape \[2, 9, 2\]"),
        ({"x": X.astype(int)}, "must hold floating-point numbers, got int64"),
        ({"x": X[:0]}, r"tensor x \[B,N,C\]: got shape \[0, 9, 4\]"),
        ({"tokens": X}, "no tensor is called 'tokens'; names: x, normed, keys"),
    ],
)
def test_tensors_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("tome", given, keep=6)


def test_missing_attention_names_every_way_to_give_it() -> None:
    with pytest.raises(
        MethodError, match=r"cls_attn, attn, or queries and keys.*cls_attn \[B,H,N\]; given: x, keys"
    ):
        apply_method("topk", GIVEN, keep=6)
    with pytest.raises(MethodError, match=r"received needs the tensor attn, or queries and keys"):
        apply_method("topk", GIVEN, keep=6, protect=0)


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(
        MethodError, match="no backend is called 'cuda'; backends: numpy, onnxruntime, plugin-host"
    ):
        apply_method("tome", GIVEN, keep=6, backend="cuda")


def test_unknown_methods_and_options() -> None:
    for name, options in (("tomee", {}), ("tome", {"rate": 3})):
        with pytest.raises(TokenrtError):
            apply_method(name, GIVEN, keep=6, **options)
