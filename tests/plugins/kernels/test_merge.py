"""TokenMerge's kernels: to the bit what those of TokenMatch and TokenCombine give one after the other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run
from tokenrt.plugins.host.launches import TYPES

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
