"""LTMP: merging and pruning in both orders, against loops."""

from __future__ import annotations

from typing import Any

import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods


def merge_prune(metric: Any, score: Any, keep: int, prune: int, protect: int, order: str) -> loops.Groups:
    groups = loops.tome(metric, len(metric) - keep - prune, protect)
    importance = {stay: max(score[i] for i in groups.members[stay]) for stay in groups.order}
    free = sorted(groups.order[protect:], key=lambda stay: -importance[stay])[: keep - protect]
    if order == "position":
        free = [stay for stay in groups.order if stay in free]
    return loops.Groups([*range(protect), *free], groups.members)


def prune_merge(metric: Any, score: Any, keep: int, prune: int, protect: int) -> loops.Groups:
    ranked = sorted(range(protect, len(metric)), key=lambda i: -score[i])
    rank = [*range(protect), *ranked][: len(metric) - prune]
    groups = loops.tome(metric[rank], len(rank) - keep, protect)
    members = {rank[stay]: [rank[i] for i in groups.members[stay]] for stay in groups.order}
    return loops.Groups([rank[stay] for stay in groups.order], members)


def compare(tokens: int, batch: int, removed: int, prune: int, protect: int, **options: Any) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        metric, score = given["keys"][image].mean(0), given["attn"][image].mean((0, 1))
        size = given["size"][image, :, 0]
        if options.get("first") == "prune" and prune < removed:
            groups = prune_merge(metric, score, tokens - removed, prune, protect)
        elif prune == removed:
            free = sorted(range(protect, tokens), key=lambda i: -score[i])[: tokens - removed - protect]
            ranked = free if options.get("order") == "score" else sorted(free)
            groups = loops.Groups([*range(protect), *ranked])
        else:
            order = options.get("order", "position")
            groups = merge_prune(metric, score, tokens - removed, prune, protect, order)
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check("ltmp", given, wanted, keep=tokens - removed, protect=protect, r_prune=prune, **options)


@pytest.mark.parametrize(
    "options", [{}, {"order": "score"}, {"first": "prune"}], ids=["position", "score", "prune-first"]
)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("ltmp")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, options: dict[str, Any]
) -> None:
    method = methods.get("ltmp").from_options(options)
    removed = min(removed, tokens - method.fewest(tokens, protect))
    if removed:
        compare(tokens, batch, removed, removed // 2, protect, **options)


@pytest.mark.parametrize("prune", [0, 3, 8])
@pytest.mark.parametrize("options", [{}, {"order": "score"}, {"first": "prune"}])
def test_any_share_is_pruned(prune: int, options: dict[str, Any]) -> None:
    compare(25, 2, 8, prune, 1, **options)


def test_half_is_pruned_by_default_and_never_more_than_leave() -> None:
    given = loops.arrays(25, 1)
    lost = [
        (apply_method("ltmp", given, keep=16, **options)["assign"] < 0).sum()
        for options in ({}, {"r_prune": 99}, {"r_prune": 0})
    ]
    assert lost[0] >= 4
    assert lost[1:] == [9, 0]


def test_how_few_it_can_leave() -> None:
    def fewest(tokens: int, protect: int, **options: Any) -> int:
        return methods.get("ltmp").from_options(options).fewest(tokens, protect)

    assert fewest(197, 1) == 2
    assert fewest(197, 1, r_prune=0) == 99
    assert fewest(197, 1, r_prune=50) == 49
    assert fewest(197, 1, r_prune=50, first="prune") == 74
    for first in ("merge", "prune"):
        for tokens in range(2, 40):
            apply_keep = fewest(tokens, 1, first=first)
            if apply_keep < tokens:
                found = apply_method("ltmp", loops.arrays(tokens, 1), keep=apply_keep, first=first)
                assert found["tokens"].shape[1] == apply_keep
    with pytest.raises(PlanError, match="leaves at least 49 of 197"):
        apply_method("ltmp", loops.arrays(197, 1), keep=48, r_prune=50)


@pytest.mark.parametrize("options", [{}, {"order": "score"}, {"first": "prune"}, {"r_prune": 12}])
def test_odd_numbers_and_equal_tokens(options: dict[str, Any]) -> None:
    loops.survives_odd_numbers("ltmp", 25, **options)
    loops.loses_nothing("ltmp", 25, **options)


def test_wrong_options_are_refused() -> None:
    for option, value in (("first", "x"), ("order", "x"), ("r_prune", -2)):
        with pytest.raises(MethodError, match=f"option {option}={value} of method 'ltmp'"):
            apply_method("ltmp", loops.arrays(9, 1), keep=8, **{option: value})
