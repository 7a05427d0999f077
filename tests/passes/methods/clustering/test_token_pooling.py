"""Token Pooling against loops: weighted K-means and weighted K-medoids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def means(points: Any, weight: Any, count: int, iterations: int) -> tuple[list[int], Any, list[int]]:
    """Start tokens, centres in slot order, and the slots that made the centres."""
    start = sorted(range(len(points)), key=lambda i: -weight[i])[:count]
    centers = [points[i] for i in start]
    assign: list[int] = []
    for _ in range(iterations):
        assign = [
            min(range(count), key=lambda slot: clusters.square(centers[slot], point)) for point in points
        ]
        for slot in range(count):
            mass = sum(w for w, own in zip(weight, assign, strict=True) if own == slot)
            total = sum(w * p for w, p, own in zip(weight, points, assign, strict=True) if own == slot)
            centers[slot] = total / mass if mass else centers[slot]
    return start, centers, assign


def medoids(points: Any, weight: Any, count: int, iterations: int) -> tuple[list[int], list[int]]:
    apart, tokens = clusters.squares(points), range(len(points))
    chosen = sorted(tokens, key=lambda i: -weight[i])[:count]
    for _ in range(iterations):
        assign = clusters.nearest(apart, chosen)
        for slot in range(count):
            members = [i for i in tokens if assign[i] == slot]
            chosen[slot] = min(members, key=lambda i: sum(weight[j] * apart[i][j] for j in members))
    return chosen, clusters.nearest(apart, chosen)


@pytest.mark.parametrize("order", ["position", "score"])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_means_equal_the_loops(tokens: int, keep: int, protect: int, batch: int, order: str) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        x, size = given["x"][image], given["size"][image, :, 0]
        weight = given["attn"][image].mean((0, 1))[protect:]
        start, centers, assign = means(x[protect:], weight, keep - protect, 3)
        slots = sorted(range(len(start)), key=start.__getitem__) if order == "position" else range(len(start))
        rank = {slot: protect + place for place, slot in enumerate(slots)}
        goes = [*range(protect), *(rank[slot] for slot in assign)]
        total = np.bincount(goes, weights=size, minlength=keep)
        tokens = np.concatenate([x[:protect], [centers[slot] for slot in slots]])
        return tokens, total, goes, [*range(protect), *(protect + start[slot] for slot in slots)]

    loops.check("token_pooling", given, wanted, keep=keep, protect=protect, order=order)


@pytest.mark.parametrize(("weight", "iterations"), [("received", 3), ("class", 1), ("equal", 2)])
@pytest.mark.parametrize("keep", [2, 8, 30])
def test_medoids_equal_the_loops(keep: int, weight: str, iterations: int) -> None:
    given = loops.arrays(31, 2)

    def wanted(image: int) -> loops.Wanted:
        attn = given["attn"][image]
        row = {"received": attn.mean((0, 1)), "class": attn[:, 0].mean(0), "equal": np.ones(31)}[weight][1:]
        x, size = given["x"][image], given["size"][image, :, 0]
        groups = clusters.grouped(1, *medoids(x[1:], row, keep - 1, iterations))
        return x[groups.order], groups.total(size), groups.goes(31), groups.order

    options = {"kind": "medoids", "weight": weight, "iterations": iterations}
    loops.check("token_pooling", given, wanted, keep=keep, protect=1, **options)


def test_odd_numbers_equal_tokens_and_padding() -> None:
    for kind in ("means", "medoids"):
        loops.survives_odd_numbers("token_pooling", 25, kind=kind)
        loops.loses_nothing("token_pooling", 25, kind=kind)
        clusters.padding_changes_nothing("token_pooling", 9, kind=kind)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mode"}, "kind=mode"),
        ({"weight": "all"}, "weight=all"),
        ({"iterations": 0}, r"iterations=0 .* expected 1 or more"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("token_pooling", loops.arrays(9, 1), keep=5, **options)
