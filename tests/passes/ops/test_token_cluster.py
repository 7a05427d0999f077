"""TokenCluster: the function body in ONNX Runtime against the NumPy reference, and both against hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, expect, run

LINKAGES = {"single": 0, "complete": 1, "average": 2}


def both(metric: Any, keep: int, linkage: str, opset: int = 18) -> tuple[list[Any], list[Any]]:
    """Run both; indices must be equal, so the cases have exact similarities or wide margins."""
    attributes = {"keep": keep, "remove": metric.shape[1] - keep, "linkage": LINKAGES[linkage]}
    found = run("TokenCluster", [metric], attributes, opset)
    for actual, wanted in zip(found, expect("TokenCluster", [metric], attributes), strict=True):
        np.testing.assert_array_equal(actual, wanted)
        assert actual.dtype == wanted.dtype == np.int64
    return found[0].tolist(), found[1].tolist()


def angles(*degrees: float) -> Any:
    """Unit vectors in the plane: their similarity falls with the angle between them."""
    turn = np.radians(degrees)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)[None].astype(np.float32)


def test_the_most_similar_pair_merges_first_and_stands_at_its_first_token() -> None:
    metric = angles(0, 90, 170, 93, 250)
    assert both(metric, 4, "average") == ([[0, 1, 2, 4]], [[0, 1, 2, 1, 3]])
    assert both(metric, 1, "single") == ([[0]], [[0] * 5])


def test_linkages_differ_as_their_names_say() -> None:
    # A chain of gaps 10, 11, 12 and a pair 20 apart: single follows the chain, complete shuns its far ends.
    chain = angles(0, 10, 21, 33, 100, 120)
    assert both(chain, 3, "single") == ([[0, 4, 5]], [[0, 0, 0, 0, 1, 2]])
    assert both(chain, 3, "complete") == ([[0, 2, 4]], [[0, 0, 1, 1, 2, 2]])
    # From 0 and 30 together, 62 is 32 away at best, 62 at worst, 47 on average; from 106, 44.
    split = angles(0, 30, 62, 106)
    assert both(split, 2, "single")[1] == [[0, 0, 0, 1]]
    assert both(split, 2, "complete")[1] == [[0, 0, 1, 1]]


@pytest.mark.parametrize("linkage", LINKAGES)
def test_ties_go_to_the_smaller_first_then_the_smaller_second_position(linkage: str) -> None:
    equal = np.ones((2, 6, 4), np.float32)
    assert both(equal, 3, linkage)[1] == [[0, 0, 0, 0, 1, 2]] * 2
    basis = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 1, 2]][None]
    assert both(basis, 5, linkage)[1] == [[0, 1, 2, 0, 3, 4]]
    assert both(basis, 4, linkage)[1] == [[0, 1, 2, 0, 1, 3]]
    assert both(basis, 2, linkage)[1] == [[0, 0, 1, 0, 0, 1]]


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_odd_numbers_stay_in_range(bad: float, linkage: str) -> None:
    metric = np.random.default_rng(0).standard_normal((2, 33, 8)).astype(np.float32)
    metric[0, [3, 9]] = bad
    metric[1] = bad
    for keep in (1, 12, 32):
        center, assign = both(metric, keep, linkage)
        assert all(row == sorted(set(row)) and len(row) == keep for row in center)
        assert all(set(row) == set(range(keep)) for row in assign)


def test_a_vector_that_is_no_number_joins_last() -> None:
    metric = np.random.default_rng(1).standard_normal((1, 12, 4)).astype(np.float32)
    metric[0, 5] = np.nan
    for linkage in LINKAGES:
        _, assign = both(metric, 2, linkage)
        assert assign[0].count(assign[0][5]) == 1


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("linkage", LINKAGES)
def test_body_equals_reference(opset: int, linkage: str) -> None:
    rng = np.random.default_rng([opset, LINKAGES[linkage]])
    for tokens in (2, 31, 32, 33, 197):
        metric = rng.standard_normal((2, tokens, 16)).astype(np.float32)
        for keep in {1, tokens // 2, tokens - 1}:
            both(metric, keep, linkage, opset)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_scale_and_order_of_the_batch_do_not_matter(linkage: str) -> None:
    metric = np.random.default_rng(2).standard_normal((3, 33, 8)).astype(np.float32)
    attributes = {"keep": 9, "remove": 24, "linkage": LINKAGES[linkage]}
    plain = run("TokenCluster", [metric], attributes)
    for variation, undo in (
        (metric * np.float32(2.0**40), slice(None)),
        (metric[::-1], slice(None, None, -1)),
    ):
        for found, wanted in zip(run("TokenCluster", [variation], attributes), plain, strict=True):
            np.testing.assert_array_equal(found[undo], wanted)
