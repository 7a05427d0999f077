"""The kernels of TokenCluster and TokenPeaks, run on the CPU, against the NumPy references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, SIZES, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError

pytestmark = needs_compiler


def clustering(tokens: int, keep: int, option: int) -> dict[str, dict[str, int]]:
    """Attributes by operator: `option` is the linkage, and one less than a third of the neighbours."""
    return {
        "TokenCluster": {"keep": keep, "remove": tokens - keep, "linkage": option},
        "TokenPeaks": {"keep": keep, "neighbours": min(tokens, 1 + 3 * option)},
    }


def check(name: str, metric: Any, given: dict[str, int]) -> None:
    for actual, wanted in zip(run(name, [metric], given), expect(name, wide([metric]), given), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("name", ["TokenCluster", "TokenPeaks"])
def test_clusters_are_the_reference_s(name: str, tokens: int, kind: str) -> None:
    for turn, keep in enumerate(sorted({1, (tokens + 1) // 2, tokens - 1})):
        if keep < 1 or (name == "TokenCluster" and keep == tokens) or (tokens > 500 and turn != 1):
            continue
        if tokens > 500 and name == "TokenCluster":
            keep = tokens - 40  # each merge is one more turn over a block
        batch = 1 if tokens > 500 else 2
        metric = (0.3 * random((batch, tokens, 16 + 5 * (turn % 2)))).astype(KINDS[kind])
        check(name, metric, clustering(tokens, keep, (turn + tokens) % 3)[name])


@pytest.mark.parametrize("option", range(3))
@pytest.mark.parametrize("name", ["TokenCluster", "TokenPeaks"])
def test_clusters_of_equal_tokens_are_the_reference_s(name: str, option: int) -> None:
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 4, (2, 65))]
    for metric in (few, np.ones_like(few), np.zeros_like(few)):
        for keep in (1, 3, 20, 64):
            check(name, metric, clustering(65, keep, option)[name])


@pytest.mark.parametrize("option", range(3))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["TokenCluster", "TokenPeaks"])
def test_odd_tokens_are_clustered_as_the_reference_does(name: str, bad: float, option: int) -> None:
    metric = random((2, 33, 8))
    metric[0, [3, 9]] = bad
    metric[1] = bad
    for keep in (1, 12, 32):
        check(name, metric, clustering(33, keep, option)[name])


@pytest.mark.parametrize("tokens", [3, 4, 5, 9, 10, 33, 34, 40])
def test_a_cluster_that_grew_from_its_last_token_on_is_one(tokens: int) -> None:
    """Each merge puts one more token in front, so that the last is as far from the first as there are merges."""
    gaps = 0.06 - 0.001 * np.arange(tokens - 1)
    angles = np.concatenate([[0.0], np.cumsum(gaps)])
    metric = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None].astype(np.float32)
    for keep in (1, 2, 3):
        if keep < tokens:
            center, assign = run("TokenCluster", [metric], clustering(tokens, keep, 0)["TokenCluster"])
            assert center.tolist() == [[*range(keep)]]
            assert assign.tolist() == [[*range(keep), *[keep - 1] * (tokens - keep)]]


def test_peaks_of_many_neighbours_and_many_tokens() -> None:
    for neighbours in (
        8,
        9,
        64,
    ):  # the longest of the short lists, the shortest of the long ones, and the longest
        check("TokenPeaks", 0.3 * random((1, 100, 16)), {"keep": 9, "neighbours": neighbours})
    check("TokenPeaks", 0.3 * random((1, 2100, 4)), {"keep": 50, "neighbours": 5})


def test_clustering_in_large_tiles() -> None:
    check("TokenCluster", random((1, 1100, 16)), clustering(1100, 1060, 0)["TokenCluster"])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("TokenCluster", {"keep": 9, "remove": 0, "linkage": 0}),
        ("TokenCluster", {"keep": 5, "remove": 4, "linkage": 3}),
        ("TokenPeaks", {"keep": 10, "neighbours": 5}),
        ("TokenPeaks", {"keep": 5, "neighbours": 10}),
        ("TokenPeaks", {"keep": 5, "neighbours": 0}),
    ],
)
def test_counts_out_of_range_are_refused(name: str, wrong: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run(name, [random((1, 9, 4))], wrong)


def test_more_neighbours_than_a_kernel_holds_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenPeaks", [random((1, 99, 4))], {"keep": 5, "neighbours": 65})
