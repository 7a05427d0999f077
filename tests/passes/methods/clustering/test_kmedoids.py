"""K-Medoids against loops: both rules, starts by weight and by distance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def by_loops(
    points: Any, weight: Any, count: int, variant: str, iterations: int, start: int | None = None
) -> tuple[list[int], list[int]]:
    """Medoids in slot order and the slot of each token; a start makes weights equal."""
    apart = [[math.sqrt(value) for value in row] for row in clusters.squares(points)]
    tokens = range(len(apart))
    medoids = sorted(tokens, key=lambda i: -weight[i])[:count]
    if start is not None:
        reach = {"paper": min, "reference": max}[variant]
        medoids = [start]
        while len(medoids) < count:
            left = [i for i in tokens if i not in medoids]
            medoids.append(max(left, key=lambda i: reach(apart[i][j] for j in medoids)))
    for _ in range(iterations):
        assign = clusters.nearest(apart, medoids)
        for slot in range(count):
            members = [i for i in tokens if assign[i] == slot]
            if variant == "reference":
                medoids[slot] = min(members, key=lambda i: weight[i] * sum(apart[i]), default=0)
            elif members:
                medoids[slot] = min(members, key=lambda i: sum(weight[j] * apart[i][j] for j in members))
    return medoids, clusters.nearest(apart, medoids)


def kept(
    given: Any, image: int, protect: int, found: tuple[list[int], list[int]], *, sort: bool
) -> loops.Wanted:
    """Tokens, sizes, map and places of an image whose medoids are all different."""
    groups = clusters.grouped(protect, *found, sort=sort)
    x, size = given["x"][image], given["size"][image, :, 0]
    return x[groups.order], groups.total(size), groups.goes(len(x)), groups.order


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int, variant: str) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        weight = given["attn"][image].mean((0, 1))[protect:]
        found = by_loops(given["x"][image, protect:], weight, keep - protect, variant, 3)
        return kept(given, image, protect, found, sort=True)

    loops.check("kmedoids", given, wanted, keep=keep, protect=protect, variant=variant)


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize(
    ("weight", "iterations", "count"), [("class", 1, 4), ("equal", 0, 9), ("equal", 5, 6)]
)
def test_other_weights_rounds_and_the_published_order(
    variant: str, weight: str, iterations: int, count: int
) -> None:
    given = loops.arrays(31, 2)

    def wanted(image: int) -> loops.Wanted:
        row = given["attn"][image, :, 0, 1:].mean(0) if weight == "class" else np.ones(30)
        start = 7 if weight == "equal" else None
        found = by_loops(given["x"][image, 1:], row, count, variant, iterations, start)
        return kept(given, image, 1, found, sort=False)

    options = {"weight": weight, "iterations": iterations, "variant": variant, "start": 7}
    loops.check("kmedoids", given, wanted, keep=count + 1, protect=1, order="score", **options)


@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_equal_tokens_leave_clusters_empty(backend: str) -> None:
    """All tokens fall to the best slot; the paper's empty clusters keep their medoids, the release's take token 0."""
    given = loops.arrays(9, 1)
    given["x"][:] = 1.0
    given["attn"][:] = np.arange(9.0)
    options: dict[str, Any] = {"keep": 4, "protect": 0, "order": "score", "backend": backend}
    paper = apply_method("kmedoids", given, iterations=1, **options)
    assert paper["index"][0].tolist() == [0, 7, 6, 5]
    assert paper["size"][0, 1:].tolist() == [[0.0]] * 3
    release = apply_method("kmedoids", given, iterations=2, variant="reference", **options)
    assert release["index"][0].tolist() == [0, 0, 0, 0]
    assert release["assign"][0].tolist() == [0] * 9


def test_odd_numbers_and_padding() -> None:
    for options in ({}, {"variant": "reference"}, {"weight": "equal"}):
        loops.survives_odd_numbers("kmedoids", 25, **options)
        clusters.padding_changes_nothing("kmedoids", 9, **({**options, "weight": "received"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "book"}, "variant=book"),
        ({"weight": "all"}, "weight=all"),
        ({"iterations": -1}, r"iterations=-1 .* expected 0 or more"),
        ({"weight": "equal", "start": 8}, r"start=8 .* expected 0 to 7"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("kmedoids", loops.arrays(9, 1), keep=5, **options)
