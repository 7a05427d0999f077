"""PiToMe: energies, ranks and pairs of every mode, against loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.merging.pitome import removed as by_ratio

BLOCK, BLOCKS = 3, 8


def energy(metric: Any, protect: int, margin: float, alpha: float, mode: str) -> dict[int, float]:
    free, found = range(protect, len(metric)), {}
    for i in free:
        total = 0.0
        for j in free:
            similar = loops.cosine(metric[i], metric[j])
            if mode == "text":
                width = 1 - margin
                total += math.exp(-0.5 * ((1 - similar) / width) ** 2) / (width * math.sqrt(2 * math.pi))
            else:
                above = similar - margin
                total += above if above > 0 else alpha * (math.exp(above) - 1)
        found[i] = total / len(free)
    return found


def pairs(metric: Any, removed: int, protect: int, mode: str, margin: float, alpha: float) -> loops.Groups:
    if mode == "bsm":
        return loops.tome(metric, removed, protect)
    score = energy(metric, protect, margin, alpha, mode)
    rank = sorted(score, key=lambda i: -score[i])
    head = [*range(protect)]
    if mode == "pitome_bsm":
        return loops.bipartite(metric, head, rank[::2], rank[1::2], removed, by_value=True)[0]
    top, rest = rank[: 2 * removed], rank[2 * removed :]
    sides = (top[::2], top[1::2]) if mode == "pitome" else (top[:removed], top[removed:])
    return loops.bipartite(metric, [*head, *rest], *sides, removed)[0]


UNTIED = [case for case in loops.settings("pitome") if case.values[0] - case.values[2] > 2]
"""Two tokens resemble each other equally, so that rounding decides which of them stays."""


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), UNTIED)
@pytest.mark.parametrize("mode", ["pitome", "pitome_bsm", "bsm", "text"])
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int, mode: str) -> None:
    given = loops.arrays(tokens, batch, seed=1)
    margin = 0.8 - 0.4 * BLOCK / BLOCKS

    def wanted(image: int) -> loops.Wanted:
        groups = pairs(given["keys"][image].mean(0), removed, protect, mode, margin, 0.7)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check(
        "pitome",
        given,
        wanted,
        keep=tokens - removed,
        protect=protect,
        block=BLOCK,
        blocks=BLOCKS,
        mode=mode,
        margin=0.8,
        margin_drop=0.4,
        alpha=0.7,
    )


@pytest.mark.parametrize(
    ("block", "mode"), [(0, "pitome_bsm"), (3, "pitome_bsm"), (4, "pitome"), (6, "pitome")]
)
def test_auto_changes_over_in_the_middle(block: int, mode: str) -> None:
    given = loops.arrays(33, 2)
    both = [
        apply_method("pitome", given, keep=24, block=block, blocks=7, mode=name)["assign"]
        for name in ("auto", mode)
    ]
    np.testing.assert_array_equal(*both)


def test_isolated_tokens_are_protected() -> None:
    given = loops.arrays(17, 1)
    given["keys"][:, :, 1:9] = given["keys"][:, :, 1:2] + 1e-3 * given["keys"][:, :, 1:9]
    for backend in loops.BACKENDS:
        goes = apply_method("pitome", given, keep=13, backend=backend, mode="pitome")["assign"][0]
        assert len(set(goes[9:])) == 8
        assert len(set(goes[1:9])) == 4


def test_padding_merges_with_padding_first() -> None:
    given = loops.arrays(24, 2)
    given["size"][:, 16:] = 0
    hidden = np.zeros((2, 1, 24, 1))
    hidden[:, :, 16:] = 1
    shown = given["keys"].mean(1, keepdims=True) * (1 - hidden)
    given["keys"] = np.concatenate([shown, hidden], axis=3)
    given.pop("attn")
    for backend in loops.BACKENDS:
        found = apply_method("pitome", given, keep=20, backend=backend, mode="pitome")
        assert all(len(set(goes[:16])) == 16 for goes in found["assign"])


def test_the_ratio_form_rounds_as_published() -> None:
    assert [by_ratio(*pair) for pair in ((49, 0.8), (196, 0.9), (50, 0.7), (196, 0.925))] == [9, 19, 15, 14]
    assert by_ratio(10, 0.9) == math.floor(10 - 10 * 0.9)


@pytest.mark.parametrize("mode", ["pitome", "pitome_bsm", "bsm", "text"])
def test_odd_numbers_and_equal_tokens(mode: str) -> None:
    options = {"mode": mode, "margin": 0.5}
    loops.survives_odd_numbers("pitome", 25, **options)
    loops.loses_nothing("pitome", 25, **options)


def test_what_it_cannot_do_is_refused() -> None:
    given = loops.arrays(9, 1)
    with pytest.raises(MethodError, match="option mode=x of method 'pitome'"):
        apply_method("pitome", given, keep=8, mode="x")
    with pytest.raises(MethodError, match=r"margin=1.2 .* needs a margin below 1"):
        apply_method("pitome", given, keep=8, mode="text", margin=1.2, margin_drop=0)
    with pytest.raises(PlanError, match="leaves at least 5 of 9"):
        apply_method("pitome", given, keep=4)
