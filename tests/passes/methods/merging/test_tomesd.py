"""ToMe for diffusion: one destination per cell of the grid, plain means, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tests.passes.methods.merging.test_algm import windows
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods

CASES = [
    ((2, 2), 1, 0, 2, 2), ((2, 2), 3, 0, 2, 2), ((4, 8), 1, 1, 2, 2), ((4, 8), 24, 1, 2, 2), ((5, 7), 29, 2, 2, 2),
    ((14, 14), 98, 1, 2, 2), ((6, 10), 25, 0, 3, 2), ((1, 31), 10, 1, 1, 2), ((2, 4, 4), 20, 0, 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "removed", "protect", "sy", "sx"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_loops(
    grid: tuple[int, ...], removed: int, protect: int, sy: int, sx: int, batch: int
) -> None:
    tokens = int(np.prod(grid)) + protect
    given = loops.arrays(tokens, batch) | {"grid": grid}
    destinations = [cell[0] for cell in windows(grid, sy, sx, protect)]
    sources = [i for i in range(protect, tokens) if i not in destinations]

    def wanted(image: int) -> loops.Wanted:
        x = given["x"][image]
        groups, _ = loops.bipartite(x, range(protect), sources, destinations, removed, by_value=True)
        size = groups.total(given["size"][image, :, 0])
        return groups.mean(x, np.ones(tokens)), size, groups.goes(tokens), groups.order

    loops.check("tomesd", given, wanted, keep=tokens - removed, protect=protect, sx=sx, sy=sy)


def test_compares_what_enters_the_block() -> None:
    given = loops.arrays(36, 2) | {"grid": (6, 6)}
    entering = np.random.default_rng(7).standard_normal((2, 36, 5)).astype(np.float32)
    alone = apply_method("tomesd", {"x": entering, "grid": (6, 6)}, keep=20, protect=0)
    for backend in loops.BACKENDS:
        found = apply_method("tomesd", given | {"stream": entering}, keep=20, protect=0, backend=backend)
        np.testing.assert_array_equal(found["assign"], alone["assign"])
        assert found["tokens"].shape == (2, 20, given["x"].shape[2])


def test_everything_comes_back() -> None:
    method = methods.get("tomesd")
    assert (method.returns, method.merges, method.drops) == ("after-attention", False, False)
    given = loops.arrays(36, 2) | {"grid": (6, 6)}
    found = apply_method("tomesd", given, keep=20, protect=0, restore=True)
    assert found["restored"].shape == given["x"].shape
    np.testing.assert_array_equal(
        found["restored"], np.take_along_axis(found["tokens"], found["assign"][:, :, None], axis=1)
    )


def test_equal_tokens_merge_in_position_order() -> None:
    given = loops.arrays(17, 1) | {"grid": (4, 4)}
    given["x"][:] = 1
    for backend in loops.BACKENDS:
        found = apply_method("tomesd", given, keep=13, backend=backend)
        assert found["index"][0].tolist() == [0, 7, 8, 10, 12, 13, 14, 15, 16, 1, 3, 9, 11]


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("tomesd", 25, (6, 6))
    loops.loses_nothing("tomesd", 25, (6, 6))


def test_what_it_cannot_do_is_refused() -> None:
    given = loops.arrays(37, 1)
    with pytest.raises(MethodError, match="'tomesd' needs the grid of the 36 unprotected tokens"):
        apply_method("tomesd", given, keep=25)
    given["grid"] = (6, 6)
    with pytest.raises(PlanError, match=r"can remove 27 of 37 tokens, .* got 28 to remove"):
        apply_method("tomesd", given, keep=9)
    with pytest.raises(MethodError, match="expected a cell of at least two tokens"):
        apply_method("tomesd", given, keep=25, sx=1, sy=1)
    with pytest.raises(PlanError, match="can remove 0 of 37"):
        apply_method("tomesd", given, keep=25, sx=7)
