"""MSViT: squares, their gate and the coarse tokens, written once more with loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS
from tests.passes.methods.helpers.scored import ODD
from tests.passes.methods.pruning.test_spa import GATE
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError


def squares(grid: tuple[int, int], protect: int) -> list[list[int]]:
    """Positions in every 2 x 2 square, row by row."""
    height, width = grid
    return [
        [protect + (row + i) * width + column + j for i in (0, 1) for j in (0, 1)]
        for row in range(0, height - 1, 2)
        for column in range(0, width - 1, 2)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("protect", "batch"), [(0, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize(
    ("grid", "coarse"), [((2, 2), 1), ((2, 4), 1), ((5, 6), 6), ((4, 8), 1), ((4, 8), 7), ((14, 14), 30)]
)
def test_equals_the_loops(grid: tuple[int, int], coarse: int, protect: int, batch: int, backend: str) -> None:
    tokens = protect + grid[0] * grid[1]
    given = scored.arrays(tokens, batch)
    keep = tokens - 3 * coarse
    found = apply_method(
        "msvit", {**given, "grid": grid}, keep=keep, protect=protect, backend=backend, weights=GATE
    )
    table = squares(grid, protect)
    for image in range(batch):
        x, size = given["x"][image], given["size"][image, :, 0]
        score = [scored.gated(GATE, x[square].mean(axis=0)) for square in table]
        chosen = sorted(sorted(range(len(table)), key=lambda i: (score[i], i))[:coarse])
        merged = [position for i in chosen for position in table[i]]
        fine = [position for position in range(tokens) if position not in merged]
        groups = [[position] for position in fine] + [table[i] for i in chosen]
        assert found["index"][image].tolist() == [group[0] for group in groups]
        for slot, group in enumerate(groups):
            assert (found["assign"][image, group] == slot).all()
            total = sum(size[i] for i in group)
            mean = sum(size[i] * x[i] for i in group) / total
            scored.close(found["tokens"][image, slot], mean, backend)
            scored.close(found["size"][image, slot, 0], total, backend)


def test_counts_that_are_no_whole_squares_are_refused_with_those_that_are() -> None:
    given = {**scored.arrays(17, 1), "grid": (4, 4)}
    with pytest.raises(PlanError, match="keep 11 or 14"):
        apply_method("msvit", given, keep=12, weights=GATE)
    with pytest.raises(MethodError, match="needs the grid"):
        apply_method("msvit", scored.arrays(17, 1), keep=14, weights=GATE)


def test_ties_make_the_first_squares_coarse() -> None:
    given = {**scored.arrays(17, 2), "grid": (4, 4)}
    given["x"][:] = given["x"][:, :1]
    for backend in BACKENDS:
        found = apply_method("msvit", given, keep=11, backend=backend, weights=GATE)
        assert found["index"].tolist() == [[0, 9, 10, 11, 12, 13, 14, 15, 16, 1, 3]] * 2


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    for where in (5, slice(None)):
        given = {**scored.arrays(17, 2), "grid": (4, 4)}
        given["x"][:, where] = ODD[odd]
        found = [
            apply_method("msvit", given, keep=11, backend=backend, weights=GATE)["index"]
            for backend in BACKENDS
        ]
        np.testing.assert_array_equal(*found)
        assert ((found[0] >= 0) & (found[0] < 17)).all()


def test_weights_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"method 'msvit' needs trained weights: .*gate.0.weight \[M,C\]"):
        apply_method("msvit", {**scored.arrays(17, 1), "grid": (4, 4)}, keep=14)
    path = tmp_path / "gate.npz"
    np.savez(path, **{name: value for name, value in GATE.items() if name != "gate.2.bias"})
    with pytest.raises(MethodError, match=r"lack 'gate.2.bias'"):
        apply_method("msvit", {**scored.arrays(17, 1), "grid": (4, 4)}, keep=14, weights=str(path))
