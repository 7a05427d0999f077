"""Zero-TPrune: the walk, the gate over heads and both stages, written once more with loops."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD
from tokenrt import apply_method
from tokenrt.errors import MethodError


def walked(moves: Any, steps: int, alive: list[bool]) -> list[float]:
    """Where the walk over one head's graph is after `steps`; the dead take no part."""
    count = len(moves)
    share = [float(a) / sum(alive) for a in alive]
    for _ in range(steps):
        share = [sum(share[i] * float(moves[i, j]) for i in range(count)) * alive[j] for j in range(count)]
        total = sum(share)
        share = [value / total for value in share]
    return share


def rank(moves: Any, steps: int, alive: list[bool], gate: tuple[float, float] | None) -> list[float]:
    """Mean square over the heads in range."""
    heads = [walked(head, steps, alive) for head in moves]
    if gate:
        count = len(alive)
        spread = [sum((value * count - 1) ** 2 for value in head) / count for head in heads]
        inside = [head for head, s in zip(heads, spread, strict=True) if gate[0] <= s <= gate[1]]
        heads = inside or heads
    return [sum(head[j] ** 2 for head in heads) / len(heads) for j in range(len(alive))]


def cosine(a: Any, b: Any) -> float:
    product = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / product


def by_loops(
    given: Any, image: int, keep: int, protect: int, steps: int, share: float, gate: tuple[float, float]
) -> list[int]:
    moves, tokens = given["attn"][image], given["x"].shape[1]
    alive = [True] * tokens
    score = rank(moves, steps, alive, gate)
    order = sorted(range(protect, tokens), key=lambda i: (-score[i], i))
    half = len(order) // 2
    above, below = order[: len(order) - half], order[len(order) - half :]
    metric = given["keys"][image].mean(axis=0).tolist()
    likeness = {i: max(cosine(metric[i], metric[j]) for j in above) for i in below}
    gone = sorted(below, key=lambda i: -likeness[i])[: min(int(share * (tokens - keep)), half)]
    for i in gone:
        alive[i] = False
    if gone and len(gone) < tokens - keep:
        score = rank(moves, steps, alive, gate)
    return scored.best([s if a else -1.0 for s, a in zip(score, alive, strict=True)], keep, protect)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("tokens", "removed", "protect", "batch"),
    [case for case in settings("zerotprune") if case.values[0] < 100],
)
def test_paper_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, share: float, backend: str
) -> None:
    given = scored.arrays(tokens, batch, sized=False)
    keep = tokens - removed
    found = apply_method(
        "zerotprune", given, keep=keep, protect=protect, backend=backend, similar=share, block=5
    )
    for image in range(batch):
        kept = by_loops(given, image, keep, protect, 5, share, (0.01, 0.7))
        scored.agrees(found, given, image, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_paper_equals_the_loops_at_full_size(backend: str) -> None:
    given = scored.arrays(197, 1, sized=False)
    found = apply_method("zerotprune", given, keep=138, backend=backend, iterations=2)
    scored.agrees(found, given, 0, by_loops(given, 0, 138, 1, 2, 0.5, (0.01, 0.7)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "removed", "protect", "batch"), [(3, 1, 0, 3), (32, 9, 1, 3), (33, 20, 2, 1)]
)
def test_reference_sharpens_and_ranks_alone(
    tokens: int, removed: int, protect: int, batch: int, backend: str
) -> None:
    given = scored.arrays(tokens, batch, sized=False)
    keep = tokens - removed
    found = apply_method(
        "zerotprune", given, keep=keep, protect=protect, backend=backend, variant="reference"
    )
    for image in range(batch):
        sharp = given["attn"][image] ** 2
        sharp = sharp / sharp.sum(axis=-1, keepdims=True)
        score = rank(sharp, 5, [True] * tokens, None)
        scored.agrees(found, given, image, scored.best(score, keep, protect))


@pytest.mark.parametrize(("block", "steps"), [(0, 30), (2, 30), (3, 5), (8, 5), (9, 1), (11, 1)])
def test_the_walk_is_long_in_early_blocks(block: int, steps: int) -> None:
    given = scored.arrays(31, 3, sized=False)
    by_depth = apply_method("zerotprune", given, keep=12, block=block, blocks=12)
    counted = apply_method("zerotprune", given, keep=12, iterations=steps)
    np.testing.assert_array_equal(by_depth["index"], counted["index"])


def test_heads_out_of_range_are_left_out() -> None:
    """One head sends everything to token 3, which only counts where the gate lets it."""
    given = scored.arrays(12, 1, sized=False)
    given["attn"][:, 0] = 0
    given["attn"][:, 0, :, 3] = 1
    given["attn"][:, 1] = np.where(np.arange(12) == 7, 0.3, 0.7 / 11)
    options: dict[str, Any] = {"keep": 2, "similar": 0.0, "iterations": 5}
    for backend in BACKENDS:
        gated = apply_method("zerotprune", given, backend=backend, **options)
        whole = apply_method("zerotprune", given, backend=backend, most_variance=100.0, **options)
        assert gated["index"].tolist() == [[0, 7]]
        assert whole["index"].tolist() == [[0, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_padding_leaves_first(variant: str, backend: str) -> None:
    given = scored.arrays(12, 2)
    given["size"][:, 6:] = 0
    found = apply_method("zerotprune", given, keep=6, backend=backend, variant=variant)
    assert found["index"].tolist() == [[*range(6)]] * 2


def test_ties_keep_the_first() -> None:
    scored.ties("zerotprune", scored.arrays(9, 2), 4, similar=0.0)
    scored.ties("zerotprune", scored.arrays(9, 2), 4, variant="reference")


def test_of_equally_similar_tokens_the_better_ranked_leaves_first() -> None:
    given = scored.arrays(9, 2)
    given["keys"][:] = 1
    given["attn"][:] = 1 / 9
    for backend in BACKENDS:
        found = apply_method("zerotprune", given, keep=7, similar=1.0, backend=backend)
        assert found["index"].tolist() == [[0, 1, 2, 3, 4, 7, 8]] * 2


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str, variant: str) -> None:
    scored.stays_in_range("zerotprune", ODD[odd], variant=variant)


@pytest.mark.parametrize("options", [{"iterations": -1}, {"temperature": -0.5}, {"similar": 1.5}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=re.escape("{}={}".format(*next(iter(options.items()))))):
        apply_method("zerotprune", scored.arrays(9, 1), keep=5, **options)
