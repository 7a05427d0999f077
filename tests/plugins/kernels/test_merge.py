"""TokenMerge's kernels: to the bit what those of TokenMatch and TokenCombine give one after the other."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import TYPES
from tokenrt.plugins.host.recorder import recorded

pytestmark = needs_compiler


def check(tokens: Any, size: Any, metric: Any, pairs: dict[str, Any]) -> None:
    attributes = {**pairs, "type": TYPES[tokens.dtype.name]}
    matched = run("TokenMatch", [metric], pairs)
    wanted = [*run("TokenCombine", [tokens, size, *matched[1:]], {"type": attributes["type"]}), *matched]
    for found, apart in zip(run("TokenMerge", [tokens, size, metric], attributes), wanted, strict=True):
        assert found.dtype == apart.dtype
        assert found.tobytes() == apart.tobytes()


def sizes(batch: int, tokens: int) -> Any:
    """Some tokens are padding, which has no size."""
    return np.random.default_rng(tokens).integers(0, 4, (batch, tokens, 1)).astype(np.float32)


@pytest.mark.parametrize("kinds", [*itertools.product(KINDS, KINDS)], ids="-".join)
def test_tokens_and_metric_have_types_of_their_own(kinds: tuple[str, str]) -> None:
    for width, order in itertools.product((64, 33), (0, 1)):
        tokens, metric = (random((2, 67, each), kind) for each, kind in zip((width, 20), kinds, strict=True))
        check(tokens, sizes(2, 67), metric, alternate(67, 1, 15, order))


@pytest.mark.parametrize("tokens", [2, 3, 31, 32, 33, 197, 257, 513, 515, 577, 1300])
def test_a_merge_is_a_match_and_a_combination(tokens: int) -> None:
    """Up to 256 sources are sorted by the short block; 513 take large tiles."""
    protect = min(1, tokens - 2)
    most = len(alternate(tokens, protect, 1, 0)["sources"])
    for removed, order in {(1, 0), (most, 0), (most, 1), ((most + 1) // 2, 1), ((most + 1) // 2, 0)}:
        metric = np.round(random((1, tokens, 8)), 1)
        check(
            random((1, tokens, 24), "float16"),
            sizes(1, tokens),
            metric,
            alternate(tokens, protect, removed, order),
        )


def test_tied_and_odd_metrics() -> None:
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, 197))]
    odd = random((2, 197, 8))
    odd[:, ::7, 1], odd[:, 3::5, 2] = np.nan, np.inf
    for metric, order in itertools.product((few, np.ones_like(few), np.zeros_like(few), odd), (0, 1)):
        check(random((2, 197, 40)), sizes(2, 197), metric, alternate(197, order, 60, order))


def test_all_go_to_one_slot_and_lists_are_in_any_order() -> None:
    rng = np.random.default_rng(3)
    places = rng.permutation(130).tolist()
    pairs = {
        "sources": places[:90],
        "destinations": places[90:91],
        "others": places[91:],
        "keep": 50,
        "remove": 80,
    }
    for order in (0, 1):
        check(
            random((1, 130, 600), "bfloat16"), sizes(1, 130), random((1, 130, 16)), {**pairs, "order": order}
        )


def test_survivors_take_turns_beyond_the_blocks_that_fill_a_gpu() -> None:
    """9 images of 97 groups of survivors and two stretches of channels: four turns."""
    check(random((9, 790, 300)), sizes(9, 790), random((9, 790, 4)), alternate(790, 1, 20, 0))


def test_more_sources_than_are_sorted_take_the_launches_of_both() -> None:
    metric = np.round(random((1, 8200, 4)), 1)
    check(random((1, 8200, 4)), sizes(1, 8200), metric, alternate(8200, 2, 700, 0))


HOPPER, GEFORCE = (9.0, 132), (12.0, 170)
"""Compute capability and multiprocessors of GPUs with clusters of up to 16 blocks, and of up to 8."""


def started(tokens: Any, size: Any, metric: Any, pairs: dict[str, Any]) -> list[tuple[str, int]]:
    """The kernels of a merge, and the blocks of a cluster of each."""
    job = recorded("TokenMerge", [tokens, size, metric], {**pairs, "type": TYPES[tokens.dtype.name]})
    return [(start.kernel.partition("<")[0], start.cluster) for start in job.launches]


def check_at_once(gpu: tuple[float, int], tokens: Any, size: Any, metric: Any, pairs: dict[str, Any]) -> None:
    """One launch of clusters of as many blocks as the GPU takes, in both orders of blocks, gives the bits of two."""
    with kernels.gpu(*gpu):
        blocks = 16 if gpu == HOPPER else 8
        assert started(tokens, size, metric, pairs) == [("combine::merge_image", blocks)]
        for order in (nullcontext(), kernels.backwards()):
            with order:
                check(tokens, size, metric, pairs)


@pytest.mark.parametrize("gpu", [HOPPER, GEFORCE], ids=["16 blocks", "8 blocks"])
@pytest.mark.parametrize("tokens", [2, 33, 64, 66, 129, 131, 190])
def test_an_image_is_merged_by_one_cluster(tokens: int, gpu: tuple[float, int]) -> None:
    """Past 64 sources or destinations, a tile's, several blocks compare; 131 tokens are 17 groups of slots for 16 blocks."""
    protect = min(1, tokens - 2)
    most = len(alternate(tokens, protect, 1, 0)["sources"])
    metric = np.round(random((2, tokens, 64)), 1)
    for removed, order in {(1, 0), (most, 1), ((most + 1) // 2, 0)}:
        given = random((2, tokens, 64), "float16"), sizes(2, tokens), metric
        check_at_once(gpu, *given, alternate(tokens, protect, removed, order))


@pytest.mark.parametrize(
    "kinds",
    [("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")],
    ids="-".join,
)
def test_one_cluster_an_image_of_each_type(kinds: tuple[str, str]) -> None:
    """72 columns, of which a second slice of 128 bytes has a part; 520 channels are several stretches."""
    tokens, metric = (random((2, 70, each), kind) for each, kind in zip((520, 72), kinds, strict=True))
    check_at_once(HOPPER, tokens, sizes(2, 70), metric, alternate(70, 1, 15, 0))


def test_a_cluster_merges_metrics_that_its_filter_leaves() -> None:
    """Rows with more candidates than a filter keeps, and such as it does not take."""
    few = np.eye(64, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, 140))]
    odd = random((2, 140, 64))
    odd[:, ::7, 1], odd[:, 3::5, 2] = np.nan, np.inf
    for metric, order in itertools.product((few, np.ones_like(few), odd), (0, 1)):
        check_at_once(HOPPER, random((2, 140, 40)), sizes(2, 140), metric, alternate(140, order, 60, order))


def test_a_cluster_past_a_boundary() -> None:
    """Of 8 blocks, for ThreadSanitizer: two tiles of sources and of destinations, 17 groups of slots."""
    given = random((1, 140, 40), "float16"), sizes(1, 140), random((1, 140, 64), "float16")
    with kernels.gpu(*GEFORCE):
        assert started(*given, alternate(140, 1, 8, 0)) == [("combine::merge_image", 8)]
        check(*given, alternate(140, 1, 8, 0))


def test_sources_and_destinations_of_a_cluster_are_tiles_in_any_number() -> None:
    """256 sources and one destination: 4 tiles; one source and 200 destinations: 4 stretches."""
    rng = np.random.default_rng(3)
    for sources, destinations in ((256, 1), (1, 200), (100, 150)):
        places = rng.permutation(sources + destinations).tolist()
        pairs = {"sources": places[:sources], "destinations": places[sources:], "others": [], "order": 0}
        removed = (sources + 1) // 2
        pairs |= {"remove": removed, "keep": len(places) - removed}
        given = random((1, len(places), 64)), sizes(1, len(places)), random((1, len(places), 64))
        check_at_once(HOPPER, *given, pairs)


TWO = [("match::similarity", 1), ("combine::merge_pairs", 1)]


@pytest.mark.parametrize(
    "gpu", [(0, 0), (8.9, 132), (9.0, 31), (9.0, 132, 0)],
    ids=["unknown", "without clusters", "of fewer multiprocessors than blocks", "refuses the launch"],
)  # fmt: skip
def test_a_gpu_that_takes_no_clusters_takes_two_launches(gpu: tuple[float, int]) -> None:
    given = random((2, 70, 64)), sizes(2, 70), random((2, 70, 64)), alternate(70, 1, 15, 0)
    with kernels.gpu(*gpu):
        assert started(*given) == TWO
        check(*given)


@pytest.mark.parametrize(
    ("tokens", "width", "kind", "columns"),
    [(70, 64, "float32", 60), (70, 63, "float32", 64), (600, 64, "float16", 64), (197, 768, "float16", 768)],
    ids=["few columns", "rows that are no whole vectors", "many tiles", "slower by the model"],
)
def test_shapes_that_take_two_launches_on_every_gpu(tokens: int, width: int, kind: str, columns: int) -> None:
    given = random((1, tokens, width), kind), sizes(1, tokens), random((1, tokens, columns), kind)
    with kernels.gpu(*HOPPER):
        assert started(*given, alternate(tokens, 1, 15, 0)) == TWO
