"""TokenCombine: the function body in ONNX Runtime against the NumPy reference, exactness and conservation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.tolerance import within_twice
from tests.passes.ops.helpers.runner import OPSETS, expect, run

FLOAT, HALF = {"type": 1}, {"type": 10}


def case(batch: int, tokens: int, removed: int, channels: int = 24, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(tokens) for _ in range(batch)])
    keep = tokens - removed
    return [
        rng.standard_normal((batch, tokens, channels)).astype(np.float32),
        rng.integers(1, 6, (batch, tokens, 1)).astype(np.float32),
        order[:, :keep],
        order[:, keep:],
        rng.integers(0, keep, (batch, removed)),
    ]


def plain(tokens: Any, size: Any, keep: Any, source: Any, destination: Any) -> tuple[Any, Any]:
    """The same mean in float32, one addition at a time."""
    rows = np.arange(len(tokens))[:, None]
    total, mass = size[rows, keep].copy(), (tokens * size)[rows, keep]
    for image, (sources, slots) in enumerate(zip(source, destination, strict=True)):
        for position, slot in zip(sources, slots, strict=True):
            mass[image, slot] += tokens[image, position] * size[image, position]
            total[image, slot] += size[image, position]
    return mass / total, total


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("tokens", "removed"), [(2, 1), (33, 1), (33, 16), (197, 13)])
def test_body_is_as_exact_as_plain_float32(opset: int, tokens: int, removed: int) -> None:
    inputs = case(3, tokens, removed)
    merged, total = run("TokenCombine", inputs, FLOAT, opset)
    wanted, wanted_total = expect("TokenCombine", inputs, FLOAT)
    within_twice(merged, wanted, plain(*inputs)[0])
    np.testing.assert_array_equal(total, wanted_total)
    assert merged.dtype == total.dtype == np.float32


def test_survivors_that_receive_nothing_are_passed_on_bit_for_bit() -> None:
    tokens, _size, keep, _source, destination = inputs = case(2, 65, 20)
    merged, _ = run("TokenCombine", inputs, FLOAT)
    for image in range(2):
        alone = np.setdiff1d(np.arange(45), destination[image])
        np.testing.assert_array_equal(merged[image, alone], tokens[image, keep[image, alone]])


def test_equal_tokens_merge_into_the_same_token_bit_for_bit() -> None:
    tokens, size, keep, source, destination = case(2, 33, 16, seed=3)
    tokens[:] = tokens[:, :1]
    merged, total = run("TokenCombine", [tokens, size, keep, source, destination], FLOAT)
    np.testing.assert_array_equal(merged, np.repeat(tokens[:, :1], 17, axis=1))
    np.testing.assert_array_equal(total.sum(axis=1), size.sum(axis=1))


def test_many_sources_of_one_survivor_give_one_mean() -> None:
    tokens, size, keep, source, destination = case(1, 33, 16)
    destination[:] = 4
    inputs = [tokens, size, keep, source, destination]
    within_twice(
        run("TokenCombine", inputs, FLOAT)[0], expect("TokenCombine", inputs, FLOAT)[0], plain(*inputs)[0]
    )


def test_tokens_of_size_zero_never_make_nan_nor_weigh_anything() -> None:
    tokens = np.array([[[1.0], [2.0], [4.0], [8.0], [16.0]]], np.float32)
    size = np.array([[[0.0], [0.0], [3.0], [0.0], [0.0]]], np.float32)
    keep, source, destination = np.array([[0, 1, 4]]), np.array([[2, 3]]), np.array([[1, 0]])
    inputs = [tokens, size, keep, source, destination]
    for merged, total in (run("TokenCombine", inputs, FLOAT), expect("TokenCombine", inputs, FLOAT)):
        assert merged.tolist() == [[[1.0], [4.0], [16.0]]]
        assert total.tolist() == [[[0.0], [3.0], [0.0]]]


@pytest.mark.parametrize("opset", OPSETS)
def test_half_precision_tokens_are_averaged_in_float32(opset: int) -> None:
    inputs = case(2, 33, 16)
    inputs[0] = inputs[0].astype(np.float16)
    merged, total = run("TokenCombine", inputs, HALF, opset)
    assert (merged.dtype, total.dtype) == (np.float16, np.float32)
    wanted = expect("TokenCombine", inputs, HALF)[0]
    within_twice(
        merged.astype(np.float64), wanted, wanted.astype(np.float16).astype(np.float64), unit=2.0**-11
    )


def test_a_broken_token_spoils_only_survivors_that_receive_something() -> None:
    tokens, _size, _keep, source, destination = inputs = case(1, 33, 6)
    tokens[0, source[0, 2]] = np.nan
    merged, _ = run("TokenCombine", inputs, FLOAT)
    alone = np.setdiff1d(np.arange(27), destination[0])
    assert np.isfinite(merged[0, alone]).all()
    assert np.isnan(merged[0, destination[0, 2]]).all()
