"""ALGM: alike windows of the grid, then alike tokens anywhere, against loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods


def windows(grid: tuple[int, ...], height: int, width: int, protect: int) -> list[list[int]]:
    *frames, rows, columns = grid
    return [
        [protect + (frame * rows + top + i) * columns + left + j for i in range(height) for j in range(width)]
        for frame in range(frames[0] if frames else 1)
        for top in range(0, rows - height + 1, height)
        for left in range(0, columns - width + 1, width)
    ]


def local(x: Any, grid: tuple[int, ...], merge: int, protect: int, height: int, width: int) -> loops.Groups:
    table = windows(grid, height, width, protect)
    alike = []
    for window in table:
        pairs = [loops.cosine(x[i], x[j]) for i, j in itertools.permutations(window, 2)]
        alike.append(sum(pairs) / len(pairs))
    best = sorted(range(len(table)), key=lambda w: -alike[w])[:merge]
    taken = {i for w in best for i in table[w]}
    free = [i for i in range(protect, len(x)) if i not in taken]
    members = {table[w][-1]: [table[w][-1], *table[w][:-1]] for w in best}
    return loops.Groups([*range(protect), *members, *free], members)


LOCAL = [
    ((2, 2), 1, 0, 2, 2), ((4, 6), 1, 1, 2, 2), ((4, 6), 6, 1, 2, 2), ((4, 6), 6, 0, 2, 2), ((5, 7), 5, 2, 2, 2),
    ((14, 14), 28, 1, 2, 2), ((14, 14), 49, 1, 2, 2), ((6, 6), 3, 1, 3, 2), ((6, 6), 2, 0, 1, 4), ((3, 4, 4), 7, 0, 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "merge", "protect", "height", "width"), LOCAL)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_local_step_equals_the_loops(
    grid: tuple[int, ...], merge: int, protect: int, height: int, width: int, batch: int
) -> None:
    tokens = int(np.prod(grid)) + protect
    given = loops.arrays(tokens, batch) | {"grid": grid}

    def wanted(image: int) -> loops.Wanted:
        groups = local(given["x"][image], grid, merge, protect, height, width)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    keep = tokens - merge * (height * width - 1)
    loops.check("algm", given, wanted, keep=keep, protect=protect, stage="local", height=height, width=width)


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("algm")])
def test_the_global_step_equals_the_loops(tokens: int, removed: int, protect: int, batch: int) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        groups = loops.tome(given["x"][image], removed, protect)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check("algm", given, wanted, keep=tokens - removed, protect=protect, stage="global")


@pytest.mark.parametrize(
    ("grid", "keep", "stage"), [((6, 6), 28, "local"), ((6, 6), 29, "global"), (None, 28, "global")]
)
def test_auto_merges_windows_where_they_fit(grid: tuple[int, int] | None, keep: int, stage: str) -> None:
    given = loops.arrays(37, 2) | ({"grid": grid} if grid else {})
    both = [apply_method("algm", given, keep=keep, stage=name)["assign"] for name in ("auto", stage)]
    np.testing.assert_array_equal(*both)


def test_equal_windows_keep_the_first() -> None:
    given = loops.arrays(17, 1) | {"grid": (4, 4)}
    given["x"][:] = 1
    for backend in loops.BACKENDS:
        found = apply_method("algm", given, keep=11, stage="local", backend=backend)
        assert found["index"][0].tolist() == [0, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16]


@pytest.mark.parametrize("stage", ["local", "global"])
def test_odd_numbers_and_equal_tokens(stage: str) -> None:
    loops.survives_odd_numbers("algm", 25, (6, 6), stage=stage)
    loops.loses_nothing("algm", 25, (6, 6), stage=stage)


def test_what_it_cannot_do_is_refused() -> None:
    given = loops.arrays(37, 1)
    with pytest.raises(MethodError, match="'algm' needs the grid of the 36 unprotected tokens"):
        apply_method("algm", given, keep=25, stage="local")
    given["grid"] = (6, 6)
    with pytest.raises(PlanError, match=r"removes 3 tokens for each window it merges, .* keep 25 or 28"):
        apply_method("algm", given, keep=26, stage="local")
    with pytest.raises(PlanError, match="leaves at least 10 of 37"):
        apply_method("algm", given, keep=9, stage="local")
    with pytest.raises(MethodError, match="expected a window of at least two tokens"):
        apply_method("algm", given, keep=25, height=1, width=1)
    assert methods.get("algm")().fewest(37, 1) == 19
